"""Outlines fill back to their regions, holes and corners included."""

import numpy as np
import pytest

from wsss_jax.data.coco_regions import draw
from wsss_jax.ops import outlines


def test_a_pixel_is_a_square_and_straight_edges_have_no_corners_between():
    shape = outlines.outline(np.ones((1, 1), bool))
    np.testing.assert_array_equal(shape.outer, [(0, 0), (1, 0), (1, 1), (0, 1)])
    wide = outlines.outline(np.ones((2, 5), bool))
    np.testing.assert_array_equal(wide.outer, [(0, 0), (5, 0), (5, 2), (0, 2)])
    assert shape.holes == wide.holes == ()


def test_a_ring_has_one_hole_and_touching_pixels_are_one_line():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    (hole,) = outlines.outline(ring).holes
    assert {tuple(corner) for corner in hole} == {(1, 1), (2, 1), (2, 2), (1, 2)}
    touching = np.eye(2, dtype=bool)
    assert len(outlines.outline(touching).outer) == 8
    assert len(list(outlines.regions(touching))) == 1


@pytest.mark.parametrize("seed", range(5))
def test_an_outline_fills_back_to_its_region(seed):
    mask = np.random.default_rng(seed).random((23, 31)) < 0.55
    total = np.zeros_like(mask)
    for region, box in outlines.regions(mask):
        line = outlines.bridged(outlines.outline(region))
        filled = draw([line.ravel()], region.shape)
        np.testing.assert_array_equal(filled, region)
        total[box] |= filled
    np.testing.assert_array_equal(total, mask)


def test_an_empty_region_is_refused():
    with pytest.raises(ValueError, match="no outline"):
        outlines.outline(np.zeros((2, 2), bool))
