"""Bootstrap intervals over images, from one confusion matrix per image.

A resample draws as many images as there are, with replacement; that is a row of multinomial
weights, and all resampled matrices are one matrix product. The interval says what another draw of
images might have given, not what another training run might.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from wsss_jax.ops.metrics import mean_iou

Value = float | np.ndarray | np.generic

Metric = Callable[[np.ndarray], Value]
"""Counts (*b, n, n) to numbers (*b) or (*b, m); ``mean_iou``, ``iou``, or a partial of one."""

RESAMPLES = 2000
"""Enough for the ends of a 95 % interval to be steady to about a tenth of its width."""

_BLOCK_BYTES = 1 << 26


class Interval(NamedTuple):
    """A number with the ends of its percentile interval; arrays where the metric is per class."""

    estimate: Value
    low: Value
    high: Value


def bootstrap_interval(
    counts: Integer[np.ndarray, "images n n"],
    *,
    metric: Metric = mean_iou,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Metric of the summed counts, with its percentile interval over resampled images.

    Resamples in which the metric is NaN are left out of the interval.
    """
    drawn = _resampled(counts, metric, resamples, seed)
    return _interval(metric(counts.sum(axis=0)), drawn, level)


def bootstrap_difference(
    counts_a: Integer[np.ndarray, "images n n"],
    counts_b: Integer[np.ndarray, "_ _ _"],
    *,
    metric: Metric = mean_iou,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Metric of a less metric of b, paired: both are judged on the same resampled images.

    Image i of ``counts_a`` and of ``counts_b`` must be the same photograph. An interval that holds
    0 means that these images cannot tell the two apart.
    """
    if counts_a.shape != counts_b.shape:
        raise ValueError(
            f"counts are {counts_a.shape} and {counts_b.shape}; a paired comparison needs the "
            "same images and classes in the same order"
        )

    def difference(pair: np.ndarray) -> Value:
        one, other = metric(pair[..., 0, :, :]), metric(pair[..., 1, :, :])
        return np.asarray(one) - np.asarray(other)

    pairs = np.stack([counts_a, counts_b], axis=1)
    drawn = _resampled(pairs, difference, resamples, seed)
    return _interval(difference(pairs.sum(axis=0)), drawn, level)


def _resampled(
    counts: Integer[np.ndarray, "images *rest"], metric: Metric, resamples: int, seed: int
) -> Float[np.ndarray, "resamples *values"]:
    images = len(counts)
    if not images or resamples < 1:
        raise ValueError(f"{images} images and {resamples} resamples, wanted at least one of each")
    # Counts are whole numbers below 2 ** 53, so doubles are exact and the product may use BLAS.
    flat = counts.reshape(images, -1).astype(np.float64)
    block = max(1, _BLOCK_BYTES // (8 * max(images, flat.shape[1])))
    random = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    parts = []
    for start in range(0, resamples, block):
        weights = random.multinomial(images, share, size=min(block, resamples - start))
        parts.append(metric((weights.astype(np.float64) @ flat).reshape(-1, *counts.shape[1:])))
    return np.concatenate(parts)


def _interval(estimate: Value, drawn: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, wanted a share between 0 and 1, such as 0.95")
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    found = [_quantiles(values, ends) for values in drawn.reshape(len(drawn), -1).T]
    low, high = np.stack(found, axis=-1).reshape(2, *drawn.shape[1:])
    if drawn.ndim == 1:
        return Interval(float(estimate), float(low), float(high))
    return Interval(np.asarray(estimate), low, high)


def _quantiles(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    defined = values[~np.isnan(values)]
    return np.quantile(defined, ends) if defined.size else np.full(ends.shape, np.nan)
