"""From score maps to masks on the host: the background, and the decision.

Background is never among stored scores, because the papers make it differently: a constant
(IRN, Puzzle-CAM), a power (PSA), the rest of a probability, or saliency. Each is a function here.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8


def winners(
    scores: Float[np.ndarray, "H W k"], classes: Int[np.ndarray, " k"]
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
    """Per pixel the class with the largest score, and that score."""
    # Class by class: NumPy's reductions over a last axis of few are several times slower.
    winner, score = np.full(scores.shape[:2], classes[0], np.int32), scores[..., 0].copy()
    for place in range(1, scores.shape[-1]):
        higher = scores[..., place] > score
        np.copyto(winner, np.int32(classes[place]), where=higher)
        np.copyto(score, scores[..., place], where=higher)
    return winner, score


def against_rest(
    scores: Float[np.ndarray, "H W k"], score: Float[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W"]:
    """Where scores are probabilities: the winner's share of winner and background together.

    Background is what all classes leave of 1, so the share exceeds a half exactly where the winner
    is more probable than background.
    """
    rest = np.maximum(1 - scores.sum(axis=-1), 0)
    return score / np.maximum(score + rest, np.finfo(np.float32).tiny)


def decide(
    winner: Int[np.ndarray, "H W"], score: Float[np.ndarray, "H W"], threshold: float
) -> UInt8[np.ndarray, "H W"]:
    """Mask values: class + 1 where the score exceeds the threshold, else background."""
    return np.where(score > threshold, winner + 1, 0).astype(np.uint8)


def otsu(counts: Float[np.ndarray, " n"]) -> float:
    """The threshold in (0, 1) that parts a histogram of scores best, without any truth.

    counts: of n even bins over [0, 1]. Between the two parts the variance is largest; where
    several borders are equally good, the middle of them. Raises ValueError unless two bins are
    filled. Source: Otsu 1979, "A threshold selection method from gray-level histograms".
    """
    if (counts > 0).sum() < 2:
        raise ValueError("all scores are equal, so no threshold can part them")
    weight = counts / counts.sum()
    value = (np.arange(len(counts)) + 0.5) / len(counts)
    below, mean = np.cumsum(weight)[:-1], np.cumsum(weight * value)[:-1]
    parted = (below > 0) & (below < 1 - 1e-12)
    gap = (weight * value).sum() * below - mean
    between = np.where(parted, gap**2 / np.where(parted, below * (1 - below), 1), -1.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float((best[0] + best[-1]) / 2 + 1) / len(counts)


def otsu_two(counts: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The two thresholds in (0, 1), lower first, that part a histogram of scores into three best.

    counts: of n even bins over [0, 1]. Of equally good pairs the middle is taken. Raises ValueError
    unless three bins are filled. Source: Otsu 1979, section III.C, multithresholding.
    """
    if (counts > 0).sum() < 3:
        raise ValueError("scores have fewer than three values: there are no three parts")
    weight = counts / counts.sum()
    value = (np.arange(len(counts)) + 0.5) / len(counts)
    below, mean = np.cumsum(weight)[:-1], np.cumsum(weight * value)[:-1]
    low, high = np.triu_indices(len(below), k=1)
    total = (weight * value).sum()
    shares = np.stack([below[low], below[high] - below[low], 1 - below[high]])
    sums = np.stack([mean[low], mean[high] - mean[low], total - mean[high]])
    filled = (shares > 1e-12).all(axis=0)
    between = np.where(filled, (sums**2 / np.where(filled, shares, 1)).sum(axis=0), -1.0)
    best = between >= between.max() * (1 - 1e-9)
    first, second = (float(b[best].min() + b[best].max()) / 2 + 1 for b in (low, high))
    return first / len(counts), second / len(counts)


def with_constant(
    scores: Float[np.ndarray, "H W k"], background: float
) -> Float[np.ndarray, "H W k1"]:
    """Probabilities over background and classes: scores beside a constant, normalised to sum 1.

    Their argmax is the thresholding of the scores at that constant. Scores must be >= 0.
    """
    rows = np.concatenate([np.full_like(scores[..., :1], background), scores], axis=-1)
    return shares(rows)


def shares(scores: Float[np.ndarray, "H W k"]) -> Float[np.ndarray, "H W k"]:
    """Scores >= 0 divided by their sum at each pixel, equal where all are zero."""
    tiny = np.float32(1e-6)
    return (scores + tiny) / (scores + tiny).sum(axis=-1, keepdims=True)
