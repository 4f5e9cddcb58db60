from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_scorers import conv_scorer, photos

from wsss_jax.explain import class_maps, multiscale, normalise
from wsss_jax.ops.resize import grid_size


def masked_scorer(inside):
    """The random classifier with a strided grid, bound to the real pixels of each image."""
    scorer = conv_scorer()
    grid = inside[:, ::2, ::2, None]

    def features(images):
        return jnp.where(grid, scorer.features(images), 0)

    return scorer._replace(features=features)


def scale_maps(images, inside, photographs, canvas, **settings):
    def cam(images, inside, labels):
        return class_maps.cam(masked_scorer(inside), images, labels)

    explain = partial(multiscale.explain_scale, cam, canvas=canvas, **settings)
    labels = jnp.ones((len(images), 3), bool)
    return jax.jit(explain)(images, inside, labels, photographs=jnp.array(photographs))


def test_one_scale_without_mirroring_is_the_rectified_method():
    images, inside = photos(), jnp.ones((2, 8, 12), bool)
    maps = scale_maps(images, inside, [(16, 24)] * 2, (4, 6), flip=False)
    plain = class_maps.cam(masked_scorer(inside), images, jnp.ones((2, 3), bool))
    np.testing.assert_allclose(maps, jax.nn.relu(plain), rtol=1e-5, atol=1e-6)


def test_mirroring_the_image_mirrors_the_maps():
    images, inside = photos(), jnp.ones((2, 8, 12), bool)
    maps = scale_maps(images, inside, [(16, 24)] * 2, (4, 6))
    mirrored = scale_maps(images[:, :, ::-1], inside, [(16, 24)] * 2, (4, 6))
    np.testing.assert_allclose(mirrored, maps[:, :, ::-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("lean", [0.5, 0.0, 1.0])
def test_every_grid_cell_reads_where_the_network_looked(scale, mirrored, lean):
    """A map whose cells hold the column they look at gives the grid's own columns back."""
    stride, size = 8, (32 * scale, 64 * scale)
    looks_at = (stride - 1) * lean
    columns = (jnp.arange(8.0 * scale) * stride + looks_at + 0.5) / scale
    columns = 64 - columns if mirrored else columns
    maps = jnp.broadcast_to(columns[None, None, :, None], (1, 4 * scale, 8 * scale, 1))
    place = multiscale.Placement(jnp.array([size]), jnp.array([(32, 64)]), float(stride), lean)
    read = multiscale.on_grid(maps, place, (8, 16), mirrored=mirrored)[0, 0, :, 0]
    expected = jnp.arange(16.0) * 4 + 2
    # Near the borders there is no cell on one side, and the last one is repeated.
    np.testing.assert_allclose(read[4:12], expected[4:12], rtol=1e-5)


def test_padding_changes_nothing():
    small = photos(1, (6, 10))
    padded = jnp.zeros((1, 8, 12, 3)).at[:, :6, :10].set(small)
    inside = jnp.zeros((1, 8, 12), bool).at[:, :6, :10].set(True)
    tight = scale_maps(small, jnp.ones((1, 6, 10), bool), [(12, 20)], (3, 5))
    roomy = scale_maps(padded, inside, [(12, 20)], (4, 6))
    np.testing.assert_allclose(roomy[:, :3, :5], tight, rtol=1e-5, atol=1e-6)
    assert not roomy[:, 3:].any() and not roomy[:, :, 5:].any()


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_constant_map_stays_constant(value):
    def constant(images, inside, labels):
        return jnp.full((*images[:, ::2, ::2].shape[:3], labels.shape[1]), value)

    inside = jnp.zeros((1, 8, 12), bool).at[:, :7, :9].set(True)
    maps = multiscale.explain_scale(
        constant, jnp.ones((1, 8, 12, 3)), inside, jnp.ones((1, 2), bool),
        photographs=jnp.array([[12, 16]]), canvas=(4, 5),
    )  # fmt: skip
    np.testing.assert_allclose(maps[0, :3, :4], 2 * value, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "wanted"), [((1, 4), (1, 1)), ((5, 8), (2, 2)), ((9, 500), (3, 125))]
)
def test_the_grid_has_one_cell_per_four_pixels(size, wanted):
    assert grid_size(size) == wanted


def test_sizes_follow_the_mask_and_the_stride():
    inside = jnp.zeros((2, 32, 48), bool).at[0, :17, :33].set(True)
    sizes = multiscale.sizes_of(inside)
    np.testing.assert_array_equal(sizes, [[17, 33], [1, 1]])
    np.testing.assert_array_equal(multiscale.cells_of(sizes, 16.0), [[2, 3], [1, 1]])


def test_by_peak_divides_each_class_by_its_maximum():
    maps = np.array([[[2, -1], [4, -3]]], np.float32)[None]
    scores, peaks = normalise.by_peak(maps)
    np.testing.assert_allclose(peaks, [[4, 0]])
    np.testing.assert_allclose(scores[0, 0, :, 0], [0.5, 1], atol=1e-5)
    assert not scores[..., 1].any()


def test_summing_and_dividing_on_the_host_give_what_jax_gives():
    parts = [jax.random.normal(jax.random.key(n), (2, 5, 7, 3)) for n in range(3)]
    scores, peaks = normalise.by_peak(multiscale.sum_of(parts))
    positive = jax.nn.relu(jnp.stack(parts).sum(axis=0))
    peak = positive.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(scores, positive / (peak + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(peaks, peak[:, 0, 0])
    assert scores.dtype == peaks.dtype == np.float32


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
