"""Lattices of the host and of the device are those of a slow, obvious construction."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.crf import exact as crf_exact
from wsss_jax.crf import lattice, lattice_device, lattice_host


def cloud(n, d, spread, seed=0):
    """Points in R^d, in standard deviations of the kernel."""
    points = np.random.default_rng(seed).uniform(0, spread, (n, d)).astype(np.float32)
    factors = lattice.scale_factors(d)
    return points, tuple(points[:, i] * factors[i] for i in range(d))


@partial(jax.jit, static_argnames="rows")
def on_device(scaled, rows):
    return lattice_device.build(scaled, rows=rows)


smooth = jax.jit(lattice.smooth)


def slow_vertices(scaled):
    """Each point's d+1 vertices by definition, as integer coordinates, and its weights."""
    d = len(scaled)
    x = np.stack(scaled, -1).astype(np.float64)
    lifted = np.zeros((len(x), d + 1))
    for i in range(d + 1):
        lifted[:, i] = x[:, i:].sum(-1) - (i * x[:, i - 1] if i else 0)
    corner = np.round(lifted / (d + 1)) * (d + 1)
    keys, weights = [], []
    for y, c in zip(lifted, corner, strict=True):
        order = np.argsort(-(y - c), kind="stable")
        excess = round(c.sum() / (d + 1))  # bring the corner back onto the plane
        change = order[d + 1 - excess :] if excess > 0 else order[: max(-excess, 0)]
        c[change] -= np.sign(excess) * (d + 1)
        order = np.argsort(-(y - c), kind="stable")
        rest = np.sort(y - c)[::-1] / (d + 1)
        vertex = c.copy()
        simplex = [tuple(vertex.astype(int))]
        for r in range(1, d + 1):
            vertex = vertex + 1
            vertex[order[d + 1 - r]] -= d + 1
            simplex.append(tuple(vertex.astype(int)))
        # Vertex r takes the gap between the (d-r)th and the next coordinate.
        gaps = [1 - (rest[0] - rest[d])] + [rest[d - r] - rest[d - r + 1] for r in range(1, d + 1)]
        keys.append(simplex)
        weights.append(gaps)
    return keys, np.array(weights)


def slow_smooth(values, scaled):
    """Splat, blur and slice over a dictionary of vertices."""
    d = len(scaled)
    keys, weights = slow_vertices(scaled)
    rows = {}
    for value, simplex, weight in zip(values, keys, weights, strict=True):
        for key, w in zip(simplex, weight, strict=True):
            rows[key] = rows.get(key, 0) + w * value
    for j in range(d + 1):
        step = np.full(d + 1, -1)
        step[j] += d + 1
        old, rows = rows, {}
        for key, value in old.items():
            one, two = (tuple(np.array(key) + s * step) for s in (1, -1))
            rows[key] = value + 0.5 * (old.get(one, 0) + old.get(two, 0))
    alpha = 1 / (1 + 2.0**-d)
    return np.array(
        [
            alpha * sum(w * rows[key] for key, w in zip(simplex, weight, strict=True))
            for simplex, weight in zip(keys, weights, strict=True)
        ]
    )


@pytest.mark.parametrize("d", [2, 5])
def test_both_lattices_equal_the_slow_one(d):
    _, scaled = cloud(80, d, 2.5)
    values = np.random.default_rng(1).normal(size=(80, 2)).astype(np.float32)
    wanted = slow_smooth(values.astype(np.float64), scaled)
    host = lattice_host.build(scaled)
    padded = np.zeros((host.vertices.shape[1], 2), np.float32)
    padded[:80] = values
    got = smooth(jnp.asarray(padded), jax.device_put(host))[:80]
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    device, used = on_device(scaled, 80 * (d + 1) + 1)
    np.testing.assert_allclose(smooth(jnp.asarray(values), device), wanted, atol=2e-5)
    assert int(used) == len(np.unique(host.vertices[:, :80]))


def test_weights_are_barycentric_and_neighbours_mutual():
    _, scaled = cloud(500, 5, 4.0)
    built = lattice_host.build(scaled)
    weights = built.weights[:, :500]
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
    assert weights.min() > -1e-5
    assert not built.weights[:, 500:].any()
    none = built.before.shape[1] - 1
    for before, after in zip(built.before, built.after, strict=True):
        here = np.flatnonzero(before != none)
        assert here.size
        np.testing.assert_array_equal(after[before[here]], here)
    assert (built.before[:, -1] == none).all()


def test_a_lattice_approximates_the_gaussian():
    points, scaled = cloud(300, 2, 6.0)
    values = np.random.default_rng(2).uniform(size=(300, 1)).astype(np.float32)
    device, _ = on_device(scaled, 901)
    got = smooth(jnp.asarray(values), lattice.normalised(device))
    wanted = crf_exact.normalised(jnp.asarray(values), jnp.asarray(points), tile=128)
    np.testing.assert_allclose(got, wanted, rtol=0.15)


def test_exact_smoothing_does_not_depend_on_the_tile():
    points, _ = cloud(50, 3, 3.0)
    values = np.random.default_rng(3).uniform(size=(50, 2)).astype(np.float32)
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)
    wanted = np.exp(-distance / 2) @ values
    for tile in (7, 64):
        got = crf_exact.smooth(jnp.asarray(values), jnp.asarray(points), tile=tile)
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_too_few_rows_are_told():
    _, scaled = cloud(64, 2, 8.0)
    _, used = on_device(scaled, 8)
    assert int(used) > 8


def test_a_kernel_too_narrow_is_refused():
    _, scaled = cloud(20, 5, 2000.0)
    with pytest.raises(ValueError, match="so narrow"):
        lattice_host.build(scaled)


def test_buckets_are_few_and_fit():
    sizes = [lattice_host.bucket(n, 16) for n in range(100_000, 200_000, 97)]
    assert len(set(sizes)) <= 18
    assert all(n <= s <= 1.07 * n for n, s in zip(range(100_000, 200_000, 97), sizes, strict=True))
