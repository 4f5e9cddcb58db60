"""From score maps to masks, against obvious versions of the same."""

import itertools

import jax
import numpy as np
import pytest

from wsss_jax.ops import masks
from wsss_jax.ops.resize import resize

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("grid, size", [((3, 4), (11, 17)), ((1, 1), (5, 3)), ((4, 4), (4, 4))])
def test_enlarging_is_the_bilinear_resize_of_jax(grid, size):
    scores = RNG.random((*grid, 2), np.float32)
    expected = jax.image.resize(scores, (*size, 2), "bilinear", antialias=False)
    np.testing.assert_allclose(resize(scores, size), expected, atol=1e-6)


def test_the_best_class_wins_above_the_threshold():
    scores = np.array([[[0.2, 0.7], [0.9, 0.1]], [[0.25, 0.3], [0.3, 0.2]]], np.float32)
    winner, score = masks.winners(scores, np.array([4, 9], np.int32))
    np.testing.assert_array_equal(masks.decide(winner, score, 0.3), [[10, 5], [0, 0]])


def test_a_constant_background_makes_the_argmax_a_threshold():
    scores = RNG.random((5, 6, 3), np.float32)
    rows = masks.with_constant(scores, 0.6)
    np.testing.assert_allclose(rows.sum(axis=-1), 1, rtol=1e-5)
    winner, score = masks.winners(scores, np.arange(3, dtype=np.int32))
    np.testing.assert_array_equal(rows.argmax(axis=-1), masks.decide(winner, score, 0.6))


def test_shares_of_nothing_are_equal():
    np.testing.assert_allclose(masks.shares(np.zeros((1, 1, 4), np.float32)), 0.25)


def test_a_half_is_where_the_winner_beats_background():
    scores = RNG.dirichlet(np.ones(4), (6, 6)).astype(np.float32)[..., :3]
    _, score = masks.winners(scores, np.arange(3, dtype=np.int32))
    rest = 1 - scores.sum(axis=-1)
    np.testing.assert_array_equal(masks.against_rest(scores, score) > 0.5, score > rest)


def test_otsu_by_hand():
    # Two heaps: any border between them parts them alike, so the middle one is taken.
    counts = np.zeros(10)
    counts[1], counts[6] = 3, 1
    assert masks.otsu(counts) == pytest.approx((0.2 + 0.6) / 2)
    # 4 at 0.125, 2 at 0.625, 2 at 0.875: the gap after the first heap is the larger.
    assert masks.otsu(np.array([4.0, 0, 2, 2])) == pytest.approx((0.25 + 0.5) / 2)


def test_otsu_parts_where_a_slow_search_finds_the_largest_variance_between_the_parts():
    values = (np.arange(64) + 0.5) / 64
    counts = np.exp(-((values - 0.2) ** 2) / 0.01) + 0.4 * np.exp(-((values - 0.7) ** 2) / 0.02)

    def between(border):
        parts = [
            (counts[s].sum(), np.average(values[s], weights=counts[s]))
            for s in (slice(None, border), slice(border, None))
        ]
        (n, a), (m, b) = parts
        return n * m * (a - b) ** 2

    best = max(range(1, 64), key=between)
    assert masks.otsu(counts) == pytest.approx(best / 64)
    with pytest.raises(ValueError, match="all scores are equal"):
        masks.otsu(np.array([0.0, 5, 0]))


def test_otsu_of_three_parts_by_hand_and_by_a_slow_search():
    # Three heaps: the middle of the borders between the first two, and between the last two.
    counts = np.zeros(10)
    counts[1], counts[4], counts[8] = 3, 2, 1
    assert masks.otsu_two(counts) == pytest.approx(((0.2 + 0.4) / 2, (0.5 + 0.8) / 2))
    values = (np.arange(32) + 0.5) / 32
    bumps = ((0.15, 1.0), (0.5, 0.3), (0.85, 0.5))
    smooth = sum(size * np.exp(-((values - at) ** 2) / 0.01) for at, size in bumps)

    def within(borders):
        parts = np.split(np.arange(32), borders)
        means = [np.average(values[part], weights=smooth[part]) for part in parts]
        return sum(
            (smooth[p] * (values[p] - m) ** 2).sum() for p, m in zip(parts, means, strict=True)
        )

    best = min(itertools.combinations(range(1, 32), 2), key=within)
    assert masks.otsu_two(smooth) == pytest.approx(tuple(border / 32 for border in best))
    with pytest.raises(ValueError, match="three parts"):
        masks.otsu_two(np.array([1.0, 0, 5, 0]))
