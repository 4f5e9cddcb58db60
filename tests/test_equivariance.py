"""SEAM's arithmetic: values by hand, a slow obvious version, padding, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.losses import equivariance


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def everywhere(*shape):
    return jnp.ones(shape, bool)


def test_maps_are_stretched_over_the_cells_of_the_image():
    maps = jnp.asarray([[[[1.0], [3.0], [5.0], [100.0]]]])
    cells = jnp.asarray([[[True, True, True, False]]])
    found = equivariance.range_normalised(maps, cells)
    np.testing.assert_allclose(found[0, 0, :, 0], [0, 0.5, 1, 0], atol=1e-4)
    assert (
        equivariance.range_normalised(jnp.full((1, 2, 2, 1), -1.0), everywhere(1, 2, 2)) == 0
    ).all()


def test_only_the_strongest_class_of_a_cell_is_spread():
    maps = jnp.asarray([[[[2.0, 1.0], [1.0, 4.0], [-1.0, 0.0]]]])
    found = equivariance.correlation_target(maps, everywhere(1, 1, 3))
    # Over their maxima: (1, 1/4), (1/2, 1), (0, 0); background is what the strongest leaves.
    np.testing.assert_allclose(found[0, 0], [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-4)
    gradient = jax.grad(lambda x: equivariance.correlation_target(x, everywhere(1, 1, 3)).sum())(
        maps
    )
    assert (gradient == 0).all()


def test_correlation_is_the_mean_of_like_cells():
    maps, features = normal(1, 2, 3, 2), normal(1, 2, 3, 5, seed=1)
    cells = jnp.asarray([[[True, True, True], [True, True, False]]])
    found = equivariance.correlate(maps, features, cells)
    flat, embedded = np.reshape(maps, (6, 2)), np.reshape(features, (6, 5))
    embedded = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    for q in range(5):
        weights = np.maximum(embedded[:5] @ embedded[q], 0)
        wanted = (weights[:, None] * flat[:5]).sum(0) / weights.sum()
        np.testing.assert_allclose(found.reshape(6, 2)[q], wanted, rtol=1e-3, atol=1e-4)
    assert (found[0, 1, 2] == 0).all()


def test_shares_of_the_lowest_and_highest_count_only_the_image():
    values = jnp.asarray([[[5.0, 1.0, 3.0, 2.0], [8.0, 7.0, 6.0, 4.0], [-9.0, 99.0, 0.0, 0.0]]])
    cells = jnp.asarray([[[True] * 4, [True] * 4, [False] * 4]])
    assert float(equivariance.lowest_mean(values, cells, 0.25)[0]) == pytest.approx(1.5)
    assert float(equivariance.highest_mean(values[..., None], cells, 0.4)[0]) == pytest.approx(7)
    ties = jnp.ones((1, 2, 4))
    assert float(equivariance.lowest_mean(ties, everywhere(1, 2, 4), 0.25)[0]) == pytest.approx(1)


def test_two_views_that_agree_differ_by_nothing():
    maps, cells = jax.nn.relu(normal(2, 3, 3, 2)), everywhere(2, 3, 3)
    assert (equivariance.equivariance(maps, maps, cells) == 0).all()
    half = cells.at[:, :, 2:].set(False)
    other = maps.at[:, :, 2:].add(5.0).at[:, 0, 0, 0].add(3.0)
    np.testing.assert_allclose(equivariance.equivariance(maps, other, half), 3 / 12, rtol=1e-6)


def test_gradients_are_finite_with_padding_and_fill_up_rows():
    cells = everywhere(2, 3, 3).at[0, 2:].set(False).at[1].set(False)

    def loss(maps, features):
        features = jnp.where(cells[..., None], features, 0.0)
        refined = equivariance.correlate(
            equivariance.correlation_target(maps, cells), features, cells
        )
        normed = equivariance.range_normalised(maps, cells)
        gap = equivariance.with_background(normed) - equivariance.range_normalised(refined, cells)
        parts = (
            equivariance.highest_mean(jnp.abs(gap), cells, 0.2),
            equivariance.lowest_mean(refined[..., 0], cells, 0.25),
            equivariance.equivariance(normed, refined[..., 1:], cells),
        )
        return sum(part.sum() for part in parts)

    args = (normal(2, 3, 3, 2), normal(2, 3, 3, 4, seed=1))
    gradients = jax.grad(loss, argnums=(0, 1))(*args)
    assert all(np.isfinite(g).all() for g in gradients)
    assert all(np.abs(g[0, :2]).max() > 0 for g in gradients)
    assert float(jax.jit(loss)(*args)) == pytest.approx(float(loss(*args)), rel=1e-5)
