"""How well a map lies on its object: numbers of one map and one region, on the host.

A region is what the truth says of one class: a mask, or the union of boxes. Maps are at the
region's size and count from their ReLU. A map that is zero everywhere has found nothing and scores
0, where a quotient would be 0 / 0. Sources stand with each number.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy import ndimage

from wsss_jax.ops import metrics
from wsss_jax.ops.components import BOX_SHARE, Box, box_iou, score_box
from wsss_jax.types import IGNORE

Map = Float[np.ndarray, "H W"]
Region = Bool[np.ndarray, "H W"]

_CORNERS_TOUCH = np.ones((3, 3), bool)


def stretched(scores: Map) -> Map:
    """(M - min) / (max - min) of the rectified map; zero where that is constant."""
    positive = np.maximum(scores, 0)
    low, high = positive.min(), positive.max()
    return (positive - low) / (high - low) if high > low else np.zeros_like(positive)


def loc(scores: Map, region: Region, threshold: float) -> float:
    """Pixels at or above the threshold inside, over the region's and those outside, in [0, 1].

    The map is stretched to [0, 1] first; a threshold of 0 would take every pixel. Source:
    Grad-CAM++ (Chattopadhay et al. 2018, section 4.2).
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, wanted one above 0 and at most 1")
    found = stretched(scores) >= threshold
    whole = region.sum() + (found & ~region).sum()
    return float((found & region).sum() / whole) if whole else 0.0


def proportion(scores: Map, region: Region) -> float:
    """Share of the stretched map's sum that lies in the region: the energy pointing game.

    Source: Score-CAM (Wang et al. 2020, section 4.4).
    """
    unit = stretched(scores)
    total = unit.sum(dtype=np.float64)
    return float(unit[region].sum(dtype=np.float64) / total) if total else 0.0


def regions_boxes(region: Region) -> tuple[Box, ...]:
    """One box around each 8-connected part of a region, in reading order."""
    numbered = np.zeros(region.shape, np.int32)
    ndimage.label(region, structure=_CORNERS_TOUCH, output=numbered)
    return tuple(
        Box(rows.start, columns.start, rows.stop, columns.stop)
        for rows, columns in ndimage.find_objects(numbered)
    )


def hits_a_box(
    scores: Map, truth: Sequence[Box], *, share: float = BOX_SHARE, least: float = 0.5
) -> bool:
    """Whether the box around the map's largest part overlaps a true box enough.

    The part is that above ``share`` of the maximum; its box has to have an IoU of ``least`` or
    more with any of the true ones. Source: Zhou et al. 2016, section 3.2.
    """
    found = score_box(scores, share=share)
    return any(box_iou(found, box) >= least for box in truth)


def foreground_counts(scores: Map, truth: UInt8[np.ndarray, "_ _"]) -> Integer[np.ndarray, "2 2"]:
    """Pixel counts of object (1) against the rest (0): a pixel above the map's mean is object.

    Sum them over images before ``metrics.pixel_accuracy`` and ``metrics.mean_iou``. Truth is 0, 1
    or IGNORE. Source: ImageNet-segmentation as Chefer et al. 2021 evaluate it (strictly above).
    """
    above = (scores > scores.mean(dtype=np.float64)).astype(np.uint8)
    return metrics.confusion(truth, above, 1).counts


def foreground_f1(counts: Integer[np.ndarray, "2 2"]) -> float:
    """F1 of the object in one image, 0 where there is neither object nor prediction.

    The protocol takes the mean of it over images, unlike accuracy and IoU.
    """
    value = metrics.f1(counts)[1]
    return 0.0 if np.isnan(value) else float(value)


def foreground_precision(scores: Map, truth: UInt8[np.ndarray, "_ _"]) -> float:
    """Average precision of one image over its pixels, object and rest in one ranking.

    With M stretched to [0, 1] (with its negative values, unlike elsewhere), pixels are ranked by M
    as object and by 1 - M as rest, and both rankings are one list; 0 where nothing is to be found.
    The protocol's mAP is the mean over images. Source: as ``foreground_counts``.
    """
    judged = truth != IGNORE
    unit, wanted = stretched(scores - scores.min())[judged], truth[judged] == 1
    ranked = np.concatenate([1 - unit, unit])[:, np.newaxis]
    positive = np.concatenate([~wanted, wanted])[:, np.newaxis]
    value = metrics.average_precision(ranked, positive)[0]
    return 0.0 if np.isnan(value) else float(value)
