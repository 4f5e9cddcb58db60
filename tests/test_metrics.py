"""Confusion counts against loops, numbers by hand, intervals that hold what they promise."""

import math
from functools import partial

import numpy as np
import pytest

from wsss_jax.ops import intervals, metrics
from wsss_jax.types import IGNORE, Confusion

C = 4


def masks(seed: int, size: tuple[int, int] = (7, 9)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.choice([*range(C + 1), IGNORE], size).astype(np.uint8)
    predicted = np.where(random.random(size) < 0.6, truth, random.integers(0, C + 1, size))
    return truth, np.where(predicted == IGNORE, 0, predicted).astype(np.uint8)


def slow_confusion(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    counts = np.zeros((C + 1, C + 1), np.int64)
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        if t != IGNORE:
            counts[t, p] += 1
    return counts


def some_counts(images: int, seed: int = 0, right: float = 0.6) -> np.ndarray:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 20, (images, C + 1, C + 1))
    counts[:, range(C + 1), range(C + 1)] += (100 * right * random.random((images, C + 1))).astype(
        int
    )
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_confusion_equals_a_loop(seed):
    truth, predicted = masks(seed)
    found = metrics.confusion(truth, predicted, C)
    np.testing.assert_array_equal(found.counts, slow_confusion(truth, predicted))
    assert found.counts.dtype == np.int64
    assert found.counts.sum() == (truth != IGNORE).sum()
    assert isinstance(found + found, Confusion)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_runs_are_counted_like_pixels(block):
    pair = [np.kron(mask, np.ones((block, block), np.uint8))[:90, :70] for mask in masks(0)]
    found = metrics.confusion(pair[0], pair[1], C)
    np.testing.assert_array_equal(found.counts, slow_confusion(pair[0], pair[1]))


def test_rows_are_truth():
    counts = metrics.confusion(np.full((2, 2), 1, np.uint8), np.zeros((2, 2), np.uint8), 1).counts
    np.testing.assert_array_equal(counts, [[0, 0], [4, 0]])


def test_predictions_on_unknown_truth_may_be_anything():
    truth = np.array([[IGNORE, 1]], np.uint8)
    counts = metrics.confusion(truth, np.array([[IGNORE, 1]], np.uint8), 1).counts
    np.testing.assert_array_equal(counts, [[0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([[0, 1]], [[0, IGNORE]], "prediction holds 255"),
        ([[0, 1]], [[3, 7]], "prediction holds 3, 7, but there are 2 classes"),
        ([[0, 9]], [[0, 0]], "truth holds 9"),
        ([[0, 1]], [[0], [1]], "resize"),
    ],
)
def test_values_outside_the_classes_are_refused(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion(np.array(truth, np.uint8), np.array(predicted, np.uint8), 2)


def test_254_classes_fit():
    every = np.arange(255, dtype=np.uint8)[None]
    np.testing.assert_array_equal(metrics.confusion(every, every, 254).counts, np.eye(255))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_threshold_confusions_equal_one_confusion_per_threshold(kind):
    truth, _ = masks(3)
    random = np.random.default_rng(0)
    best = random.integers(0, C, truth.shape).astype(np.int32)
    # Scores on the thresholds themselves: "above" is strict.
    peak = (random.integers(0, 11, truth.shape) / 10).astype(kind)
    thresholds = np.arange(11) / 10
    found = metrics.threshold_confusions(truth, best, peak, thresholds, classes=C)
    assert found.shape == (11, C + 1, C + 1)
    for threshold, counts in zip(thresholds.tolist(), found, strict=True):
        predicted = np.where(peak > threshold, best + 1, 0).astype(np.uint8)
        np.testing.assert_array_equal(counts, slow_confusion(truth, predicted))
        assert counts.dtype == np.int64


def test_the_threshold_curve_starts_with_all_foreground_and_ends_with_all_background():
    truth, _ = masks(3)
    best, peak = np.zeros(truth.shape, np.int32), np.full(truth.shape, 0.5, np.float32)
    low, high = metrics.threshold_confusions(truth, best, peak, [0.0, 0.9], classes=C)
    assert low[:, 0].sum() == 0
    assert high[:, 1:].sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": [0.5, 0.1]}, "rising order"),
        ({"thresholds": []}, "one or more"),
        ({"best": np.full((2, 2), C)}, "classes 0 to 3"),
        ({"best": np.full((2, 2), -1)}, "classes 0 to 3"),
        ({"truth": np.full((2, 2), C + 1, np.uint8)}, "truth holds 5"),
        ({"peak": np.full((2, 2), np.nan)}, "NaN"),
        ({"peak": np.zeros((2, 3))}, "one size"),
    ],
)
def test_threshold_confusions_refuse_what_they_cannot_count(change, message):
    given = {
        "truth": np.zeros((2, 2), np.uint8),
        "best": np.zeros((2, 2), np.int64),
        "peak": np.zeros((2, 2)),
        "thresholds": [0.1],
    }
    with pytest.raises(ValueError, match=message):
        metrics.threshold_confusions(**(given | change), classes=C)


def test_numbers_by_hand():
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    np.testing.assert_allclose(metrics.iou(counts), [6 / 9, 3 / 6, np.nan])
    np.testing.assert_allclose(metrics.precision(counts), [6 / 7, 3 / 5, np.nan])
    np.testing.assert_allclose(metrics.recall(counts), [6 / 8, 3 / 4, np.nan])
    np.testing.assert_allclose(metrics.f1(counts), [12 / 15, 6 / 9, np.nan])
    np.testing.assert_allclose(metrics.mean_iou(counts), (6 / 9 + 3 / 6) / 2)
    np.testing.assert_allclose(metrics.mean_iou(counts, [1, 2]), 3 / 6)
    np.testing.assert_allclose(metrics.pixel_accuracy(counts), 9 / 12)
    np.testing.assert_allclose(metrics.pixel_accuracy(counts, [1]), 3 / 4)
    assert np.isnan(metrics.mean_iou(counts, [2]))


def test_a_class_that_is_predicted_without_truth_counts_as_zero():
    counts = np.array([[4, 0, 1], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(metrics.mean_iou(counts), (4 / 5 + 1 + 0) / 3)
    assert np.isnan(metrics.recall(counts)[2])


@pytest.mark.parametrize("scored", [[], [C + 1], [-1]])
def test_scored_indices_outside_are_refused(scored):
    with pytest.raises(ValueError, match="0 is background"):
        metrics.mean_iou(some_counts(1)[0], scored)


NUMBERS = {
    "iou": metrics.iou,
    "precision": metrics.precision,
    "recall": metrics.recall,
    "f1": metrics.f1,
    "mean_iou": metrics.mean_iou,
    "mean_iou_foreground": partial(metrics.mean_iou, scored=range(1, C + 1)),
    "pixel_accuracy": metrics.pixel_accuracy,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_leading_axes_are_independent(name):
    counts = some_counts(6).reshape(2, 3, C + 1, C + 1)
    counts[0, 0, 2, :] = counts[0, 0, :, 2] = 0
    together = NUMBERS[name](counts)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(together[i, j], NUMBERS[name](counts[i, j]))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_perfect_prediction_scores_one_and_class_order_does_not_matter(name):
    np.testing.assert_allclose(NUMBERS[name](np.diag([5, 4, 3, 2, 1])), 1)
    counts, order = some_counts(1)[0], np.array([0, 3, 1, 4, 2])
    mixed = NUMBERS[name](counts[np.ix_(order, order)])
    plain = NUMBERS[name](counts)
    np.testing.assert_allclose(mixed, plain[order] if plain.ndim else plain)


def slow_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over ranks of precision, at each distinct score, by the definition."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        found = (chosen & labels).sum() / labels.sum()
        total += (found - before) * (chosen & labels).sum() / chosen.sum()
        before = found
    return total


def test_average_precision_equals_a_loop_over_thresholds():
    random = np.random.default_rng(1)
    scores = random.integers(0, 8, (30, 5)) / 8
    labels = random.random((30, 5)) < 0.3
    labels[:, 4] = False
    found = metrics.average_precision(scores, labels)
    expected = [slow_average_precision(scores[:, c], labels[:, c]) for c in range(4)]
    np.testing.assert_allclose(found, [*expected, np.nan])
    np.testing.assert_allclose(metrics.mean_over(found), np.mean(expected))


def test_average_precision_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.6, 0.1]])
    labels = np.array([[1, 1], [0, 0], [1, 0], [0, 0]], bool)
    found = metrics.average_precision(scores, labels)
    np.testing.assert_allclose(found, [(1 + 2 / 3) / 2, 0.25])
    with pytest.raises(ValueError, match="NaN"):
        metrics.average_precision(scores * np.nan, labels)


def test_no_images_have_no_average_precision():
    empty = metrics.average_precision(np.zeros((0, 2)), np.zeros((0, 2), bool))
    assert np.isnan(empty).all()


def test_the_bootstrap_equals_a_loop_over_drawn_images():
    counts = some_counts(12)
    found = intervals.bootstrap_interval(counts, resamples=50, seed=7)
    weights = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=50)
    drawn = [
        metrics.mean_iou(sum(n * c for n, c in zip(row, counts, strict=True))) for row in weights
    ]
    assert found.estimate == pytest.approx(metrics.mean_iou(counts.sum(0)))
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]))


def test_the_block_size_does_not_change_the_draw(monkeypatch):
    counts = some_counts(12)
    whole = intervals.bootstrap_interval(counts, resamples=50)
    monkeypatch.setattr(intervals, "_BLOCK_BYTES", 8 * 25 * 7)
    assert intervals.bootstrap_interval(counts, resamples=50) == whole


def test_the_interval_holds_the_estimate_and_narrows_with_images():
    few, many = (intervals.bootstrap_interval(some_counts(n), resamples=300) for n in (20, 320))
    for found in (few, many):
        assert found.low < found.estimate < found.high
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_a_paired_difference_is_narrower_than_two_intervals_and_turns_its_sign():
    a = some_counts(60)
    b = a.copy()
    b[:, 1, 0] += 5
    found = intervals.bootstrap_difference(a, b, resamples=300)
    alone = intervals.bootstrap_interval(a, resamples=300)
    assert 0 < found.low < found.estimate < found.high
    assert found.high - found.low < alone.high - alone.low
    other = intervals.bootstrap_difference(b, a, resamples=300)
    np.testing.assert_allclose(other, [-found.estimate, -found.high, -found.low])
    assert intervals.bootstrap_difference(a, a, resamples=20) == (0, 0, 0)


def test_intervals_per_class_and_for_classes_without_pixels():
    counts = some_counts(20)
    counts[:, 3, :] = counts[:, :, 3] = 0
    found = intervals.bootstrap_interval(counts, metric=metrics.iou, resamples=50)
    assert found.low.shape == found.high.shape == (C + 1,)
    assert np.isnan([found.estimate[3], found.low[3], found.high[3]]).all()
    others = [0, 1, 2, 4]
    assert (found.low[others] <= found.estimate[others]).all()


def test_95_percent_intervals_hold_the_truth_about_as_often():
    random = np.random.default_rng(5)
    held = 0
    for seed in range(60):
        # Two classes, each image with its own accuracy; the accuracy of the population is 0.7.
        right = random.binomial(50, random.beta(7, 3, 80))
        counts = np.zeros((80, 2, 2), np.int64)
        counts[:, 1, 1], counts[:, 1, 0] = right, 50 - right
        found = intervals.bootstrap_interval(
            counts, metric=metrics.pixel_accuracy, resamples=200, seed=seed
        )
        held += found.low <= 0.7 <= found.high
    assert held >= 52


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: intervals.bootstrap_difference(a, a[:-1]), "same images"),
        (lambda a: intervals.bootstrap_interval(a[:0]), "at least one"),
        (lambda a: intervals.bootstrap_interval(a, level=95.0), "such as 0.95"),
    ],
)
def test_the_bootstrap_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(some_counts(3))


def test_counts_of_large_sets_stay_exact():
    counts = np.full((2, 2, 2), 3_000_000_001, np.int64)
    assert math.isclose(intervals.bootstrap_interval(counts, resamples=5).low, 1 / 3)
