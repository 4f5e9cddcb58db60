"""Reducing by areas: known values, the slow obvious version, and what must be kept."""

import numpy as np
import pytest

from wsss_jax.ops.resize import resize


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
    np.testing.assert_array_equal(resize(scores, (1, 2)), [[4, 7]])
    np.testing.assert_array_equal(resize(scores, (2, 6)), scores)


@pytest.mark.parametrize("shape, size", [((5, 6), (2, 4)), ((7, 4), (3, 3)), ((6, 5), (5, 1))])
def test_parts_of_pixels_count_as_parts(shape, size):
    scores = np.random.default_rng(0).random(shape, np.float32)
    small = resize(scores, size)
    np.testing.assert_allclose(small, slowly(scores, size), atol=1e-6)
    np.testing.assert_allclose(small.mean(), scores.mean(), atol=1e-6)
    np.testing.assert_allclose(resize(scores.T, size[::-1]), small.T, atol=1e-6)
    assert small.dtype == np.float32


def test_a_constant_stays_and_a_mirror_image_stays_one():
    assert resize(np.full((375, 500), 0.3, np.float32), (94, 125)) == pytest.approx(0.3, abs=1e-6)
    scores = np.random.default_rng(1).random((37, 50), np.float32)
    mirrored = resize(np.ascontiguousarray(scores[:, ::-1]), (10, 13))
    np.testing.assert_allclose(mirrored, resize(scores, (10, 13))[:, ::-1], atol=1e-6)


def test_thin_stripes_keep_their_mean():
    stripes = np.zeros((64, 64, 1), np.float32)
    stripes[:, ::8] = 1
    small = resize(stripes, (8, 8))
    np.testing.assert_allclose(small, 0.125, atol=1e-6)


def test_longer_axes_are_bilinear_and_each_axis_goes_by_itself():
    row = np.array([[0.0, 1.0]], np.float32)
    np.testing.assert_allclose(resize(row, (1, 4)), [[0, 0.25, 0.75, 1]], atol=1e-6)
    maps = np.random.default_rng(2).random((6, 4, 3), np.float32)
    both = resize(maps, (3, 8))
    apart = [resize(resize(maps[..., k], (3, 4)), (3, 8)) for k in range(3)]
    np.testing.assert_allclose(both, np.stack(apart, -1), atol=1e-6)
