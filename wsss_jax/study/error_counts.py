"""Where a combination errs, beside its systems and beside perfect choices among them.

Reads true masks, to judge: nothing here may feed what learns or decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops import metrics
from wsss_jax.ops.resize import resize
from wsss_jax.stages.evaluate import Scoring, evaluate, fixed_threshold
from wsss_jax.stages.masks import Masking, mask_of
from wsss_jax.types import IGNORE

SIZES = (0.1, 0.3)
"""Borders between small, middling and large: the share of an image's known pixels that is no
background."""

BINS = 10


@dataclass(frozen=True)
class Errors:
    """Integer counts by store and image, and how often the combination's probabilities hold.

    Attributes:
        names: stores, the combination last.
        thresholds: at which each was decided; of systems the best on this truth, in their favour.
        counts: true class by predicted class.
        best_system: the same where a perfect judge picks one system for each image.
        best_pixel: the same where one picks a system for each pixel.
        size: of each image, 0 small, 1 middling, 2 large.
        believed: pixels, sum of foreground probabilities, and foreground pixels in each of the even
            bins of the combination's foreground probability.
        scored: mask indices that are averaged over.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    counts: Int[np.ndarray, "stores images n n"]
    best_system: Int[np.ndarray, "n n"]
    best_pixel: Int[np.ndarray, "n n"]
    size: Int[np.ndarray, " images"]
    believed: Float[np.ndarray, "bins 3"]
    scored: tuple[int, ...]

    def per_class(self) -> Float[np.ndarray, "stores n"]:
        """IoU of each mask index, NaN where it does not occur."""
        return metrics.iou(self.counts.sum(axis=1))

    def per_size(self) -> Float[np.ndarray, "stores 3"]:
        """Mean IoU over the small, the middling and the large images."""
        groups = [self.counts[:, self.size == size].sum(axis=1) for size in range(len(SIZES) + 1)]
        return np.stack([metrics.mean_iou(group, self.scored) for group in groups], axis=1)

    def calibration_error(self) -> float:
        """Expected calibration error of the foreground probability, in [0, 1].

        The mean over pixels of |probability - frequency|, both as means of a bin. Source: Guo et
        al. 2017, equation 3, of foreground against background.
        """
        return float(
            np.abs(self.believed[:, 1] - self.believed[:, 2]).sum() / self.believed[:, 0].sum()
        )


def survey(
    systems: Sequence[Store], combined: Store, source: Source, scoring: Scoring, *, split: str
) -> Errors:
    """Judge the systems, their combination and both perfect choices on a split with true masks.

    combined: of probabilities. Images that a store lacks are left out of all. Raises ValueError
    without systems, and BadFileError when no image is in all stores.
    """
    if not systems:
        raise UserError("name the systems that the combination is of")
    judged = [evaluate(store, source, scoring, split=split) for store in systems]
    limits = (*(result.tuned for result in judged), fixed_threshold(combined, scoring))
    stores, count = (*systems, combined), len(source.classes)
    rows, sizes, system, pixel = [], [], [], []
    believed = np.zeros((BINS, 3))
    for id in source.ids:
        truth = source.mask(id)
        if truth is None or not all(store.has(id) for store in stores):
            continue
        said = [
            mask_of(store.get_scores(id), Masking(limit, background=scoring.background))
            for store, limit in zip(stores, limits, strict=True)
        ]
        each = np.stack([metrics.confusion(truth, mask, count).counts for mask in said])
        rows.append(each)
        system.append(each[int(np.nanargmax(metrics.mean_iou(each[:-1])))])
        pixel.append(metrics.confusion(truth, _best(truth, said[:-1]), count).counts)
        known = truth != IGNORE
        sizes.append(int(np.digitize((truth[known] > 0).mean(), SIZES)))
        believed += _believed(combined, id, truth, known)
    if not rows:
        raise BadFileError(f"no image of split {split} is in all of {len(stores)} stores")
    return Errors(
        tuple(store.folder.name for store in stores),
        limits,
        np.stack(rows, axis=1),
        np.sum(system, axis=0),
        np.sum(pixel, axis=0),
        np.array(sizes),
        believed,
        scoring.indices(source.classes),
    )


def _best(
    truth: UInt8[np.ndarray, "H W"], said: Sequence[UInt8[np.ndarray, "H W"]]
) -> UInt8[np.ndarray, "H W"]:
    """The truth where any system says it, else what the first one says."""
    right = np.any([mask == truth for mask in said], axis=0)
    return np.where(right, truth, said[0])


def _believed(
    combined: Store, id: str, truth: UInt8[np.ndarray, "H W"], known: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "bins 3"]:
    maps = combined.get_scores(id)
    sure = np.zeros(maps.size)
    if len(maps.classes):
        sure = np.clip(resize(maps.scores, maps.size).sum(axis=-1), 0, 1)
    sure, shown = sure[known].astype(np.float64), truth[known] > 0
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    columns = (np.bincount(bins, weights=w, minlength=BINS) for w in (None, sure, shown))
    return np.stack(list(columns), axis=1)
