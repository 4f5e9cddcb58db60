"""Asking a network about every cell of every photograph: scales, mirror images, one common grid.

Logits of all scales and mirror images are averaged on a grid of one cell per four pixels of the
photograph, each read where the network looked (``explain.multiscale``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from wsss_jax.batches.batches import Group
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.explain import multiscale
from wsss_jax.ops import images as image_ops
from wsss_jax.ops.resize import grid_size
from wsss_jax.run.images import settle
from wsss_jax.run.photographs import over_photographs
from wsss_jax.types import Batch, ScoreMaps, Size


@dataclass(frozen=True)
class Asked:
    """How a trained network is asked.

    Attributes:
        scales: of the photograph's size; logits are averaged over them.
            Photographs above 724×724 pixels are limited to 2 megapixels at every scale.
        flip: average over the mirror image too.
        batch_size: images per call.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    batch_size: int = 4


class Dense(NamedTuple):
    """A trained network that answers for every cell.

    logits: (state, images (b,h,w,3), inside (b,h,w)) to (b,h',w',c), pure. stride: pixels per cell
    of it. lean: which of them the cell looks at, from 0 (the first) to 1 (the last).
    """

    logits: Callable[[PyTree, Array, Array], Array]
    state: PyTree
    stride: int
    lean: float


Maps = Callable[[Float[np.ndarray, "h w c"], Group, int, Size], ScoreMaps]
"""(mean logits on the photograph's grid, its group, its row there, its size) to score maps."""


def fill(
    outputs: Sequence[tuple[Store, Maps]],
    source: Source,
    ids: tuple[str, ...],
    *,
    network: Dense,
    asked: Asked,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Ask about those of ``ids`` that a store lacks, and put into each what its maps make of it.

    shard: (index, count) of the share of all images that ``ids`` are.
    Images that cannot be read are skipped, printed, and listed. Raises Interrupted after SIGTERM
    or Ctrl-C; finished images are kept.
    """
    lacking = {id for target, _ in outputs for id in target.missing(ids)}
    ids = tuple(id for id in ids if id in lacking)
    if not ids:
        return
    answer = _answer(network, asked)

    def write(group: Group) -> int:
        logits = answer(group)
        for row, id in enumerate(group.ids):
            size: Size = (int(group.full[row][0]), int(group.full[row][1]))
            seen = (int(group.sizes[row][0]), int(group.sizes[row][1]))
            height, width = grid_size(seen)
            for target, maps in outputs:
                target.put_scores(id, maps(logits[row, :height, :width], group, row, size))
        return len(group.ids)

    title = "predict " + ", ".join(target.folder.name for target, _ in outputs)
    tally = over_photographs(
        title, source, ids, write, scales=asked.scales, batch_size=asked.batch_size
    )
    tally = replace(tally, shard=shard)
    for target, _ in outputs:
        settle(target, tally)


def _answer(network: Dense, asked: Asked) -> Callable[[Group], Float[np.ndarray, "b h w c"]]:
    """From a group of photographs to the mean logits of its images on their grids."""
    step = jax.jit(
        partial(one_scale, network=network._replace(state=None), flip=asked.flip),
        static_argnames="canvas",
    )

    def answer(group: Group) -> Float[np.ndarray, "b h w c"]:
        sizes = jnp.asarray(group.sizes, jnp.int32)
        canvas = multiscale.full_canvas(group.scaled[0].images.shape[1:3], group.scales[0])
        parts = [step(network.state, batch, sizes, canvas=canvas) for batch in group.scaled]
        return multiscale.sum_of(parts) / np.float32(len(parts))

    return answer


def one_scale(
    state: PyTree,
    batch: Batch,
    photographs: Array,
    *,
    canvas: Size,
    network: Dense,
    flip: bool,
) -> Float[Array, "b h w c"]:
    """Mean logits of images of one scale, and of their mirror images, on the photographs' grids.

    photographs: (b,2) height and width at full scale. canvas: a grid that holds all of theirs.
    """
    sizes = multiscale.sizes_of(batch.inside)
    place = multiscale.Placement(sizes, photographs, float(network.stride), network.lean)
    plain = network.logits(state, batch.images, batch.inside)
    found = multiscale.on_grid(plain, place, canvas, mirrored=False)
    if not flip:
        return found
    mirrored = network.logits(state, image_ops.flip_within(batch.images, sizes), batch.inside)
    return (found + multiscale.on_grid(mirrored, place, canvas, mirrored=True)) / 2
