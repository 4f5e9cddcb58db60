"""Explanations summed over scales and mirror images, and brought to one grid.

The convention is that of IRN (Ahn et al. 2019) and P-NOC: every raw map is rectified, mirrored
maps are mirrored back, the maps of a scale are resized bilinearly to a grid of one cell per four
pixels of the photograph, and the scales are summed. ``normalise.by_peak`` ends it. Images lie in
the top left corner of their canvas; canvases are whole multiples of the network's stride.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.explain.contract import Explainer, Images, Labels
from wsss_jax.ops import images as image_ops
from wsss_jax.types import Scorer, Size

STRIDE = 4
"""Pixels of the photograph per cell of the grid that score maps are stored on."""

View: TypeAlias = Callable[[Array, Array], Array]
"""Arrays (b,h,w,...) and their true sizes (b,2) to the same seen otherwise; its own inverse."""


def as_is(arrays: Float[Array, "b h w n"], sizes: Int[Array, "b 2"]) -> Float[Array, "b h w n"]:
    """The view that changes nothing."""
    return arrays


AS_IS: tuple[View, ...] = (as_is,)
"""No mirroring."""

BOTH: tuple[View, ...] = (as_is, image_ops.flip_within)
"""The image and its mirror image."""


def explain_scale(
    explainer: Explainer,
    scorer_of: Callable[[Array], Scorer],
    images: Images,
    inside: Bool[Array, "b h w"],
    labels: Labels,
    *,
    to_sizes: Int[Array, "b 2"],
    canvas: Size,
    views: tuple[View, ...] = BOTH,
) -> Float[Array, "b gh gw c"]:
    """The rectified maps of one scale, summed over the views, on the common grid.

    Jit this once per shape and sum the results of all scales. ``scorer_of`` binds a classifier to
    an inside mask; ``images`` are already resized to the scale; ``to_sizes`` is each photograph's
    ``grid_size`` at full scale, and ``canvas`` a static size that holds all of them.
    """
    sizes = sizes_of(inside)
    seen = jnp.concatenate([view(images, sizes) for view in views])
    count = len(views)
    scorer = scorer_of(jnp.tile(inside, (count, 1, 1)))
    maps = explainer(scorer, seen, jnp.tile(labels, (count, 1)))
    from_sizes = sizes_on(maps, sizes, images)
    parts = jnp.split(jax.nn.relu(maps), count)
    total = sum_of([view(part, from_sizes) for view, part in zip(views, parts, strict=True)])
    return image_ops.resize_within(total, from_sizes, to_sizes, canvas)


def accumulate(
    total: Float[Array, "b gh gw c"],
    maps: Float[Array, "b h w c"],
    from_sizes: Int[Array, "b 2"],
    to_sizes: Int[Array, "b 2"],
) -> Float[Array, "b gh gw c"]:
    """Add one scale's raw maps, of true sizes ``from_sizes``, to the sum on the common grid."""
    canvas = (total.shape[1], total.shape[2])
    return total + image_ops.resize_within(jax.nn.relu(maps), from_sizes, to_sizes, canvas)


def grid_size(size: Size, stride: int = STRIDE) -> Size:
    """Cells along height and width of the grid that covers a photograph of this size."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def sizes_of(inside: Bool[Array, "b h w"]) -> Int[Array, "b 2"]:
    """True height and width of each image; rows that only fill the batch up count as 1 by 1."""
    heights = inside[:, :, 0].sum(axis=1, dtype=jnp.int32)
    widths = inside[:, 0, :].sum(axis=1, dtype=jnp.int32)
    return jnp.maximum(jnp.stack([heights, widths], axis=1), 1)


def sizes_on(
    maps: Float[Array, "n h w c"], sizes: Int[Array, "b 2"], images: Float[Array, "b H W 3"]
) -> Int[Array, "b 2"]:
    """True sizes on a map of these images: ceil(size / stride), the stride being H / h."""
    cells = jnp.array([maps.shape[1:3]], jnp.int32)
    pixels = jnp.array([images.shape[1:3]], jnp.int32)
    return (sizes * cells + pixels - 1) // pixels


def sum_of(arrays: list[Array]) -> Array:
    """Sum of arrays of one shape."""
    return jnp.stack(arrays).sum(axis=0)
