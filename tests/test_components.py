"""Components by hand and against a flood fill; boxes of the CAM paper."""

import numpy as np
import pytest

from wsss_jax.ops import components
from wsss_jax.ops.components import Box


def slow_largest(mask: np.ndarray) -> np.ndarray:
    best, seen = np.zeros_like(mask), np.zeros_like(mask)
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        region, front = np.zeros_like(mask), [start]
        while front:
            y, x = front.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and mask[y, x] and not seen[y, x]:
                seen[y, x] = region[y, x] = True
                front += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        if region.sum() > best.sum():
            best = region
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_component_equals_a_flood_fill(seed):
    mask = np.random.default_rng(seed).random((12, 15)) < 0.3
    np.testing.assert_array_equal(components.largest_component(mask), slow_largest(mask))


def test_corners_connect_and_the_first_of_equals_wins():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(
        components.largest_component(mask),
        np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool),
    )


def test_the_box_of_the_cam_paper_by_hand():
    scores = np.array(
        [[0, 0.2, 0.1, 0], [0.2, 1, 0.8, 0], [0.1, 0.9, 0.6, 0.5], [0, 0, 0.3, 0]], np.float32
    )
    box = components.score_box(scores)
    assert box == Box(1, 1, 4, 4)
    assert components.box_iou(box, Box(1, 1, 3, 3)) == pytest.approx(4 / 9)
    assert components.score_box(scores * 7) == box
    assert components.score_box(scores, share=0.55) == Box(1, 1, 3, 3)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_map_without_a_score_has_an_empty_box(value):
    box = components.score_box(np.full((4, 5), value, np.float32))
    assert box == Box(0, 0, 0, 0)
    assert box.area == 0
    assert components.box_iou(box, box) == 0


def test_box_iou_is_symmetric_one_for_itself_and_zero_apart():
    a, b, c = Box(0, 0, 4, 4), Box(2, 1, 6, 4), Box(4, 4, 5, 5)
    assert components.box_iou(a, b) == components.box_iou(b, a) == pytest.approx(6 / 22)
    assert components.box_iou(a, a) == 1
    assert components.box_iou(a, c) == 0


def test_a_full_mask_is_one_component_with_the_whole_box():
    mask = np.ones((3, 5), bool)
    assert components.largest_component(mask).all()
    assert components.box_around(mask) == Box(0, 0, 3, 5)
