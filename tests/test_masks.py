"""From score maps to masks, against obvious versions of the same."""

import jax
import numpy as np
import pytest

from wsss_jax.ops import masks

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("grid, size", [((3, 4), (11, 17)), ((1, 1), (5, 3)), ((4, 4), (4, 4))])
def test_enlarging_is_the_bilinear_resize_of_jax(grid, size):
    scores = RNG.random((*grid, 2), np.float32)
    expected = jax.image.resize(scores, (*size, 2), "bilinear", antialias=False)
    np.testing.assert_allclose(masks.enlarge(scores, size), expected, atol=1e-6)


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
