"""Puzzle, erasing and schedules: values by hand, slow obvious versions, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.losses import regularisers
from wsss_jax.ops import images

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_the_puzzle_weight_is_2_at_a_quarter_and_4_from_half():
    def at(step):
        return regularisers.linear_schedule(step, 100, first=0.0, last=4.0, share=0.5)

    assert [float(at(step)) for step in (0, 25, 50, 75, 100)] == [0, 2, 4, 4, 4]
    assert float(regularisers.linear_schedule(0, 100, first=0.3, last=1.0, share=0.0)) == 1
    assert float(jax.jit(at)(jnp.int32(25))) == 2


def test_the_erasing_weight_of_oc_cse_rises_by_epoch():
    found = [
        float(regularisers.staged_schedule(step, 45, first=0.3, last=1.0, stages=15))
        for step in range(45)
    ]
    np.testing.assert_allclose(found, np.repeat(0.3 + 0.05 * np.arange(15), 3), rtol=1e-6)


@pytest.mark.parametrize("pieces", [2, 3])
def test_merging_tiles_gives_the_image_back(pieces):
    x = normal(2, 6, 12, 3)
    tiles = regularisers.tile(x, pieces)
    np.testing.assert_array_equal(tiles[1], x[0, : 6 // pieces, 12 // pieces : 24 // pieces])
    np.testing.assert_array_equal(regularisers.merge(tiles, pieces), x)


def test_a_layer_on_single_cells_commutes_with_the_puzzle():
    x, kernel = normal(2, 4, 6, 5), normal(5, 3, seed=1)
    np.testing.assert_allclose(
        regularisers.merge(regularisers.tile(x, 2) @ kernel, 2), x @ kernel, rtol=1e-5, atol=1e-6
    )


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="5 by 4 does not fall into 2 by 2"):
        regularisers.tile(normal(1, 5, 4, 1), 2)
    with pytest.raises(ValueError, match="3 tiles"):
        regularisers.merge(normal(3, 2, 2, 1), 2)


@pytest.mark.parametrize(
    ("variant", "expected"),
    # Two cells, differences 1 and 3 of class 0, 2 and 2 of class 1, 5 and 5 of class 2.
    [("every", (2 + 2 + 5) / 3), ("masking", (2 + 2) / 3), ("selection", (2 + 2) / 2)],
)
def test_reconstruction_counts_classes_as_its_variant_says(variant, expected):
    maps = jnp.zeros((1, 1, 3, 3))
    rebuilt = jnp.asarray([[[[1, 2, 5], [3, -2, -5], [9, 9, 9]]]], jnp.float32)
    cells = jnp.asarray([[[True, True, False]]])
    weights = regularisers.RECONSTRUCTIONS[variant](jnp.asarray([[True, True, False]]))
    found = regularisers.reconstruction(maps, rebuilt, cells, weights)
    assert float(found[0]) == pytest.approx(expected)
    squared = regularisers.reconstruction(maps, rebuilt, cells, weights, jnp.square)
    assert float(squared[0]) != pytest.approx(expected)


def test_pooling_means_the_cells_of_the_image_and_nothing_else():
    maps = normal(2, 2, 3, 4)
    cells = jnp.asarray([[[True, True, False], [True, False, False]], [[False] * 3] * 2])
    found = regularisers.pooled(maps, cells)
    np.testing.assert_allclose(
        found[0], (maps[0, 0, 0] + maps[0, 0, 1] + maps[0, 1, 0]) / 3, rtol=1e-5
    )
    np.testing.assert_array_equal(found[1], 0)


def test_one_present_class_is_chosen_each_as_often():
    labels = jnp.asarray([[True, False, True], [False, True, False], [False, False, False]])
    draw = jax.vmap(lambda key: regularisers.chosen_class(labels, key))
    drawn = np.asarray(draw(jax.random.split(KEY, 400)))
    assert (drawn.sum(axis=2) == [1, 1, 0]).all() and not (drawn & ~np.asarray(labels)).any()
    assert 0.4 < drawn[:, 0, 0].mean() < 0.6


def test_the_middle_of_cells_is_the_usual_bilinear_resize():
    maps = normal(2, 3, 5)
    found = regularisers.at_pixels(maps, (12, 20), stride=4, lean=0.5)
    wanted = images.resize(maps[..., None], (12, 20))[..., 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    last = regularisers.at_pixels(maps, (12, 20), stride=4, lean=1.0)
    np.testing.assert_allclose(last[:, 3::4, 3::4], maps, rtol=1e-5, atol=1e-5)


def test_soft_masks_share_the_maximum_of_the_real_rows():
    maps = jnp.asarray([[[-1.0, 2.0]], [[1.0, 4.0]], [[100.0, 0.0]]])
    found = regularisers.soft_mask(maps, jnp.asarray([True, True, False]))
    np.testing.assert_allclose(found[:2], [[[0, 0.5]], [[0.25, 1]]], atol=1e-4)
    assert float(found.max()) < 1


def test_hard_masks_are_of_each_image_alone():
    maps = jnp.asarray([[[-1.0, 2.0, 0.3]], [[0.001, 0.0, 0.0001]]])
    np.testing.assert_array_equal(regularisers.hard_mask(maps, 0.2), [[[0, 1, 0]], [[1, 0, 0]]])


def test_erasing_leaves_the_mean_colour():
    x = jnp.full((1, 1, 3, 3), 0.9)
    found = regularisers.erase(x, jnp.asarray([[[0.0, 0.5, 1.0]]]), (0.5, 0.4, 0.3))
    np.testing.assert_allclose(
        found[0, 0], [[0.9, 0.9, 0.9], [0.7, 0.65, 0.6], [0.5, 0.4, 0.3]], rtol=1e-6
    )


def test_gradients_reach_the_maps_through_the_erased_image():
    def loss(maps):
        pixels = regularisers.at_pixels(maps, (4, 4), stride=2, lean=1.0)
        mask = regularisers.soft_mask(pixels, jnp.ones(1, bool))
        return jnp.square(regularisers.erase(jnp.ones((1, 4, 4, 3)), mask, (0.5,) * 3)).sum()

    gradient = jax.grad(loss)(normal(1, 2, 2) + 1)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
