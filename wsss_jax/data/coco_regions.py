"""Regions of COCO, as polygons and run lengths, and masks painted from them.

Polygons are filled bit for bit as in the reference code of COCO, and run lengths go down the
columns. A region becomes runs: ranges of pixels counted down the columns, so that 100,000 polygons
of an image are filled at once and their order is decided before one pixel is written.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from wsss_jax.errors import UserError
from wsss_jax.types import Size

MAX_OUTLINE = 5_000_000
"""Longer outlines are refused, in fifths of a pixel: they take memory and enclose no object."""

MAX_OUTLINES = 500_000_000
"""The same of all regions of one image together."""

_FINER = 5
_AT_ONCE = 1_000_000


class Runs(NamedTuple):
    """Ranges of pixels, counted down the columns, and the region each belongs to.

    owner, start, stop: (n,), start < stop.
    """

    owner: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]
    stop: Int[np.ndarray, " n"]


def runs_of(regions: Sequence[Any], size: Size) -> Runs:
    """The runs of regions: lists of polygons, or run lengths in either form.

    regions: ``[[x, y, x, y, …], …]`` or one flat polygon, in pixels, or ``{"size": [H, W],
    "counts": […] or "…"}``. size: (H, W) of the image. Raises ValueError for what is neither, or
    does not fit the image.
    """
    polygons: list[np.ndarray] = []
    owners: list[int] = []
    parts: list[Runs] = []
    for owner, region in enumerate(regions):
        if isinstance(region, Mapping):
            parts.append(_runs_of_lengths(region, size, owner))
            continue
        for polygon in _polygons(region):
            polygons.append(_corners(polygon))
            owners.append(owner)
    parts += _filled(polygons, owners, size)
    if not parts:
        return Runs(*(np.zeros(0, np.int64) for _ in range(3)))
    return Runs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def areas(runs: Runs, count: int) -> Float[np.ndarray, " count"]:
    """Pixels of each region; where its polygons overlap, they count twice."""
    lengths = (runs.stop - runs.start).astype(np.float64)
    return np.bincount(runs.owner, lengths, minlength=count).astype(np.float64)


def paint(
    runs: Runs,
    order: Int[np.ndarray, " r"],
    values: UInt8[np.ndarray, " r"],
    size: Size,
) -> UInt8[np.ndarray, "H W"]:
    """A mask of the regions' values; ``order`` lists the regions, the last lies on top."""
    height, width = size
    mask = np.zeros(height * width, np.uint8)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_rank = np.argsort(rank[runs.owner], kind="stable")
    owner, start, stop = (column[by_rank] for column in runs)
    ends = np.cumsum(stop - start)
    first = 0
    while first < len(owner):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + 4 * _AT_ONCE, "right")), first + 1)
        lengths = stop[first:last] - start[first:last]
        before = np.cumsum(lengths) - lengths
        places = np.repeat(start[first:last] - before, lengths) + np.arange(lengths.sum())
        mask[places] = np.repeat(values[owner[first:last]], lengths)  # of one place the last wins
        first = last
    return mask.reshape(width, height).T


def draw(region: Any, size: Size) -> Bool[np.ndarray, "H W"]:
    """The pixels of one region; see ``runs_of``. Raises ValueError."""
    runs = runs_of([region], size)
    return paint(runs, np.zeros(1, np.int64), np.ones(1, np.uint8), size).astype(bool)


def run_lengths(text: str) -> Int[np.ndarray, " r"]:
    """The run lengths that a compressed string of COCO holds.

    Five bits a character from '0' on, the sixth says that more follow, the last carries the sign;
    from the fourth number on each is the difference to the one two before. Raises ValueError.
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() >= 64:
        raise UserError("characters that no compressed run lengths have")
    if codes[-1] & 32:
        raise UserError("compressed run lengths that are cut off")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise UserError("characters that no compressed run lengths have")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values -= ((codes[ends] & 16) != 0) * (np.int64(1) << (5 * lengths))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def counts_of(region: Mapping[str, Any], size: Size) -> Int[np.ndarray, " r"]:
    """Run lengths of ``{"size": [H, W], "counts": […] or "…"}``, down the columns of the image.

    Raises ValueError where they do not cover the image.
    """
    height, width = size
    given = region.get("size")
    if not isinstance(given, (list, tuple)) or list(given) != [height, width]:
        raise UserError(f"runs of size {str(given)[:40]}, wanted [{height}, {width}]")
    counts = region.get("counts")
    if isinstance(counts, str):
        found = run_lengths(counts)
    elif isinstance(counts, list) and all(type(n) is int and 0 <= n < 2**31 for n in counts):
        found = np.asarray(counts, np.int64)
    else:
        raise UserError("run lengths that are no list of whole numbers from 0 on")
    if (found < 0).any():
        raise UserError("run lengths below 0")
    if found.sum() != height * width:
        raise UserError(f"runs of {found.sum()} pixels, wanted {height} × {width}")
    return found


def check_pixels(regions: Iterable[Any], size: Size) -> None:
    """UserError where all polygons lie within the first pixel: they are fractions of the image."""
    polygons = [p for r in regions if isinstance(r, (list, tuple)) for p in _polygons(r)]
    highest = []
    for polygon in polygons:
        with suppress(UserError):  # named when it is drawn
            highest.append(np.abs(_corners(polygon)).max())
    if highest and min(size) > 2 and max(highest) <= 1:
        raise UserError("corners that are fractions of the photograph, wanted pixels")


def _polygons(region: Any) -> Sequence[Any]:
    """The polygons of a region, which may be one flat list of numbers."""
    if not isinstance(region, (list, tuple)):
        raise UserError(f"a region of type {type(region).__name__}, wanted polygons or runs")
    flat = region and all(isinstance(number, (int, float)) for number in region)
    return [region] if flat else region


def _corners(polygon: Any) -> Float[np.ndarray, "n 2"]:
    try:
        flat = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError) as problem:
        raise UserError(f"a polygon that is no list of numbers ({problem})") from problem
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2:
        raise UserError(f"a polygon of shape {flat.shape}, wanted x, y of three or more corners")
    # The bound keeps products far from overflow; no photograph is near it.
    if not (np.abs(flat) < 1e7).all():
        raise UserError("a polygon with corners that are not finite")
    return flat.reshape(-1, 2)


def _filled(
    polygons: Sequence[Float[np.ndarray, "n 2"]], owners: Sequence[int], size: Size
) -> Iterator[Runs]:
    """Runs of many polygons, as many at once as memory allows."""
    fine = [np.trunc(_FINER * corners + 0.5).astype(np.int64) for corners in polygons]
    lengths = [int(np.abs(c - np.roll(c, -1, axis=0)).max(axis=1).sum()) for c in fine]
    if max(lengths, default=0) > MAX_OUTLINE or sum(lengths) > MAX_OUTLINES:
        longest = max(lengths) / _FINER
        raise UserError(f"a polygon whose outline is {longest:.0f} pixels long, or too many")
    first, total = 0, 0
    for last, length in enumerate([*lengths, _AT_ONCE]):
        if last > first and total + length > _AT_ONCE:
            yield _crossed(fine[first:last], np.asarray(owners[first:last]), size)
            first, total = last, 0
        total += length


def _crossed(
    polygons: Sequence[Int[np.ndarray, "n 2"]], owners: Int[np.ndarray, " p"], size: Size
) -> Runs:
    """Where the outlines cross the centre lines of columns; pixels between two crossings are in.

    The outline is walked on a grid five times finer; wherever it crosses the centre line of a
    column, all pixels below the crossing are toggled (even-odd rule). Source: rleFrPoly in
    maskApi.c of the COCO API.
    """
    height, width = size
    polygon, across, down = _outline(polygons)
    before, after = across[:-1], across[1:]
    column, rest = np.divmod(np.where(after < before, after, after - 1), _FINER)
    # The middle of the five fine columns is the centre line; standing still crosses nothing.
    crossed = (before != after) & (rest == _FINER // 2) & (0 <= column) & (column < width)
    crossed &= polygon[:-1] == polygon[1:]
    row = (np.minimum(down[:-1], down[1:])[crossed] + 0.5) / _FINER - 0.5
    place = column[crossed] * height + np.ceil(np.clip(row, 0, height)).astype(np.int64)
    polygon = polygon[:-1][crossed]
    order = np.lexsort((place, polygon))
    polygon, place = polygon[order], place[order]
    # A closed outline crosses a line an even number of times.
    start, stop, which = place[::2], place[1::2], polygon[::2]
    real = start < stop
    return Runs(owners[which[real]], start[real], stop[real])


def _outline(
    polygons: Sequence[Int[np.ndarray, "n 2"]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All grid points along closed polygons, one edge after the other: (polygon, x, y).

    Each edge takes one step a point along its longer side, from its lower end, so that rounding
    does not depend on the direction.
    """
    counts = np.array([len(corners) for corners in polygons])
    corners = np.concatenate(polygons)
    following = np.arange(1, len(corners) + 1)
    following[np.cumsum(counts) - 1] = np.cumsum(counts) - counts
    ends = corners[following]
    dx, dy = np.abs(ends - corners).T
    flat = dx >= dy
    flip = np.where(flat, corners[:, 0] > ends[:, 0], corners[:, 1] > ends[:, 1])
    length = np.maximum(dx, dy)
    start, stop = np.where(flip[:, None], (ends, corners), (corners, ends))
    edge = np.repeat(np.arange(len(corners)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(flip[edge], length[edge] - step, step)
    slope = (stop - start) / np.maximum(length, 1)[:, None]
    points = np.trunc(start[edge] + slope[edge] * step[:, None] + 0.5).astype(np.int64)
    along = start[edge] + step[:, None]
    flat = flat[edge]
    x = np.where(flat, along[:, 0], points[:, 0])
    y = np.where(flat, points[:, 1], along[:, 1])
    return np.repeat(np.arange(len(polygons)), counts)[edge], x, y


def _runs_of_lengths(region: Mapping[str, Any], size: Size, owner: int) -> Runs:
    counts = counts_of(region, size)
    stop = np.cumsum(counts)[1::2]
    start = stop - counts[1::2]
    real = start < stop
    return Runs(np.full(int(real.sum()), owner), start[real], stop[real])
