"""Reducing by areas: known values, the slow obvious version, and what must be kept."""

import numpy as np
import pytest

from wsss_jax.ops.shrink import shrink


def slowly(scores, size):
    """Every pixel cut into 60 by 60 parts of one owner each."""
    fine = np.kron(scores.astype(np.float64), np.ones((60, 60)))
    rows = np.arange(fine.shape[0]) * size[0] // fine.shape[0]
    columns = np.arange(fine.shape[1]) * size[1] // fine.shape[1]
    sums, counts = np.zeros(size), np.zeros(size)
    np.add.at(sums, (rows[:, None], columns[None]), fine)
    np.add.at(counts, (rows[:, None], columns[None]), 1)
    return sums / counts


def test_whole_cells_are_means_of_blocks():
    scores = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(shrink(scores, (1, 2)), [[4, 7]])
    np.testing.assert_array_equal(shrink(scores, (2, 6)), scores)


@pytest.mark.parametrize("shape, size", [((5, 6), (2, 4)), ((7, 4), (3, 3)), ((6, 5), (5, 1))])
def test_parts_of_pixels_count_as_parts(shape, size):
    scores = np.random.default_rng(0).random(shape, np.float32)
    small = shrink(scores, size)
    np.testing.assert_allclose(small, slowly(scores, size), atol=1e-6)
    np.testing.assert_allclose(small.mean(), scores.mean(), atol=1e-6)
    np.testing.assert_allclose(shrink(scores.T, size[::-1]), small.T, atol=1e-6)
    assert small.dtype == np.float32


def test_a_constant_stays_and_a_mirror_image_stays_one():
    assert shrink(np.full((375, 500), 0.3, np.float32), (94, 125)) == pytest.approx(0.3, abs=1e-6)
    scores = np.random.default_rng(1).random((37, 50), np.float32)
    mirrored = shrink(np.ascontiguousarray(scores[:, ::-1]), (10, 13))
    np.testing.assert_allclose(mirrored, shrink(scores, (10, 13))[:, ::-1], atol=1e-6)
