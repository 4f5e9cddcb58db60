"""How well image labels are predicted: confusion of classes, F1, ROC and the area under it.

Scores and labels are (images, classes), every class a question of its own. A class of which there
is no positive, or no negative, has no ROC (NaN); means leave it out (``metrics.mean_over``).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, Num
from scipy import stats

Scores = Float[np.ndarray, "images c"]
Labels = Bool[np.ndarray, "images c"]


class Roc(NamedTuple):
    """A ROC curve: rates in [0, 1] of the scores above each threshold, from (0, 0) to (1, 1)."""

    thresholds: np.ndarray
    false_positive: np.ndarray
    true_positive: np.ndarray


def class_counts(
    truth: Integer[np.ndarray, " n"], predicted: Integer[np.ndarray, " n"], classes: int
) -> Integer[np.ndarray, "c c"]:
    """How often class i was called class j, for images of one class each; rows are truth."""
    for name, values in (("truth", truth), ("prediction", predicted)):
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(
                f"the {name} holds {values.min()} to {values.max()}, wanted classes 0 to "
                f"{classes - 1}"
            )
    joint = truth.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(joint, minlength=classes**2).reshape(classes, classes)


def row_shares(counts: Num[np.ndarray, "c c"]) -> Float[np.ndarray, "c c"]:
    """Each row divided by its sum, as confusion matrices are printed; NaN for an absent class."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def label_counts(predicted: Labels, labels: Labels) -> Integer[np.ndarray, "c 2 2"]:
    """One confusion matrix per class, rows truth (absent, present); ``metrics.f1(...)[:, 1]``."""
    both = (predicted & labels).sum(axis=0)
    wrong = (predicted & ~labels).sum(axis=0)
    missed = (~predicted & labels).sum(axis=0)
    neither = (~predicted & ~labels).sum(axis=0)
    return np.stack([neither, wrong, missed, both], axis=-1).reshape(-1, 2, 2)


def auc(scores: Scores, labels: Labels) -> Float[np.ndarray, " c"]:
    """Area under each class's ROC: how often a positive scores above a negative, ties half.

    The rank sum of Mann & Whitney 1947, equal to the trapezoids under ``roc``.
    """
    _check(scores)
    ranks = stats.rankdata(scores, axis=0) if len(scores) else np.zeros(scores.shape)
    positive = labels.sum(axis=0)
    negative = len(labels) - positive
    above = np.where(labels, ranks, 0).sum(axis=0) - positive * (positive + 1) / 2
    pairs = positive * negative
    return np.divide(above, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def roc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> Roc:
    """The ROC of one class: called positive is what scores strictly above a threshold.

    Thresholds are the scores themselves, falling, after one that nothing exceeds; the last lies
    below all. ValueError where there is no positive or no negative.
    """
    _check(scores)
    if not 0 < labels.sum() < len(labels):
        raise ValueError(f"{labels.sum()} of {len(labels)} are positive, wanted some of each kind")
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], labels[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    true, false = found.cumsum()[last], (~found).cumsum()[last]
    thresholds = np.append(ranked[last], -np.inf)
    return Roc(
        thresholds,
        np.append(0, false) / (~labels).sum(),
        np.append(0, true) / labels.sum(),
    )


def nearest_threshold(curve: Roc) -> float:
    """The threshold whose point is nearest to the corner (0, 1); of equals the highest."""
    distance = np.hypot(curve.false_positive, 1 - curve.true_positive)
    return float(curve.thresholds[distance.argmin()])


def _check(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN; there is no order among them")
