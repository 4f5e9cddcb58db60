from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import conv_scorer, photos

from wsss_jax.explain import cam, multiscale, normalise
from wsss_jax.types import Scorer


def masked_scorer(inside):
    """The random classifier with a strided grid, bound to the real pixels of each image."""
    scorer = conv_scorer()
    grid = inside[:, ::2, ::2, None]

    def features(images):
        return jnp.where(grid, scorer.features(images), 0)

    return scorer._replace(features=features)


def grids(*sizes):
    return jnp.array([multiscale.grid_size(size) for size in sizes], jnp.int32)


def scale_maps(images, inside, to_sizes, canvas, **settings):
    explain = partial(multiscale.explain_scale, cam.cam, masked_scorer, canvas=canvas, **settings)
    labels = jnp.ones((len(images), 3), bool)
    return jax.jit(explain)(images, inside, labels, to_sizes=to_sizes)


def test_one_scale_without_mirroring_is_the_rectified_method():
    images, inside = photos(), jnp.ones((2, 8, 12), bool)
    canvas = (4, 6)
    maps = scale_maps(images, inside, jnp.array([canvas, canvas]), canvas, views=multiscale.AS_IS)
    plain = cam.cam(masked_scorer(inside), images, jnp.ones((2, 3), bool))
    np.testing.assert_allclose(maps, jax.nn.relu(plain), rtol=1e-5, atol=1e-6)


def test_mirroring_the_image_mirrors_the_maps():
    images, inside = photos(), jnp.ones((2, 8, 12), bool)
    to_sizes, canvas = grids((16, 24), (16, 24)), (4, 6)
    maps = scale_maps(images, inside, to_sizes, canvas)
    mirrored = scale_maps(images[:, :, ::-1], inside, to_sizes, canvas)
    np.testing.assert_allclose(mirrored, maps[:, :, ::-1], rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing():
    small = photos(1, (6, 10))
    padded = jnp.zeros((1, 8, 12, 3)).at[:, :6, :10].set(small)
    inside = jnp.zeros((1, 8, 12), bool).at[:, :6, :10].set(True)
    to_sizes = grids((12, 20))
    tight = scale_maps(small, jnp.ones((1, 6, 10), bool), to_sizes, (3, 5))
    roomy = scale_maps(padded, inside, to_sizes, (4, 6))
    np.testing.assert_allclose(roomy[:, :3, :5], tight, rtol=1e-5, atol=1e-6)
    assert not roomy[:, 3:].any() and not roomy[:, :, 5:].any()


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_constant_map_stays_constant(value):
    def of(inside):
        return Scorer(lambda x: x[:, ::2, ::2], lambda a: a[:, 0, 0])

    def constant(scorer, images, labels):
        shape = (*scorer.features(images).shape[:3], labels.shape[1])
        return jnp.full(shape, value)

    inside = jnp.zeros((1, 8, 12), bool).at[:, :7, :9].set(True)
    maps = multiscale.explain_scale(
        constant, of, jnp.ones((1, 8, 12, 3)), inside, jnp.ones((1, 2), bool),
        to_sizes=jnp.array([[3, 4]]), canvas=(4, 5),
    )  # fmt: skip
    np.testing.assert_allclose(maps[0, :3, :4], 2 * value, rtol=1e-6)


def test_accumulate_adds_the_rectified_map():
    total = jnp.ones((1, 2, 2, 1))
    maps = jnp.array([[2.0, -4], [0, 6]])[None, ..., None]
    sizes = jnp.array([[2, 2]])
    added = multiscale.accumulate(total, maps, sizes, sizes)
    np.testing.assert_allclose(added[0, ..., 0], [[3, 1], [1, 7]])


@pytest.mark.parametrize(
    ("size", "wanted"), [((1, 4), (1, 1)), ((5, 8), (2, 2)), ((9, 500), (3, 125))]
)
def test_the_grid_has_one_cell_per_four_pixels(size, wanted):
    assert multiscale.grid_size(size) == wanted


def test_sizes_follow_the_mask_and_the_stride():
    inside = jnp.zeros((2, 32, 48), bool).at[0, :17, :33].set(True)
    sizes = multiscale.sizes_of(inside)
    np.testing.assert_array_equal(sizes, [[17, 33], [1, 1]])
    on = multiscale.sizes_on(jnp.zeros((2, 2, 3, 1)), sizes, jnp.zeros((2, 32, 48, 3)))
    np.testing.assert_array_equal(on, [[2, 3], [1, 1]])


def test_by_peak_divides_each_class_by_its_maximum():
    maps = jnp.array([[[2.0, -1], [4, -3]]])[None]
    scores, peaks = normalise.by_peak(maps)
    np.testing.assert_allclose(peaks, [[4, 0]])
    np.testing.assert_allclose(scores[0, 0, :, 0], [0.5, 1], atol=1e-5)
    assert not scores[..., 1].any()


def test_fused_layers_take_the_largest_value():
    shallow = jnp.array([[1.0, -1], [4, 2]])[None, ..., None]
    deep = jnp.full((1, 1, 1, 1), 3.0)
    fused = normalise.fuse_layers([shallow, deep / 2], shallow=1)
    np.testing.assert_allclose(fused, 1)
    alone = normalise.fuse_layers([shallow], shallow=1)
    np.testing.assert_allclose(alone[0, ..., 0], np.tanh([[0.5, 0], [2, 1]]), rtol=1e-6)


def test_min_max_of_a_map_that_is_nowhere_positive_is_zero():
    for maps in (jnp.full((1, 2, 2, 1), -3.0), jnp.full((1, 2, 2, 1), 3.0)):
        assert not normalise.min_max(maps).any()
