"""The walk equals a dense float64 matrix power, on every route, and keeps its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.ops import affinity, walk

SIZES = [(1, 1), (1, 4), (5, 1), (3, 9), (12, 13)]


def example(height, width, channels=3, *, radius=3, seed=0, batch=()):
    """Random scores, and affinities so weak that 256 steps do not mix all, some 0 and some 1."""
    generator = np.random.default_rng(seed)
    scores = generator.random((*batch, height, width, channels)).astype(np.float32)
    drawn = generator.random((*batch, len(affinity.stencil(radius)), height, width))
    values = np.where(drawn > 0.998, 1, 0.6 * np.clip(1.6 * drawn - 0.3, 0, 1)).astype(np.float32)
    values = jnp.where(affinity.joined(height, width, radius), values, 0)
    return jnp.asarray(scores), affinity.Affinity(values, radius)


def dense(pairs, beta):
    """W^beta (n, n) in float64, from the definition."""
    values = np.asarray(pairs.values, np.float64)
    _, height, width = values.shape
    matrix = np.eye(height * width)
    for plane, (dy, dx) in zip(values, affinity.stencil(pairs.radius), strict=True):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    i, j = y * width + x, (y + dy) * width + x + dx
                    matrix[i, j] = matrix[j, i] = plane[y, x] ** beta
    return matrix


def power(scores, pairs, beta, steps):
    """The slow, obvious walk: a dense transition matrix, its rows summing to one, to the power."""
    weights = dense(pairs, beta)
    transition = weights / weights.sum(1, keepdims=True)
    flat = np.asarray(scores, np.float64).reshape(-1, scores.shape[-1])
    return (np.linalg.matrix_power(transition, steps) @ flat).reshape(scores.shape)


def graph_route(scores, pairs, *, beta, steps):
    flat = scores.reshape(-1, scores.shape[-1])
    walked = walk.propagate_graph(flat, walk.as_sparse(pairs), beta=beta, steps=steps)
    return walked.reshape(scores.shape)


ROUTES = {
    "chebyshev": walk.jitted,
    "stepwise": jax.jit(walk.propagate_stepwise, static_argnames=("beta", "steps")),
    "graph": jax.jit(graph_route, static_argnames=("beta", "steps")),
}
route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


@route
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_walk_equals_the_dense_power(route, size):
    scores, pairs = example(*size, radius=5)
    result = route(scores, pairs, beta=8, steps=256)
    assert result.shape == scores.shape
    np.testing.assert_allclose(result, power(scores, pairs, 8, 256), atol=1e-4)


@pytest.mark.parametrize("steps", [0, 1, 27, 64])
def test_any_number_of_steps_and_power(steps):
    scores, pairs = example(4, 5, seed=steps)
    result = walk.jitted(scores, pairs, beta=2.5, steps=steps)
    np.testing.assert_allclose(result, power(scores, pairs, 2.5, steps), atol=1e-4)


def test_worst_scores_for_a_polynomial_keep_the_tolerance():
    # One hot pixel and a chessboard excite the whole spectrum, both ends of it included.
    for seed, scale in ((1, 0.05), (2, 1.0), (3, 30.0)):
        _, pairs = example(9, 10, radius=2, seed=seed)
        pairs = affinity.Affinity(jnp.clip(pairs.values * scale, 0, 1), 2)
        hot = np.zeros((9, 10, 4), np.float32)
        hot[4, 5, 0] = hot[0, 0, 1] = 1
        hot[..., 2] = np.indices((9, 10)).sum(0) % 2
        hot[..., 3] = 2.0 * (np.indices((9, 10)).sum(0) % 2) - 1
        result = walk.jitted(jnp.asarray(hot), pairs, beta=1, steps=256)
        np.testing.assert_allclose(result, power(hot, pairs, 1, 256), atol=1e-4)


def test_looser_tolerance_takes_fewer_products_and_keeps_its_promise():
    scores, pairs = example(8, 8)
    exact = power(scores, pairs, 8, 256)
    default, loose, strict = (len(walk.coefficients(256, t)) - 1 for t in (1e-4, 1e-2, 1e-5))
    assert default == 64 and loose < 50 < strict < 80
    coarse = walk.jitted(scores, pairs, beta=8, steps=256, tolerance=1e-2)
    np.testing.assert_allclose(coarse, exact, atol=1e-2)


def test_few_steps_and_zero_tolerance_step_one_by_one():
    assert walk.coefficients(8, 1e-4) is None
    assert walk.coefficients(256, 0) is None
    scores, pairs = example(5, 6)
    same = ROUTES["stepwise"](scores, pairs, beta=8, steps=8)
    np.testing.assert_array_equal(walk.jitted(scores, pairs, beta=8, steps=8), same)


@pytest.mark.parametrize("steps", [20, 64, 255, 1024])
def test_coefficients_sum_to_one_and_follow_the_power(steps):
    series = walk.coefficients(steps, 1e-4)
    assert series is not None
    assert sum(series) == pytest.approx(1, abs=1e-12)
    x = np.linspace(-1, 1, 2001)
    error = np.polynomial.chebyshev.chebval(x, series) - x**steps
    assert np.abs(error).max() <= 1e-4


@route
def test_constants_stay_constant(route):
    scores, pairs = example(12, 13)
    result = route(jnp.full_like(scores, 0.7), pairs, beta=8, steps=256)
    np.testing.assert_allclose(result, 0.7, atol=5e-5)


def test_rows_of_the_transition_sum_to_one_and_none_is_negative():
    _, pairs = example(4, 5)
    rows = ROUTES["stepwise"](jnp.eye(20).reshape(4, 5, 20), pairs, beta=8, steps=1)
    rows = np.asarray(rows).reshape(20, 20)
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
    assert rows.min() >= 0


@route
def test_mass_weighted_by_degree_is_conserved(route):
    scores, pairs = example(7, 6)
    degree = dense(pairs, 8).sum(1).reshape(7, 6, 1)
    result = route(scores, pairs, beta=8, steps=256)
    before, after = ((degree * np.asarray(s)).sum((0, 1)) for s in (scores, result))
    np.testing.assert_allclose(after, before, rtol=1e-4)


@pytest.mark.parametrize(
    "turn",
    [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.swapaxes(0, 1)],
    ids=["upside down", "mirrored", "transposed"],
)
def test_walk_turns_with_the_image(turn):
    generator = np.random.default_rng(0)
    image = jnp.asarray(generator.random((8, 9, 3)), jnp.float32)
    scores = jnp.asarray(generator.random((8, 9, 2)), jnp.float32)

    def refine(image, scores):
        pairs = affinity.from_colour(image, radius=3, sigma_colour=0.3, sigma_space=3.0)
        return walk.propagate(scores, pairs, beta=2, steps=64)

    turned, straight = jax.jit(refine)(turn(image), turn(scores)), jax.jit(refine)(image, scores)
    np.testing.assert_allclose(turned, turn(straight), atol=1e-5)


def test_isolated_pixels_keep_their_score():
    scores, pairs = example(6, 7)
    result = walk.jitted(scores, affinity.Affinity(pairs.values * 0, 3), beta=8, steps=256)
    np.testing.assert_allclose(result, scores, atol=1e-5)


def test_values_of_pairs_that_leave_the_image_are_ignored():
    scores, pairs = example(6, 7)
    dirty = jnp.where(affinity.joined(6, 7, 3), pairs.values, 0.5)
    clean = walk.jitted(scores, pairs, beta=8, steps=16)
    result = walk.jitted(scores, affinity.Affinity(dirty, 3), beta=8, steps=16)
    np.testing.assert_array_equal(result, clean)


def test_a_padded_batch_is_its_images_one_by_one():
    sizes = [(9, 8), (4, 8), (1, 1)]
    generator = np.random.default_rng(0)
    images = generator.random((3, 9, 8, 3)).astype(np.float32)
    scores, inside = np.zeros((3, 9, 8, 2), np.float32), np.zeros((3, 9, 8), bool)
    for i, (h, w) in enumerate(sizes):
        inside[i, :h, :w] = True
        scores[i, :h, :w] = generator.random((h, w, 2))

    @jax.jit
    def refine(image, scores, inside=None):
        pairs = affinity.from_colour(
            image, radius=3, sigma_colour=0.3, sigma_space=3.0, inside=inside
        )
        return walk.propagate(scores, pairs, beta=2, steps=256)

    batch = np.array(refine(*map(jnp.asarray, (images, scores, inside))))
    for i, (h, w) in enumerate(sizes):
        alone = refine(jnp.asarray(images[i, :h, :w]), jnp.asarray(scores[i, :h, :w]))
        np.testing.assert_allclose(batch[i, :h, :w], alone, atol=1e-5)
    assert not batch[~inside].any()


def test_jit_equals_eager():
    scores, pairs = example(4, 5, radius=2)
    with jax.disable_jit():
        eager = walk.propagate(scores, pairs, beta=8, steps=24)
    np.testing.assert_allclose(walk.jitted(scores, pairs, beta=8, steps=24), eager, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "beta"),
    [("chebyshev", 3), ("stepwise", 2.5), ("graph", 1)],
)
def test_gradients_are_those_of_finite_differences(name, beta):
    with jax.enable_x64(True):
        scores, pairs = example(4, 5, 2)
        target = jnp.asarray(np.random.default_rng(1).random(scores.shape), jnp.float64)

        @jax.jit
        def loss(scores, values):
            pairs_of = affinity.Affinity(values, 3)
            return jnp.sum(target * ROUTES[name](scores, pairs_of, beta=beta, steps=32) ** 2)

        at = (scores.astype(jnp.float64), jnp.clip(pairs.values.astype(jnp.float64), 0.05, 0.95))
        gradients = jax.grad(loss, argnums=(0, 1))(*at)
        for i, gradient in enumerate(gradients):
            ways = np.random.default_rng(2).standard_normal((3, *at[i].shape))
            for way in ways:
                ahead, behind = (
                    loss(*(a + s * way if j == i else a for j, a in enumerate(at)))
                    for s in (1e-5, -1e-5)
                )
                numeric = (ahead - behind) / 2e-5
                np.testing.assert_allclose(jnp.sum(gradient * way), numeric, rtol=1e-5, atol=1e-7)


def test_gradient_is_finite_at_zero_affinity_and_batched_one_by_one():
    scores, pairs = example(5, 6, batch=(2,))

    @jax.jit
    def gradient(scores, pairs):
        loss = lambda s, p: jnp.sum(walk.propagate(s, p, beta=8, steps=256) ** 2)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(scores, pairs)

    both = gradient(scores, pairs)
    for i in range(2):
        alone = gradient(scores[i], affinity.Affinity(pairs.values[i], 3))
        for together, single in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            assert np.isfinite(single).all()
            np.testing.assert_allclose(together[i], single, atol=1e-5)


def test_bfloat16_affinities_stay_within_the_stated_bound():
    for seed in range(3):
        scores, pairs = example(12, 13, radius=5, seed=seed)
        small = affinity.compact(pairs, beta=8)
        result = walk.jitted(scores, small, beta=1, steps=256)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, power(scores, pairs, 8, 256), atol=2e-3)
        ones = walk.jitted(jnp.ones_like(scores), small, beta=1, steps=256)
        np.testing.assert_allclose(ones, 1, atol=5e-5)


def test_2048_pixels_square_with_20_classes_fit_into_2_gib():
    scores = jax.ShapeDtypeStruct((512, 512, 20), jnp.float32)  # stride 4
    values = jax.ShapeDtypeStruct((34, 512, 512), jnp.float32)
    lowered = walk.jitted.lower(scores, affinity.Affinity(values, 5), beta=8, steps=256)
    memory = lowered.compile().memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert needed + memory.output_size_in_bytes < 2**29  # a quarter of the 2 GiB allowed


def test_nan_spreads_and_negative_scores_are_averaged():
    scores, pairs = example(6, 7)
    result = walk.jitted(scores.at[0, 0, 0].set(jnp.nan), pairs, beta=8, steps=64)
    assert np.isnan(result[..., 0]).any() and np.isfinite(result[..., 1:]).all()
    negative = walk.jitted(-scores, pairs, beta=8, steps=64)
    np.testing.assert_array_equal(negative, -walk.jitted(scores, pairs, beta=8, steps=64))


def test_half_precision_scores_come_back_as_float32():
    scores, pairs = example(4, 4)
    half = scores.astype(jnp.float16)
    result = walk.jitted(half, pairs, beta=8, steps=64)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, power(half, pairs, 8, 64), atol=1e-4)


def test_one_graph_edge_by_hand():
    graph = walk.Graph(jnp.array([0]), jnp.array([2]), jnp.array([1.0]))
    scores = jnp.array([[1.0], [5.0], [0.0]])
    result = walk.propagate_graph(scores, graph, beta=8, steps=1)
    np.testing.assert_allclose(result, [[0.5], [5.0], [0.5]])


def test_wrong_sizes_and_numbers_are_refused():
    scores, pairs = example(4, 5)
    with pytest.raises(ValueError, match="do not fit affinity"):
        walk.propagate(scores[:3], pairs, beta=8, steps=4)
    with pytest.raises(ValueError, match="do not fit affinity"):
        walk.propagate(scores[None], pairs, beta=8, steps=4)
    with pytest.raises(ValueError, match="radius 4 has"):
        walk.propagate(scores, affinity.Affinity(pairs.values, 4), beta=8, steps=4)
    with pytest.raises(ValueError, match="beta is 0"):
        walk.propagate(scores, pairs, beta=0, steps=4)
    with pytest.raises(ValueError, match="steps is -1"):
        walk.propagate_stepwise(scores, pairs, beta=8, steps=-1)
    with pytest.raises(ValueError, match="tolerance is -1"):
        walk.propagate(scores, pairs, beta=8, steps=4, tolerance=-1.0)
    with pytest.raises(ValueError, match="one image"):
        walk.as_sparse(affinity.Affinity(pairs.values[None], 3))
