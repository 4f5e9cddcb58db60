"""ResNet38-d: its names, and its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_weights import filled

from wsss_jax.backbones import norms
from wsss_jax.backbones.resnet38d import End, ResNet38d


def test_mxnet_names_become_those_of_the_table():
    module = nnx.eval_shape(lambda: ResNet38d(rngs=nnx.Rngs(0)))
    names = module.parameter_names()
    known = {
        "conv1a_weight": "conv1a.weight",
        "linear1000_bias": "linear1000.bias",
        "res2a_branch1_weight": "b2.conv_branch1.weight",
        "res4b3_branch2b1_weight": "b4_3.conv_branch2b1.weight",
        "bn4b3_branch2a_gamma": "b4_3.bn_branch2a.weight",
        "bn2a_branch2a_moving_mean": "b2.bn_branch2a.running_mean",
        "bn6a_branch2b2_var": "b6.bn_branch2b2.running_var",
        "bn7_beta": "bn7.bias",
        "bn7_moving_var": "bn7.running_var",
    }
    for theirs, ours in known.items():
        assert module.from_mxnet(theirs) == ours
        assert ours in names
    assert module.from_mxnet("something") not in names


def test_dropout_takes_whole_channels_and_only_with_keys():
    end = filled(lambda: End(4, (8, 64, 6, 0.5), norm=norms.FrozenBatchNorm, rngs=nnx.Rngs(0)))
    draw = np.random.default_rng(1).standard_normal((3, 5, 6, 4), np.float32)

    @jax.jit
    def run(x, key):
        keys = tuple(jax.random.split(key))
        ones = jnp.ones((3, 5, 6, 64))
        return end(x, None, False)[0], end(x, None, True, keys)[0], end._dropped(ones, keys, 0)

    calm, wild, dropped = run(jnp.asarray(draw), jax.random.key(2))
    assert bool((calm != wild).any()) and bool(jnp.isfinite(wild).all())
    per_channel = np.asarray(dropped).reshape(3, 30, 64)
    assert (per_channel == per_channel[:, :1]).all()
    assert set(np.unique(per_channel)) == {0.0, 2.0}
