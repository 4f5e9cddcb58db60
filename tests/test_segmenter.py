"""The segmentation network: padding changes nothing, and maps are read where their cells lie."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import filled

from wsss_jax.backbones.norms import GroupNorm
from wsss_jax.backbones.tiny import Tiny
from wsss_jax.models.segmenter import Segmenter

SIZE, CANVAS = (30, 41), (32, 48)


def make(output_stride=16):
    backbone = Tiny(rngs=nnx.Rngs(0), output_stride=output_stride)
    return Segmenter(backbone, 5, rngs=nnx.Rngs(1))


@cache
def built():
    graph, params, rest = nnx.split(filled(make), nnx.Param, ...)
    assert not jax.tree.leaves(rest)

    @jax.jit
    def run(params, images, inside, key):
        return nnx.merge(graph, params, rest, copy=True)(images, inside, key)

    return graph, params, rest, run


def canvas(fill):
    image = np.random.default_rng(0).random((1, *SIZE, 3), np.float32)
    images = np.full((1, *CANVAS, 3), fill, np.float32)
    inside = np.zeros((1, *CANVAS), bool)
    images[:, :30, :41], inside[:, :30, :41] = image, True
    return jnp.asarray(image), jnp.asarray(images), jnp.asarray(inside)


def test_padding_changes_nothing():
    _, params, _, run = built()
    image, images, inside = canvas(np.nan)
    alone, padded = run(params, image, None, None), run(params, images, inside, None)
    assert alone.shape == (1, *SIZE, 5) and alone.dtype == jnp.float32
    np.testing.assert_allclose(padded[:, :30, :41], alone, atol=1e-4 * float(jnp.abs(alone).max()))
    assert not np.asarray(padded)[~np.asarray(inside)].any()


def test_gradients_are_finite_with_dropout_and_reach_every_parameter():
    graph, params, rest, _ = built()
    _, images, inside = canvas(0.0)

    @jax.jit
    @jax.grad
    def gradient(params):
        module = nnx.merge(graph, params, rest, copy=True)
        return jnp.square(module(images, inside, jax.random.key(0))).mean()

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert bool(jnp.isfinite(leaf).all()) and bool((leaf != 0).any()), path


def test_maps_are_read_where_their_cells_lie():
    """A map that holds the pixel under each cell gives every pixel its own place."""
    module = nnx.eval_shape(make)
    near, inside = jnp.ones((1, 8, 9), bool), jnp.ones((1, 32, 36), bool)
    places = 4.0 * jnp.arange(9.0) + 3 * module.backbone.lean
    x = jnp.broadcast_to(places[None, None, :, None], (1, 8, 9, 1))
    read = np.asarray(module._enlarged(x, near, inside, 4))[0, 5, :, 0]
    np.testing.assert_allclose(read[3:33], np.arange(3, 33), atol=1e-4)


def test_group_norm_is_over_the_real_cells_of_a_group():
    norm = GroupNorm(8, groups=4)
    x = 3 + np.random.default_rng(0).standard_normal((2, 3, 4, 8), np.float32)
    real = np.ones((2, 3, 4), bool)
    real[0, :, 3] = False
    dirty = jnp.asarray(np.where(real[..., None], x, np.nan))
    y = np.asarray(jax.jit(norm)(dirty, jnp.asarray(real)))
    for b in range(2):
        for group in range(4):
            cells = x[b][real[b]][:, 2 * group : 2 * group + 2]
            wanted = (cells - cells.mean()) / np.sqrt(cells.var() + 1e-5)
            np.testing.assert_allclose(
                y[b][real[b]][:, 2 * group : 2 * group + 2], wanted, atol=1e-4
            )
    with pytest.raises(ValueError, match="do not fall into 4 groups"):
        GroupNorm(6)


def test_unfit_backbones_are_refused():
    class Other:
        strides, channels, lean, mean, std = (8, 16), (8, 8), 0.0, (0.0,) * 3, (1.0,) * 3

        def __call__(self, images, *, inside=None, rngs=None):
            return ()

    with pytest.raises(ValueError, match="wanted one of stride 4"):
        Segmenter(Other(), 3, rngs=nnx.Rngs(0))
    Other.strides = (4, 32)
    with pytest.raises(ValueError, match="32"):
        Segmenter(Other(), 3, rngs=nnx.Rngs(0))
