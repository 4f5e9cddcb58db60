"""Closed-form fusion: one table of rules, one set of promises for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.ops import fuse

RULES = sorted(fuse.FUSIONS)
MEANS = ("mean", "median", "max", "min", "product", "noisy_or", "weighted_mean", "agreement_mean")
VOTES = ("majority_vote", "staple", "dawid_skene")
S, H, W, K = 4, 6, 5, 3
AGREE = jax.jit(fuse.agreement_weights)
COMPILED = {name: jax.jit(rule) for name, rule in fuse.FUSIONS.items()}


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Systems that look at the same blobs with their own noise; one lacks class 1."""
    random = np.random.default_rng(seed)
    truth = random.uniform(size=(1, H, W, K))
    scores = np.clip(truth + random.normal(0, 0.2, (S, H, W, K)), 0, 1).astype(np.float32)
    available = np.ones((S, K), bool)
    available[2, 1] = False
    return scores, available


def run(name: str, scores: np.ndarray, available: np.ndarray) -> np.ndarray:
    return np.asarray(COMPILED[name](jnp.asarray(scores), jnp.asarray(available)))


def one_pixel(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1), np.ones((len(values), 1), bool)


@pytest.mark.parametrize("name", RULES)
def test_order_of_systems_changes_nothing(name):
    scores, available = scene()
    order = np.array([2, 0, 3, 1])
    expected = run(name, scores, available)
    np.testing.assert_allclose(run(name, scores[order], available[order]), expected, atol=2e-6)


@pytest.mark.parametrize("name", RULES)
def test_classes_move_with_their_maps(name):
    scores, available = scene()
    order = np.array([1, 2, 0])
    expected = run(name, scores, available)[..., order]
    result = run(name, scores[..., order], available[:, order])
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("name", RULES)
def test_unavailable_maps_are_never_read(name):
    scores, available = scene()
    poisoned = scores.copy()
    poisoned[2, :, :, 1] = np.nan
    np.testing.assert_array_equal(run(name, poisoned, available), run(name, scores, available))


@pytest.mark.parametrize("name", RULES)
def test_a_system_without_any_class_is_as_good_as_absent(name):
    scores, available = scene()
    available[3] = False
    expected = fuse.apply(name, scores[:3], available[:3])
    np.testing.assert_allclose(fuse.apply(name, scores, available), expected, atol=2e-6)


@pytest.mark.parametrize("name", RULES)
def test_a_class_that_no_system_knows_is_zero(name):
    scores, available = scene()
    available[:, 2] = False
    fused = run(name, scores, available)
    assert (fused[..., 2] == 0).all()
    assert fused[..., 0].max() > 0


@pytest.mark.parametrize("name", RULES)
def test_results_stay_in_range(name):
    scores, available = scene()
    for extreme in (scores, np.round(scores), np.zeros_like(scores), np.ones_like(scores)):
        fused = run(name, extreme, available)
        assert fused.dtype == np.float32
        assert fused.shape == (H, W, K)
        assert np.isfinite(fused).all()
        assert fused.min() >= 0
        assert fused.max() <= 1


@pytest.mark.parametrize("name", RULES)
def test_jit_equals_eager(name):
    scores, available = scene()
    eager = fuse.FUSIONS[name](jnp.asarray(scores), jnp.asarray(available))
    np.testing.assert_allclose(run(name, scores, available), np.asarray(eager), atol=2e-6)


@pytest.mark.parametrize("name", RULES)
def test_apply_with_its_padding_equals_the_rule(name):
    scores, available = scene()
    expected = run(name, scores, available)
    np.testing.assert_allclose(fuse.apply(name, scores, available), expected, atol=2e-6)


@pytest.mark.parametrize("name", MEANS)
def test_one_available_system_comes_back(name):
    scores, _ = scene()
    available = np.zeros((S, K), bool)
    available[1] = True
    np.testing.assert_allclose(run(name, scores, available), scores[1], atol=1e-6)


@pytest.mark.parametrize("name", VOTES)
def test_one_available_system_comes_back_as_votes(name):
    scores, _ = scene()
    available = np.zeros((S, K), bool)
    available[1] = True
    voted = (scores[1] == scores[1].max(-1, keepdims=True)) & (scores[1] > 0.3)
    np.testing.assert_array_equal(run(name, scores, available) > 0.5, voted)


def transform(name: str, x: np.ndarray) -> np.ndarray:
    if name == "product":
        return x**S
    if name == "noisy_or":
        return 1 - (1 - x) ** S
    if name == "log_opinion_pool":
        return np.clip(x, 1e-3, 1 - 1e-3)
    if name in VOTES:
        return ((x == x.max(-1, keepdims=True)) & (x > 0.3)).astype(np.float32)
    return x


@pytest.mark.parametrize("name", RULES)
def test_identical_systems_give_the_documented_transform(name):
    scores, _ = scene()
    same = np.repeat(scores[:1], S, axis=0)
    fused = run(name, same, np.ones((S, K), bool))
    np.testing.assert_allclose(
        fused, transform(name, scores[0]), atol=2e-2 if name in VOTES else 2e-6
    )


def logit(x: float) -> float:
    return float(np.log(x / (1 - x)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", 0.5),
        ("median", 0.5),
        ("max", 0.8),
        ("min", 0.2),
        ("product", 0.08),
        ("noisy_or", 1 - 0.8 * 0.5 * 0.2),
        ("log_opinion_pool", 1 / (1 + np.exp(-(logit(0.2) + logit(0.5) + logit(0.8)) / 3))),
        ("majority_vote", 2 / 3),
        ("weighted_mean", 0.5),
        ("agreement_mean", 0.5),
    ],
)
def test_known_values(name, expected):
    scores, available = one_pixel(0.2, 0.5, 0.8)
    np.testing.assert_allclose(run(name, scores, available), expected, rtol=1e-5)


def test_every_rule_has_a_known_value_somewhere():
    assert set(RULES) == {*MEANS, *VOTES, "log_opinion_pool"}


def test_median_of_an_even_number_is_the_mean_of_the_middle_two():
    np.testing.assert_allclose(run("median", *one_pixel(0.9, 0.1, 0.4, 0.2)), 0.3, rtol=1e-6)


def test_median_counts_only_the_available():
    scores, available = scene(1)
    fused = run("median", scores, available)
    for k in range(K):
        expected = np.median(scores[available[:, k], :, :, k], axis=0)
        np.testing.assert_allclose(fused[..., k], expected, atol=1e-6)


def test_a_zero_is_no_veto_in_the_log_opinion_pool():
    assert 0.4 < run("log_opinion_pool", *one_pixel(0.0, 0.9, 0.99)).item() < 0.6


def test_majority_vote_gives_each_system_one_class_and_ties_both():
    scores = np.array([[0.9, 0.8], [0.6, 0.6], [0.2, 0.1]], np.float32).reshape(3, 1, 1, 2)
    fused = run("majority_vote", scores, np.ones((3, 2), bool))
    np.testing.assert_allclose(fused.ravel(), [2 / 3, 1 / 3], rtol=1e-6)
    strict = fuse.majority_vote(jnp.asarray(scores), jnp.ones((3, 2), bool), threshold=0.7)
    np.testing.assert_allclose(np.asarray(strict).ravel(), [1 / 3, 0], rtol=1e-6)


def test_weights_per_system_and_per_class():
    scores, available = scene()
    by_system = np.array([1, 2, 0, 5], np.float32)
    fused = fuse.weighted_mean(
        jnp.asarray(scores), jnp.asarray(available), weights=jnp.asarray(by_system)
    )
    expected = np.average(scores, axis=0, weights=by_system)
    np.testing.assert_allclose(np.asarray(fused), expected, atol=1e-6)
    by_class = np.array([[1, 3, 0], [1, 0, 0], [1, np.nan, 0], [0, 1, 0]], np.float32)
    fused = np.asarray(
        fuse.weighted_mean(
            jnp.asarray(scores), jnp.asarray(available), weights=jnp.asarray(by_class)
        )
    )
    np.testing.assert_allclose(fused[..., 0], scores[:3, ..., 0].mean(0), atol=1e-6)
    expected = 0.75 * scores[0, ..., 1] + 0.25 * scores[3, ..., 1]
    np.testing.assert_allclose(fused[..., 1], expected, atol=1e-6)
    np.testing.assert_allclose(fused[..., 2], scores[..., 2].mean(0), atol=1e-6)


def test_agreement_finds_the_noise_and_forgives_the_scale():
    random = np.random.default_rng(3)
    blob = random.uniform(size=(16, 16))
    noise = random.uniform(size=(16, 16))
    maps = np.stack([blob, blob**2, 0.3 * blob, noise]).astype(np.float32)[..., None]
    weights = np.asarray(AGREE(jnp.asarray(maps), jnp.ones((4, 1), bool)))[:, 0]
    assert weights[:3].min() > 0.7
    assert weights[3] < 0.3
    expected = [
        np.corrcoef(maps[i].ravel(), np.delete(maps, i, axis=0).mean(0).ravel())[0, 1]
        for i in range(4)
    ]
    np.testing.assert_allclose(weights, np.clip(expected, 0, 1), atol=1e-5)


def test_agreement_weights_of_a_pair_are_equal_and_of_the_unknown_zero():
    scores, available = scene()
    available[:, 0] = [True, True, False, False]
    available[:, 2] = [False, True, False, False]
    weights = np.asarray(AGREE(jnp.asarray(scores), jnp.asarray(available)))
    np.testing.assert_allclose(weights[0, 0], weights[1, 0], rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 2], [0, 1, 0, 0])
    assert (weights[~available] == 0).all()


def test_saliency_halves_what_does_not_stand_out():
    scores = jnp.asarray(scene()[0][0])
    half = fuse.with_saliency(scores, jnp.zeros((H, W)))
    np.testing.assert_allclose(np.asarray(half), np.asarray(scores) / 2)
    np.testing.assert_array_equal(
        np.asarray(fuse.with_saliency(scores, jnp.ones((H, W)))), np.asarray(scores)
    )


@pytest.mark.parametrize("name", ["mean", "log_opinion_pool", "noisy_or", "agreement_mean"])
def test_gradients_are_finite(name):
    scores, available = scene()
    known = jnp.asarray(available)
    slope = jax.jit(jax.grad(lambda x: fuse.FUSIONS[name](x, known).sum()))(jnp.asarray(scores))
    assert bool(jnp.isfinite(slope).all())


def test_apply_compiles_for_few_shapes_and_names_the_nearest_rule():
    fuse._compiled.clear_cache()
    for height, width in ((40, 41), (41, 42), (44, 45), (45, 40)):
        fuse.apply("mean", np.zeros((2, height, width, 3), np.float32), np.ones((2, 3), bool))
    assert fuse._compiled._cache_size() == 1
    with pytest.raises(ValueError, match="mean"):
        fuse.apply("maen", *scene())
    with pytest.raises(ValueError, match="one flag for each pair"):
        fuse.apply("mean", scene()[0], np.ones((S, K + 1), bool))
    assert fuse.apply("mean", np.zeros((2, 3, 4, 0), np.float32), np.ones((2, 0), bool)).size == 0
