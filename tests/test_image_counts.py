"""Confusion matrices that keep their cells alone: sums, groups, and intervals of many images."""

import numpy as np
import pytest

from wsss_jax.ops import image_counts, intervals
from wsss_jax.ops.image_counts import cells_of, gathered


def matrices(images, seed=0):
    """Two thresholds of four classes, of which an image shows two."""
    random = np.random.default_rng(seed)
    whole = np.zeros((images, 2, 4, 4), np.int64)
    for one in whole:
        shown = random.choice(4, 2, replace=False)
        one[:, shown[:, None], shown] = random.integers(0, 90, (2, 2, 2))
    return whole


def kept(whole, threshold, name="i"):
    found = {f"{name}{n:05d}": cells_of(one) for n, one in enumerate(whole)}
    return gathered(found, 4, threshold)


@pytest.mark.parametrize("threshold", [0, 1])
def test_every_matrix_comes_back_and_so_does_the_sum(threshold):
    whole = matrices(30)
    found = kept(whole, threshold)
    np.testing.assert_array_equal(found.grouped(), whole[:, threshold])
    np.testing.assert_array_equal(found.total(), whole[:, threshold].sum(axis=0))
    np.testing.assert_array_equal(found.grouped(["i00007", "i00002"]), whole[[7, 2], threshold])


def test_groups_of_many_images_keep_the_sum_and_about_the_interval(monkeypatch):
    whole = matrices(1500)
    each = intervals.bootstrap_interval(whole[:, 0], resamples=300)
    monkeypatch.setattr(image_counts, "GROUPS", 200)
    found = kept(whole, 0)
    groups = found.grouped()
    assert groups.shape == (200, 4, 4)
    np.testing.assert_array_equal(groups.sum(axis=0), found.total())
    of_groups = intervals.bootstrap_interval(groups, resamples=300)
    assert of_groups.estimate == each.estimate
    width = float(each.high) - float(each.low)
    assert float(of_groups.high) - float(of_groups.low) == pytest.approx(width, rel=0.25)


def test_two_stores_are_paired_by_the_same_groups(monkeypatch):
    monkeypatch.setattr(image_counts, "GROUPS", 7)
    whole = matrices(40)
    all_of_them, some = kept(whole, 0), kept(whole[:30], 0)
    np.testing.assert_array_equal(all_of_them.grouped(some.ids), some.grouped())
