"""ResNeSts: output strides, and the attention against its text."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import filled

from wsss_jax.backbones import norms, resnest


@pytest.mark.parametrize(
    "stride, dilations", [(32, [1, 1, 1, 1]), (16, [1, 1, 1, 2]), (8, [1, 2, 2, 4])]
)
def test_output_stride_follows_the_published_schemes(stride, dilations):
    make = resnest.ResNeSt
    module = nnx.eval_shape(
        lambda: make((1, 1, 2, 2), rngs=nnx.Rngs(0), output_stride=stride, stem=32)
    )
    found = [
        block.conv2.conv.dilation for stage in (module.layer3, module.layer4) for block in stage
    ]
    assert found == dilations
    assert module.strides == (4, 4, 8, min(16, stride), stride)


def test_split_attention_weighs_channels_by_a_softmax_over_the_splits():
    make = partial(resnest.SplitAttention, dilation=1, norm=norms.FrozenBatchNorm)
    module = filled(lambda: make(4, resnest.Splits(), rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((2, 5, 6, 4), np.float32)

    @jax.jit
    def run(x):
        y = jax.nn.relu(module.bn0(module.conv(x)))
        splits = jnp.stack([y[..., :4], y[..., 4:]])
        means = splits.sum(axis=0).mean(axis=(1, 2), keepdims=True)
        weights = module.fc2(jax.nn.relu(module.bn1(module.fc1(means))))
        shares = jax.nn.softmax(weights.reshape(2, 1, 1, 2, 4), axis=3)
        slow = (splits * jnp.moveaxis(shares, 3, 0)).sum(axis=0)
        nothing = jnp.zeros((2, 5, 6), bool)
        return slow, module(x, None, False), module(x * jnp.nan, nothing, True)

    slow, ours, empty = run(jnp.asarray(x))
    np.testing.assert_allclose(ours, slow, atol=1e-5)
    assert bool(jnp.isfinite(empty).all())
