"""Layers: both backends agree, the grid rule is TensorFlow's on even sizes, padding is inert."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from wsss_jax.backbones import layers

CASES = [(1, 1), (1, 2), (2, 1)]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("stride,dilation", CASES)
def test_depthwise_agrees_with_grouped_convolution(stride, dilation, monkeypatch):
    x, kernel = normal(0, 2, 7, 10, 5), normal(1, 3, 3, 5)

    def run(x, kernel):
        y = layers.depthwise3x3(x, kernel, stride=stride, dilation=dilation)
        return (y**2).sum(), y

    gradient = jax.grad(run, argnums=(0, 1), has_aux=True)
    shifted = jax.jit(gradient)(x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()  # the choice was made while tracing
    grouped = jax.jit(gradient)(x, kernel)
    for a, b in zip(jax.tree.leaves(shifted), jax.tree.leaves(grouped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride,dilation", CASES)
def test_windows_are_tensorflows_same_on_even_sizes(stride, dilation):
    x, kernel = normal(0, 1, 8, 12, 3), normal(1, 3, 3, 3, 4)
    ours = jax.jit(partial(layers.conv3x3, stride=stride, dilation=dilation))(x, kernel)
    same = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(ours, same, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8)])
def test_strided_windows_start_at_even_cells(size):
    x = normal(0, 1, *size, 1)
    sums = jax.jit(partial(layers.depthwise3x3, stride=2))(x, jnp.ones((3, 3, 1)))
    ours = np.asarray(sums)[0, ..., 0]
    padded = np.pad(np.asarray(x)[0, ..., 0], ((0, 3), (0, 3)))
    slow = [
        [padded[i : i + 3, j : j + 3].sum() for j in range(0, size[1], 2)]
        for i in range(0, size[0], 2)
    ]
    np.testing.assert_allclose(ours, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_agrees_with_reduce_window(stride):
    x = normal(0, 2, 8, 6, 3)
    ours = jax.jit(partial(layers.max_pool3x3, stride=stride))(x)
    slow = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), "SAME")
    np.testing.assert_array_equal(ours, slow)


def test_pointwise_is_a_matrix_product():
    x, kernel, bias = normal(0, 2, 3, 4, 5), normal(1, 5, 6), normal(2, 6)
    slow = np.einsum("bhwk,kn->bhwn", x, kernel) + np.asarray(bias)
    np.testing.assert_allclose(layers.pointwise(x, kernel, bias), slow, rtol=1e-5, atol=1e-5)


def test_relu6_and_its_gradient():
    x = jnp.array([-1.0, 0.0, 3.0, 6.0, 9.0])
    np.testing.assert_array_equal(layers.relu6(x), [0, 0, 3, 6, 6])
    np.testing.assert_array_equal(jax.grad(lambda x: layers.relu6(x).sum())(x), [0, 0, 1, 0, 0])


def test_keep_removes_even_nan():
    x = jnp.full((1, 2, 2, 3), jnp.nan)
    inside = jnp.array([[[True, False], [False, False]]])
    kept = np.asarray(layers.keep(jnp.where(inside[..., None], 1.0, x), inside))
    np.testing.assert_array_equal(kept[0, :, :, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("stride,dilation", CASES)
@pytest.mark.parametrize("kind", [layers.Conv3x3, layers.Depthwise3x3])
def test_a_canvas_changes_no_bit(kind, stride, dilation):
    # Sixteen channels, as every map of our networks has a multiple of: with fewer, XLA's vector
    # loop ends at another cell on another width, and the last bit of a sum depends on the loop.
    widths = (16, 16) if kind is layers.Conv3x3 else (16,)
    layer = kind(*widths, stride=stride, dilation=dilation, rngs=nnx.Rngs(0))
    layer.bias.set_value(normal(3, 16))
    tight, canvas = normal(0, 1, 9, 6, 16), normal(1, 1, 16, 12, 16)
    canvas = canvas.at[:, :9, :6].set(tight)
    inside = jnp.zeros((1, 16, 12), bool).at[:, :9, :6].set(True)
    graph, state = nnx.split(layer)
    # As users compile: the older emitters of our tests (conftest.py) change the last bit.
    options = {"xla_backend_extra_options": "", "xla_backend_optimization_level": 3}
    run = jax.jit(
        lambda state, x, inside: nnx.merge(graph, state)(x, inside), compiler_options=options
    )
    small, large = run(state, tight, None), run(state, canvas, inside)
    cells = layers.grid_inside(inside, stride)
    assert cells.shape == large.shape[:3]
    assert int(cells.sum()) == small.shape[1] * small.shape[2]
    np.testing.assert_array_equal(large[:, : small.shape[1], : small.shape[2]], small)
