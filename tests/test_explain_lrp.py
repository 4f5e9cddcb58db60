"""LRP in convolutional networks: one layer by hand, and conservation through whole networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy_scorers import photos

from wsss_jax.backbones import layers, mobilenet, norms, resnet
from wsss_jax.explain import lrp, lrp_rules
from wsss_jax.explain.lrp_rules import Layer


def layer(x, kernel, scale, bias=0.0, bounds=None):
    plus, minus = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
    return Layer(
        x, lambda z: z @ plus, lambda z: z @ minus, jnp.asarray(scale), jnp.asarray(bias), bounds
    )


X = jnp.array([[2.0, 1.0, -1.0]])
KERNEL = jnp.array([[1.0], [-1.0], [-2.0]])  # contributions 2, -1, 2


@pytest.mark.parametrize(
    "rule, scale, bias, wanted",
    [
        (lrp_rules.epsilon(0.0), 1.0, 0.0, [2 / 3, -1 / 3, 2 / 3]),
        (lrp_rules.epsilon(0.0), 1.0, 1.0, [2 / 4, -1 / 4, 2 / 4]),
        (lrp_rules.epsilon(1.0), 1.0, 0.0, [2 / 6, -1 / 6, 2 / 6]),
        (lrp_rules.alpha_beta(1.0), 1.0, 5.0, [2 / 4, 0, 2 / 4]),
        (lrp_rules.alpha_beta(2.0), 1.0, 5.0, [1, -1, 1]),
        # A norm of negative scale behind the convolution turns the signs round.
        (lrp_rules.alpha_beta(1.0), -3.0, 0.0, [0, 1, 0]),
    ],
)
def test_one_layer_by_hand(rule, scale, bias, wanted):
    found = rule.linear(layer(X, KERNEL, [[scale]], [[bias]]), jnp.ones((1, 1)))
    np.testing.assert_allclose(found, [wanted], atol=1e-6)


def test_the_first_layer_counts_from_the_bounds_of_its_input():
    """Bounds -1 and 2: 2·1 - (-1), -1·1 + 2 and -2·-1 + 2·2 make 3 + 1 + 6 = 10."""
    ends = (jnp.full((1, 3), -1.0), jnp.full((1, 3), 2.0))
    for scale in (1.0, 4.0):
        found = lrp_rules.bounded(layer(X, KERNEL, [[scale]], [[9.0]], ends), jnp.ones((1, 1)))
        np.testing.assert_allclose(found, [[0.3, 0.1, 0.6]], atol=1e-6)


@pytest.mark.parametrize("alpha, wanted", [(1.0, ([1.0], [0.0])), (2.0, ([2.0], [-1.0]))])
def test_a_sum_is_shared_by_its_signs(alpha, wanted):
    a, b = lrp_rules.alpha_beta(alpha).add(jnp.array([3.0]), jnp.array([-1.0]), jnp.ones(1))
    np.testing.assert_allclose((a, b), wanted)


def blocks(name):
    """One block of each kind on four channels."""
    rngs = nnx.Rngs(0)
    usual = {"stride": 1, "dilation": 1, "norm": norms.FrozenBatchNorm, "rngs": rngs}
    plain = resnet.Variant()
    return {
        "bottleneck": lambda: resnet.Bottleneck(4, 2, plain, **usual),
        "mobilenet": lambda: mobilenet.Inverted(
            4, 4, factor=2, stride=1, dilation=1, residual=True, rngs=rngs
        ),
    }[name]()


def shaken(module):
    """The module with norms that scale by either sign."""
    for number, (_, part) in enumerate(nnx.iter_modules(module)):
        if isinstance(part, norms.FrozenBatchNorm):
            draw = partial(jax.random.normal, shape=part.scale.shape)
            part.scale.set_value(1 + draw(jax.random.key(number)))
    return module


@pytest.mark.parametrize("name", ["bottleneck", "mobilenet"])
def test_relevance_is_conserved_with_norms_folded(name):
    """Behind a stem that normalises, shifts, rectifies and pools; biases get nothing."""
    block, stem = shaken(blocks(name)), layers.Conv3x3(3, 4, stride=2, rngs=nnx.Rngs(1))
    norm = shaken(nnx.List([norms.FrozenBatchNorm(4)]))[0]
    norm.bias.set_value(jnp.full(4, -0.1))
    rules = [1.0, 2.0] if name == "bottleneck" else [1.0]

    def features(images):
        x = jax.nn.relu(norm(stem((images - 0.5) * 4, None)))
        if name == "mobilenet":
            return block(x, None)
        return block(layers.max_pool3x3(x) if name == "bottleneck" else x, None, False)

    def run(images):
        def score(images):
            return jax.nn.relu(features(images)).mean(axis=(1, 2, 3))

        found = [lrp.propagated(score, images, lrp_rules.alpha_beta(n))[1] for n in rules]
        return [back(jnp.ones(1)) for back in found]

    found = [np.asarray(one) for one in jax.jit(run)(photos(1, (8, 8)))]
    assert [one.sum() for one in found] == pytest.approx([1] * len(rules), abs=1e-3)
    assert found[0].min() >= -1e-6


def test_epsilon_without_biases_is_gradient_times_input_and_conserves_the_score():
    kernels = jax.random.normal(jax.random.key(0), (3, 3, 3, 5)), jnp.ones((5, 1))

    def score(x):
        x = jax.nn.relu(layers.conv3x3(x, kernels[0]))
        return x.mean(axis=(1, 2)) @ kernels[1]

    images, rule = photos(1, (6, 6)), lrp_rules.epsilon(0.0)
    # Behind a rectifier the convolution no longer is the layer of the pixels, which z^B would take.
    logits, back = lrp.propagated(lambda x: score(jax.nn.relu(x)), images, rule)
    wanted = images * jax.grad(lambda x: score(x).sum())(images)
    np.testing.assert_allclose(back(logits), wanted, atol=1e-4)
    assert float(back(logits).sum()) == pytest.approx(float(logits.sum()), rel=1e-4)


def test_what_has_no_rule_is_named():
    with pytest.raises(ValueError, match="no rule for relevance through 'mul' of 2 values"):
        lrp.propagated(lambda x: (x * x[::-1]).sum(axis=(1, 2)), photos(2), lrp_rules.epsilon())
