"""Confusion counts as integers on the host, and every number that is read off them.

Rows are truth, columns prediction; index 0 is background, class c is index c + 1. Each number
works over any leading axes (images, thresholds, bootstrap resamples), so sum the counts of images
first: the mean IoU of a set is that of the summed matrix, not the mean over images. A class that
occurs neither in the truth nor in the prediction has no IoU (NaN), and means leave it out.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, UInt8

from wsss_jax.types import IGNORE, Confusion

_VALUES = 256
_PARTS = 1024


def confusion(
    truth: UInt8[np.ndarray, "H W"], predicted: UInt8[np.ndarray, "_ _"], classes: int
) -> Confusion:
    """Pixel counts of one image with C foreground classes; pixels of unknown truth are left out.

    Raises ValueError where either mask holds a value above C: a prediction may not leave pixels
    open, since that would let it choose where it is judged. Decide its 255 first.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, prediction {predicted.shape}; resize one first")
    joint = _counted((truth.astype(np.uint16) << 8 | predicted).ravel()).reshape(_VALUES, _VALUES)
    size = classes + 1
    _refuse(joint[size:IGNORE].any(axis=1), size, "truth")
    _refuse(joint[:size, size:].any(axis=0), size, "prediction")
    return Confusion(joint[:size, :size].astype(np.int64))


def threshold_confusions(
    truth: UInt8[np.ndarray, "H W"],
    best: Integer[np.ndarray, "_ _"],
    peak: Float[np.ndarray, "_ _"],
    thresholds: Sequence[float] | Float[np.ndarray, " t"],
    *,
    classes: int,
) -> Integer[np.ndarray, "t n n"]:
    """Counts (t, C+1, C+1) for all background thresholds of one image in a single count.

    ``best`` is the class (0-based) of the highest score at each pixel, ``peak`` that score. At a
    threshold t the prediction is class ``best`` where ``peak > t``, else background; t is rounded
    to the type of ``peak``, as in ``scores > 0.3``. Raises ValueError for thresholds that do not
    rise, NaN scores, a class outside 0..C-1, or a truth above C.
    """
    steps = np.asarray(thresholds, peak.dtype)
    if steps.size == 0 or (np.diff(steps) < 0).any():
        raise ValueError(f"thresholds {list(thresholds)} must be one or more, in rising order")
    if not truth.shape == best.shape == peak.shape:
        raise ValueError(
            f"truth {truth.shape}, best {best.shape} and peak {peak.shape} must have one size"
        )
    judged = truth != IGNORE
    rows, columns, scores = truth[judged], best[judged], peak[judged]
    _check_range(rows, columns, scores, classes)
    # A pixel is foreground at every threshold below its score, and there are `level` of those.
    level = _levels(steps, scores)
    shape = (classes + 1, classes, steps.size + 1)
    joint = (rows.astype(np.intp) * classes + columns) * shape[2] + level
    counted = np.bincount(joint, minlength=int(np.prod(shape))).reshape(shape)
    above = counted[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]
    background = counted.sum(axis=(1, 2))[:, None] - above.sum(axis=1)
    whole = np.concatenate([background[:, None], above], axis=1)
    return np.moveaxis(whole, -1, 0).astype(np.int64)


def _levels(
    steps: Float[np.ndarray, " t"], scores: Float[np.ndarray, " n"]
) -> Integer[np.ndarray, " n"]:
    """How many of the rising steps lie below each score, as ``np.searchsorted``, from a table.

    A score times a power of two tells its part of [0, 1] exactly, and where no part holds two steps
    one comparison decides: half the time of a search.
    """
    starts = np.arange(_PARTS, dtype=steps.dtype) / _PARTS
    below = np.searchsorted(steps, starts, side="left").astype(np.int32)
    below[0] = 0
    if np.diff(below, append=steps.size).max() > 1:
        return np.searchsorted(steps, scores, side="left")
    part = np.clip(scores * _PARTS, 0, _PARTS - 1).astype(np.int32)
    first = np.append(steps, np.asarray(np.inf, steps.dtype))[below]
    return below[part] + (scores > first[part])


def iou(counts: Num[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n"]:
    """Intersection over union of each class, in [0, 1]; NaN where a class does not occur."""
    hit = _diagonal(counts)
    return _ratio(hit, counts.sum(axis=-1) + counts.sum(axis=-2) - hit)


def precision(counts: Num[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n"]:
    """Share of the pixels predicted as a class that are of it; NaN where never predicted."""
    return _ratio(_diagonal(counts), counts.sum(axis=-2))


def recall(counts: Num[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n"]:
    """Share of a class's pixels that were found; NaN where the class is not in the truth."""
    return _ratio(_diagonal(counts), counts.sum(axis=-1))


def f1(counts: Num[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n"]:
    """Harmonic mean of precision and recall (Dice) of each class; NaN where it does not occur."""
    return _ratio(2 * _diagonal(counts), counts.sum(axis=-1) + counts.sum(axis=-2))


def pixel_accuracy(
    counts: Num[np.ndarray, "*b n n"], scored: Sequence[int] | None = None
) -> Float[np.ndarray, "*b"]:
    """Share of pixels predicted rightly, among those whose truth is one of the scored indices."""
    rows = _indices(scored, counts.shape[-1])
    right = _diagonal(counts)[..., rows].sum(axis=-1)
    return _ratio(right, counts[..., rows, :].sum(axis=(-2, -1)))


def mean_over(
    values: Float[np.ndarray, "*b n"], scored: Sequence[int] | None = None
) -> Float[np.ndarray, "*b"]:
    """Mean over the scored mask indices, NaN left out; NaN where all of them are."""
    chosen = values[..., _indices(scored, values.shape[-1])]
    defined = ~np.isnan(chosen)
    return _ratio(np.where(defined, chosen, 0).sum(axis=-1), defined.sum(axis=-1))


def mean_iou(
    counts: Num[np.ndarray, "*b n n"], scored: Sequence[int] | None = None
) -> Float[np.ndarray, "*b"]:
    """Mean IoU over the scored mask indices; None scores background and all classes.

    To leave background out, score ``range(1, C + 1)``: pixels predicted as background still count
    as missed. A class without truth that is predicted somewhere counts as 0.
    """
    return mean_over(iou(counts), scored)


def average_precision(
    scores: Float[np.ndarray, "images c"], labels: Bool[np.ndarray, "images c"]
) -> Float[np.ndarray, " c"]:
    """Average precision of each class over images, in [0, 1]; NaN for a class without positives.

    Sum over ranks of precision times the rise in recall, no interpolation; images of equal score
    share one rank, so their order does not matter. Mean over classes: ``mean_over``.
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN; there is no order among them")
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=0)
    found = np.take_along_axis(labels, order, axis=0).cumsum(axis=0)
    seen = np.arange(1, len(scores) + 1)[:, None]
    # Only the last of equal scores is a threshold that can be set.
    last = np.ones(ranked.shape, bool)
    last[:-1] = ranked[1:] != ranked[:-1]
    reached = np.maximum.accumulate(np.where(last, found, 0), axis=0)
    rise = np.diff(reached, axis=0, prepend=0)
    return _ratio((rise * found / seen).sum(axis=0), labels.sum(axis=0))


def _ratio(part: np.ndarray | np.generic, whole: np.ndarray | np.generic) -> np.ndarray:
    """part / whole as floats, NaN where whole is 0; scalars come back as arrays without axes."""
    missing = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=missing, where=np.asarray(whole) != 0)


def _diagonal(counts: np.ndarray) -> np.ndarray:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _indices(scored: Sequence[int] | None, size: int) -> np.ndarray:
    chosen = np.arange(size) if scored is None else np.asarray(scored, np.intp)
    if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= size:
        raise ValueError(
            f"scored indices {list(chosen)}, wanted some of 0 to {size - 1} (0 is background)"
        )
    return chosen


def _counted(pairs: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " v"]:
    """How often each 16-bit value occurs.

    Masks are made of runs: counting a run at a time takes half as long as pixel by pixel, which is
    left for masks like noise.
    """
    ends = np.flatnonzero(pairs[1:] != pairs[:-1])
    if 8 * ends.size > pairs.size or not pairs.size:
        return np.bincount(pairs, minlength=_VALUES**2)
    lengths = np.diff(ends, prepend=-1, append=pairs.size - 1)
    values = pairs[np.append(ends, pairs.size - 1)]
    return np.bincount(values, lengths, minlength=_VALUES**2).astype(np.int64)  # exact to 2^53


def _refuse(present: np.ndarray | np.bool_, first: int, what: str) -> None:
    """Error for the values ``first``, first + 1, … that are flagged as present."""
    values = ", ".join(str(value) for value in np.flatnonzero(present) + first)
    if values:
        raise ValueError(
            f"the {what} holds {values}, but there are {first - 1} classes; check the class list"
        )


def _check_range(rows: np.ndarray, columns: np.ndarray, scores: np.ndarray, classes: int) -> None:
    if not rows.size:
        return
    if rows.max() > classes:
        raise ValueError(f"the truth holds {rows.max()}, but there are {classes} classes")
    if columns.min() < 0 or columns.max() >= classes:
        raise ValueError(
            f"best holds {columns.min()} to {columns.max()}, wanted classes 0 to {classes - 1}"
        )
    if np.isnan(scores).any():
        raise ValueError("peak holds NaN; correct the score maps first")
