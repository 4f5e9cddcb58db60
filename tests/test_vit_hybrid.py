"""The hybrid: standardised kernels, and GroupNorm that ignores padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsss_jax.backbones import residual, vit_hybrid
from wsss_jax.backbones.vit_hybrid import Bottleneck, GroupNorm, HybridViT


def test_maps_have_the_promised_strides_and_channels():
    model = nnx.eval_shape(lambda: HybridViT(rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)
    inside = jax.ShapeDtypeStruct((1, 33, 47), bool)
    image = jax.ShapeDtypeStruct((1, 33, 47, 3), jnp.float32)
    run = lambda p, x, inside: nnx.merge(graph, p)(x, inside=inside)  # noqa: E731
    for x, s, k in zip(
        jax.eval_shape(run, params, image, inside), model.strides, model.channels, strict=True
    ):
        assert x.shape == (1, -(-33 // s), -(-47 // s), k)


def test_standardised_kernels_have_mean_zero_and_variance_one():
    kernel = vit_hybrid.standardised(3 + 5 * jax.random.normal(jax.random.key(0), (3, 3, 4, 5)))
    np.testing.assert_allclose(kernel.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(kernel.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_group_norm_is_the_plain_one_over_the_real_cells():
    x = 2 + 3 * jax.random.normal(jax.random.key(0), (2, 3, 4, 64))
    groups = x.reshape(2, 12, 32, 2)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    wanted = ((groups - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
    norm = GroupNorm(64)
    np.testing.assert_allclose(norm(x, None), wanted, atol=1e-5)
    canvas = jnp.full((2, 5, 6, 64), 7.0).at[:, :3, :4].set(x)
    cells = jnp.zeros((2, 5, 6), bool).at[:, :3, :4].set(True)
    np.testing.assert_allclose(norm(canvas, cells)[:, :3, :4], wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 12), (10, 7)])
def test_padding_changes_nothing_in_a_root_and_a_bottleneck(size):
    root = vit_hybrid.StandardConv(7, 3, 32, stride=2, rngs=nnx.Rngs(0))
    block = Bottleneck(32, 128, stride=2, rngs=nnx.Rngs(1))
    (h, w), image = size, jax.random.normal(jax.random.key(0), (1, *size, 3))
    canvas = jnp.full((1, 16, 16, 3), jnp.nan).at[:, :h, :w].set(image)
    inside = jnp.zeros((1, 16, 16), bool).at[:, :h, :w].set(True)

    @jax.jit
    def run(images, inside):
        cells = None if inside is None else inside[:, ::2, ::2]
        return block(root(images, inside), cells)

    tight = run(image, None)
    np.testing.assert_allclose(
        run(canvas, inside)[:, : tight.shape[1], : tight.shape[2]], tight, rtol=1e-4, atol=1e-5
    )


def test_remat_gives_the_same_block():
    block = Bottleneck(128, 128, stride=1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 128))
    np.testing.assert_allclose(residual.run(block, x, None, remat=True), block(x, None), atol=1e-5)


def test_an_impossible_stride_is_refused():
    with pytest.raises(ValueError, match="output_stride is 5"):
        HybridViT(rngs=nnx.Rngs(0), output_stride=5)
