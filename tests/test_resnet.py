"""ResNets: hand-computed layers, and BatchNorm against its text."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_close, filled
from jax import lax

from wsss_jax.backbones import BACKBONES, norms, residual, resnet


def test_plan_of_strides_is_that_of_the_publications():
    def rows(stride):
        return residual.plan((1, 2, 2, 2), stride, (8, 16, 32))

    assert rows(32) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]
    assert rows(16) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]
    assert rows(8) == [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    with pytest.raises(ValueError, match="output_stride is 4, wanted 8 or 16 or 32"):
        rows(4)


def test_irn_strides_without_dilating():
    with pytest.raises(ValueError, match="wanted 16"):
        resnet.irn(rngs=nnx.Rngs(0), output_stride=8)
    module = nnx.eval_shape(lambda: BACKBONES["resnet50_irn"](rngs=nnx.Rngs(0)))
    assert module.strides == (4, 4, 8, 16, 16)
    blocks = [*module.layer1, *module.layer2, *module.layer3, *module.layer4]
    assert {block.conv2.dilation for block in blocks} == {1}


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def library(x, kernel, stride=1, pad=1, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(pad, pad)] * 2, rhs_dilation=(dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def test_convolutions_have_the_padding_of_pytorch():
    cases = ((3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1))
    x, kernels = random(1, 9, 12, 2), [random(size, size, 2, 3) for size, _, _ in cases]

    @jax.jit
    def run(x, kernels):
        pairs = []
        for kernel, (size, stride, dilation) in zip(kernels, cases, strict=True):
            ours = residual.conv(x, kernel, stride=stride, dilation=dilation)
            pad = dilation * (size - 1) // 2
            pairs.append((ours, library(x, kernel, stride, pad, dilation)))
        return pairs

    for ours, slow in run(x, kernels):
        assert_close(ours, slow, 1e-5)


def test_pools_by_hand():
    x = jnp.asarray(np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3, 1))
    corner = np.zeros((1, 3, 3), bool)
    corner[:, :2, :2] = True

    @jax.jit
    def run(x, inside):
        return (
            residual.max_pool3x3(x, None),
            residual.average_pool3x3(x, None, stride=2) * 9,
            residual.average_pool2x2(x, None),
            residual.average_pool2x2(x, inside),
        )

    largest, nine, four, inner = (np.asarray(y)[0, ..., 0] for y in run(x, jnp.asarray(corner)))
    np.testing.assert_array_equal(largest, [[5, 6], [8, 9]])
    np.testing.assert_allclose(nine, [[12, 16], [24, 28]], rtol=1e-6)
    np.testing.assert_allclose(four, [[3, 4.5], [7.5, 9]], rtol=1e-6)
    np.testing.assert_allclose(inner, [[3, 0], [0, 0]], rtol=1e-6)


def test_a_grouped_convolution_is_separate_ones():
    module = filled(lambda: residual.Conv(4, 6, 3, groups=2, rngs=nnx.Rngs(0)))
    x, kernel = random(1, 5, 6, 4), module.kernel[...]
    ours, slow = jax.jit(lambda x, k: (module(x, None), library(x, k, groups=2)))(x, kernel)
    assert_close(ours, slow, 1e-5)


def test_trained_batch_norm_takes_the_real_cells_and_moves_its_statistics():
    real = np.ones((2, 3, 4), bool)
    real[1, 2] = False
    x = 100 + np.asarray(random(2, 3, 4, 2))
    graph, state = nnx.split(norms.TrainedBatchNorm(2))
    frozen, _ = nnx.split(norms.FrozenBatchNorm(2))

    @jax.jit
    def run(x, inside):
        norm = nnx.merge(graph, state, copy=True)
        y, after = norm(x, inside, True), nnx.state(norm)
        same = nnx.merge(frozen, after, copy=True)(x, inside, True)
        return y, norm.mean[...], norm.var[...], norm(x, inside, False), same

    dirty = jnp.asarray(np.where(real[..., None], x, np.nan))
    y, mean, var, later, same = (np.asarray(v) for v in run(dirty, jnp.asarray(real)))
    cells = x.astype(np.float64)[real]
    wanted = (cells - cells.mean(axis=0)) / np.sqrt(cells.var(axis=0) + 1e-5)
    np.testing.assert_allclose(y[real], wanted, atol=1e-4)
    np.testing.assert_allclose(mean, 0.1 * cells.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(var, 0.9 + 0.1 * cells.var(axis=0, ddof=1), rtol=1e-4)
    np.testing.assert_array_equal(later, same)


def small(remat):
    made = partial(resnet.ResNet, resnet.Basic, (1, 1, 1, 1), norm=norms.TrainedBatchNorm)
    return filled(lambda: made(rngs=nnx.Rngs(0), remat=remat))


def test_rematerialisation_changes_neither_gradient_nor_statistics():
    # The last map has several cells: over two alone, rounding decides what BatchNorm's gradient is.
    images = jax.random.normal(jax.random.key(0), (2, 64, 48, 3))

    def run(remat):
        graph, params, stats = nnx.split(small(remat), nnx.Param, ...)

        def loss(params):
            module = nnx.merge(graph, params, stats, copy=True)
            out = jnp.square(module(images, rngs=jax.random.key(1))[-1]).mean()
            return out, nnx.state(module, nnx.BatchStat)

        return jax.jit(jax.grad(loss, has_aux=True))(params), stats

    ((plain, moved), before), ((saved, also), _) = run(False), run(True)
    for a, b in zip(*(jax.tree.leaves(t) for t in ((plain, moved), (saved, also))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert bool(jnp.isfinite(a).all())
    changed = zip(jax.tree.leaves(before), jax.tree.leaves(moved), strict=True)
    assert all(bool((a != b).any()) for a, b in changed)
