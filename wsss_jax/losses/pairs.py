"""What labels of cells tell about pairs of cells.

Pairs lie on the stencil of ``ops.affinity``, in its order. Labels are mask values: 0 background,
above it classes, IGNORE unknown. Sources: PSA (Ahn & Kwak 2018), IRN (Ahn, Cho & Kwak 2019). Where
we differ: they take pairs only from cells where the whole stencil fits (2496 of 3136 cells at
radius 5), we take every pair of the grid, as in the walk.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from wsss_jax.ops.affinity import stencil
from wsss_jax.types import IGNORE, Leaf


class Pairs(NamedTuple):
    """Masks (b,p,h,w) of three kinds of pairs; a pair with an unknown cell is of none.

    background: both are background. foreground: both are the same class. different: the rest.
    """

    background: Leaf
    foreground: Leaf
    different: Leaf


def pairs(labels: Int[Array, "b h w"], radius: int) -> Pairs:
    """The kind of every pair closer than ``radius``; pairs that leave the grid are of none."""
    height, width = labels.shape[1:]
    margin = radius - 1
    room = ((0, 0), (0, margin), (margin, margin))
    padded = jnp.pad(labels, room, constant_values=IGNORE)

    def kinds(offset: Int[Array, " 2"]) -> tuple[Array, Array, Array]:
        start = (jnp.zeros((), jnp.int32), offset[0], offset[1] + margin)
        there = lax.dynamic_slice(padded, start, (labels.shape[0], height, width))
        known = (labels != IGNORE) & (there != IGNORE)
        same = known & (labels == there)
        return same & (labels == 0), same & (labels > 0), known & ~same

    found = lax.map(kinds, jnp.asarray(np.asarray(stencil(radius), np.int32)))
    return Pairs(*(jnp.moveaxis(kind, 0, 1) for kind in found))


def at_cells(
    masks: Int[Array, "b H W"], stride: int, inside: Bool[Array, "b H W"] | None = None
) -> Int[Array, "b h w"]:
    """Mask values in the middle of every cell of ``stride`` pixels; IGNORE on padding.

    (PSA averages scores over the cell before it decides, IRN takes the nearest pixel as here.)
    """
    if inside is not None:
        masks = jnp.where(inside, masks, jnp.asarray(IGNORE, masks.dtype))
    rows, columns = (
        np.minimum(np.arange(0, n, stride) + stride // 2, n - 1) for n in masks.shape[1:]
    )
    return masks[:, rows[:, None], columns[None, :]]
