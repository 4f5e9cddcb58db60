"""Affinities: the stencil, the three ways to make them, and what padding must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.ops import affinity


def random(*shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def slow(height, width, radius, measure):
    """Pair by pair in Python: what every affinity must equal."""
    offsets = affinity.stencil(radius)
    values = np.zeros((len(offsets), height, width))
    for i, (dy, dx) in enumerate(offsets):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    values[i, y, x] = measure((y, x), (y + dy, x + dx))
    return values


def make(kind, seed=0, height=6, width=7):
    """One affinity of each kind as (function of maps and inside, maps)."""
    if kind == "colour":
        maps = random(height, width, 3, seed=seed)
        settings = {"radius": 4, "sigma_colour": 0.2, "sigma_space": 3.0}
        return wrapped(affinity.from_colour, **settings), maps
    if kind == "features":
        maps = random(height, width, 5, seed=seed)
        return wrapped(affinity.from_features, radius=4), maps
    maps = random(height, width, seed=seed)
    return wrapped(affinity.from_boundary, radius=4), maps


def wrapped(function, **settings):
    def call(maps, inside=None):
        inside = None if inside is None else jnp.asarray(inside)
        return function(jnp.asarray(maps), inside=inside, **settings)

    return jax.jit(call)


KINDS = ("colour", "features", "boundary")


@pytest.mark.parametrize(("radius", "pairs", "pixels"), [(5, 34, 242), (10, 152, 2134)])
def test_stencil_and_lines_have_the_sizes_of_the_papers(radius, pairs, pixels):
    assert len(affinity.stencil(radius)) == pairs
    lines = affinity.lines(radius)
    assert sum(map(len, lines)) == pixels
    assert min(map(len, lines)) == 2
    for line, offset in zip(lines, affinity.stencil(radius), strict=True):
        assert (0, 0) in line and offset in line


def test_stencil_holds_each_pair_once_and_needs_a_neighbour():
    offsets = set(affinity.stencil(5))
    assert not offsets & {(-dy, -dx) for dy, dx in offsets}
    with pytest.raises(ValueError, match="radius is 1"):
        affinity.stencil(1)


def test_line_by_hand():
    lines = dict(zip(affinity.stencil(3), affinity.lines(3), strict=True))
    assert lines[(0, 2)] == ((0, 0), (0, 1), (0, 2))
    assert lines[(1, -1)] == ((0, -1), (0, 0), (1, -1), (1, 0))


def test_from_colour_equals_the_slow_version():
    function, image = make("colour")

    def measure(a, b):
        colour = ((image[a] - image[b]).astype(np.float64) ** 2).sum() / (2 * 0.2**2)
        space = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * 3.0**2)
        return np.exp(-colour - space)

    np.testing.assert_allclose(function(image).values, slow(6, 7, 4, measure), atol=1e-6)


def test_from_features_equals_the_slow_version():
    function, maps = make("features")
    expected = slow(6, 7, 4, lambda a, b: np.exp(-np.abs(maps[a] - maps[b]).mean()))
    np.testing.assert_allclose(function(maps).values, expected, atol=1e-6)


def test_from_boundary_equals_the_slow_version():
    function, edge = make("boundary")
    lines = dict(zip(affinity.stencil(4), affinity.lines(4), strict=True))

    def measure(a, b):
        line = lines[(b[0] - a[0], b[1] - a[1])]
        return 1 - max(edge[a[0] + y, a[1] + x] for y, x in line)

    np.testing.assert_allclose(function(edge).values, slow(6, 7, 4, measure), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_neighbours_and_changes_nothing(kind):
    function, maps = make(kind)
    tight = function(maps).values
    canvas = random(9, 8, *maps.shape[2:], seed=1)
    canvas[:6, :7] = maps
    inside = np.zeros((9, 8), bool)
    inside[:6, :7] = True
    padded = np.array(function(canvas, inside).values)
    np.testing.assert_allclose(padded[:, :6, :7], tight, atol=1e-6)
    padded[:, :6, :7] = 0
    assert not padded.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2)])
def test_images_smaller_than_the_radius_are_linked_inside_only(kind, size):
    function, maps = make(kind, height=size[0], width=size[1])
    values = np.asarray(function(maps).values)
    exists = slow(*size, 4, lambda a, b: 1.0)
    assert values.shape == exists.shape
    assert ((values > 0) <= (exists > 0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_images_one_by_one(kind):
    function, maps = make(kind)
    other = make(kind, seed=3)[1]
    inside = np.ones((2, 6, 7), bool)
    inside[1, 4:] = inside[1, :, 5:] = False
    batch = np.asarray(function(np.stack([maps, other]), inside).values)
    for one, m, i in zip(batch, (maps, other), inside, strict=True):
        np.testing.assert_allclose(one, function(m, i).values, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_jit_equals_eager_and_values_lie_between_0_and_1(kind):
    function, maps = make(kind, height=3, width=4)
    with jax.disable_jit():
        eager = np.asarray(function(maps).values)
    compiled = function(maps)
    assert compiled.radius == 4
    np.testing.assert_allclose(compiled.values, eager, atol=1e-6)
    assert 0 <= eager.min() and eager.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_finite_differences(kind):
    function, maps = make(kind, height=4, width=4)
    weights = random(len(affinity.stencil(4)), 4, 4, seed=5)
    direction = random(*maps.shape, seed=6) - 0.5

    def loss(m):
        return jnp.sum(weights * function(m).values)

    gradient = jax.grad(loss)(jnp.asarray(maps))
    assert np.isfinite(gradient).all()
    step = 1e-3
    numeric = (loss(maps + step * direction) - loss(maps - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=2e-2, atol=2e-3)


def test_compact_takes_the_power_before_it_rounds():
    values = jnp.full((34, 2, 2), 0.9, jnp.float32)
    small = affinity.compact(affinity.Affinity(values, 5), beta=8)
    assert small.values.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(small.values, np.float32), 0.9**8, rtol=2**-9)
