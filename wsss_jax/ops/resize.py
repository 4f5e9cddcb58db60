"""Maps on another grid, on the host: means over areas where it is coarser, bilinear where finer."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from wsss_jax.types import Size


def fits(grid: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a grid has the shape of a photograph (H, W), up to two cells.

    A grid of stride s has ceil(H / s) rows, or about so many.
    """
    return abs(grid[0] * size[1] - grid[1] * size[0]) <= 2 * max(size)


def grid_size(size: Size, stride: int = 4) -> Size:
    """Cells along height and width of the grid that covers a photograph of this size."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def resize(scores: Float[np.ndarray, "h w *k"], size: Size) -> Float[np.ndarray, "h2 w2 *k"]:
    """The maps on a grid of ``size``, each axis by itself; nothing is shifted.

    Along an axis that gets shorter each cell is the mean over its part of the map, parts of pixels
    counted as parts: the mean of the map is kept, and where ``size`` does not divide the map, cells
    are h / h2 pixels (375 rows to 94: 3.99). OpenCV calls this INTER_AREA. Along an axis that gets
    longer it is bilinear, with half-pixel centres and clamped borders (align_corners=False).
    """
    if scores.shape[:2] == size:
        return scores
    height, width = scores.shape[:2]
    # The axis that gets shorter goes first, so that the other has less to do.
    for axis in (0, 1) if size[0] * width <= size[1] * height else (1, 0):
        scores = _along(scores, axis, size[axis])
    return np.ascontiguousarray(scores)


def resize_rows(
    scores: Float[np.ndarray, "h w *k"], size: Size, part: slice
) -> Float[np.ndarray, "h2 w2 *k"]:
    """Some rows of what ``resize`` makes, without the others where the map gets taller."""
    start, stop, _ = part.indices(size[0])
    if stop - start == size[0] or size[0] <= scores.shape[0]:
        return resize(scores, size)[part]
    low, high, share = _bilinear(scores.shape[0], size[0])
    between = _Between(low[part], high[part], share[part])
    return resize(_interpolated(scores, 0, between), (stop - start, size[1]))


def _along(scores: np.ndarray, axis: int, target: int) -> np.ndarray:
    source = scores.shape[axis]
    if target == source:
        return scores
    if target > source:
        return _interpolated(scores, axis, _bilinear(source, target))
    lead = np.moveaxis(scores, axis, 0) if axis else scores
    return np.moveaxis(np.asarray(_means(lead, target), scores.dtype), 0, axis)


def _means(lead: np.ndarray, target: int) -> Any:
    """Means over areas of the first axis, which gets shorter.

    A sum of a few slices: four times faster than the product with a banded matrix.
    """
    source = len(lead)
    if source % target == 0:
        step = source // target
        return sum(lead[n::step] * np.float32(1 / step) for n in range(step))
    index, weight = _areas(source, target)
    shape = (-1, *(1,) * (lead.ndim - 1))
    return sum(
        np.take(lead, one, axis=0) * share.reshape(shape)
        for one, share in zip(index, weight, strict=True)
    )


@lru_cache(maxsize=64)
def _areas(
    source: int, target: int
) -> tuple[Int[np.ndarray, "t target"], Float[np.ndarray, "t target"]]:
    """Row j: the j-th source index of every output, and the share of the output it makes."""
    edges = np.arange(target + 1) * (source / target)
    first = np.floor(edges[:-1] + 1e-9).astype(np.int64)
    taps = int(np.ceil(source / target)) + 1
    index = first[np.newaxis] + np.arange(taps)[:, np.newaxis]
    covered = np.minimum(index + 1, edges[1:]) - np.maximum(index, edges[:-1])
    weights = np.maximum(covered, 0) * (target / source)
    used = weights.max(axis=1) > 1e-9
    return np.minimum(index, source - 1)[used], weights[used].astype(np.float32)


class _Between(NamedTuple):
    """The two cells that each output lies between, and the share of the second."""

    low: Int[np.ndarray, " target"]
    high: Int[np.ndarray, " target"]
    share: Float[np.ndarray, " target"]


@lru_cache(maxsize=64)
def _bilinear(source: int, target: int) -> _Between:
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    low = np.floor(centre).astype(np.int64)
    first, second = (np.clip(low + offset, 0, source - 1) for offset in (0, 1))
    return _Between(first, second, (centre - low).astype(np.float32))


def _interpolated(scores: np.ndarray, axis: int, between: _Between) -> np.ndarray:
    # Gathered slices: no BLAS, whose threads wait for one another where the machine is busy.
    share = between.share.astype(scores.dtype).reshape((-1, *(1,) * (scores.ndim - axis - 1)))
    found = np.take(scores, between.low, axis=axis)
    found *= 1 - share
    above = np.take(scores, between.high, axis=axis)
    above *= share
    found += above
    return found
