"""Per-channel numbers on maps: values, and gradients against plain sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.ops import channels

SHAPES = [(2, 5, 7, 3), (4, 3), (2, 6, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_has_the_gradient_of_a_sum(shape):
    rng = np.random.default_rng(0)
    x, pull = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    bias = rng.normal(size=shape[-1]).astype(np.float32)
    y, back = jax.vjp(channels.add_bias, jnp.asarray(x), jnp.asarray(bias))
    np.testing.assert_array_equal(y, x + bias)
    to_x, to_bias = back(jnp.asarray(pull))
    np.testing.assert_array_equal(to_x, pull)
    np.testing.assert_allclose(to_bias, pull.reshape(-1, shape[-1]).sum(0), rtol=1e-5)


def test_a_bias_in_half_precision_is_summed_in_float32():
    pull = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)
    _, back = jax.vjp(channels.add_bias, pull, jnp.zeros(1, jnp.bfloat16))
    assert float(back(pull)[1][0]) == 64 * 64  # bfloat16 itself would stop at 256


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_and_shift_have_the_gradients_of_sums(shape):
    rng = np.random.default_rng(1)
    x, pull = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    scale, shift = (rng.normal(size=shape[-1]).astype(np.float32) for _ in range(2))
    y, back = jax.vjp(channels.scale_shift, *map(jnp.asarray, (x, scale, shift)))
    np.testing.assert_allclose(y, x * scale + shift, rtol=1e-6)
    to_x, to_scale, to_shift = back(jnp.asarray(pull))
    np.testing.assert_allclose(to_x, pull * scale, rtol=1e-6)
    flat = (pull.reshape(-1, shape[-1]), (pull * x).reshape(-1, shape[-1]))
    np.testing.assert_allclose(to_shift, flat[0].sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_scale, flat[1].sum(0), rtol=1e-4, atol=1e-5)


def test_second_derivatives_exist():
    x = jnp.linspace(-1.0, 1.0, 2 * 3 * 4 * 2).reshape(2, 3, 4, 2)

    def value(scale):
        return jnp.square(channels.scale_shift(x, scale, jnp.ones(2))).sum()

    twice = jax.jacrev(jax.grad(value))(jnp.asarray([0.5, 2.0]))
    np.testing.assert_allclose(np.diag(twice), 2 * jnp.square(x).sum((0, 1, 2)), rtol=1e-5)
