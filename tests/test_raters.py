"""STAPLE and Dawid-Skene: right where raters err alone, wrong where they err together."""

import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax.ops import fuse, metrics, raters

S, H, W = 5, 40, 40
STAPLE = jax.jit(raters.staple, static_argnames=("threshold", "steps"))
FIT_STAPLE = jax.jit(raters.fit_staple)
DAWID_SKENE = jax.jit(raters.fit_dawid_skene)


def independent(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One class in 30 % of the pixels, and raters that err by themselves at known rates."""
    random = np.random.default_rng(seed)
    truth = random.random((H, W)) < 0.3
    sensitivity = np.array([0.95, 0.9, 0.8, 0.7, 0.6])
    specificity = np.array([0.9, 0.95, 0.8, 0.9, 0.7])
    chance = np.where(truth, sensitivity[:, None, None], 1 - specificity[:, None, None])
    return truth, random.random((S, H, W)) < chance, sensitivity, specificity


def as_scores(votes: np.ndarray) -> np.ndarray:
    return votes.astype(np.float32)[..., None]


def test_staple_recovers_the_rates_of_independent_raters():
    truth, votes, sensitivity, specificity = independent()
    rates = FIT_STAPLE(
        jnp.asarray(votes.reshape(S, -1, 1)), jnp.ones((H * W, 1)), jnp.ones((S, 1, 1), bool)
    )
    np.testing.assert_allclose(np.asarray(rates.sensitivity)[:, 0], sensitivity, atol=0.06)
    np.testing.assert_allclose(np.asarray(rates.specificity)[:, 0], specificity, atol=0.06)
    everyone = np.ones((S, 1), bool)
    fused = fuse.apply("staple", as_scores(votes), everyone)[..., 0] > 0.5
    voted = fuse.apply("majority_vote", as_scores(votes), everyone)[..., 0] > 0.5
    assert (fused == truth).mean() > (voted == truth).mean()


def slow_staple(votes: np.ndarray, steps: int) -> np.ndarray:
    """Warfield 2004, equations 14 to 20, one pixel and one rater at a time."""
    pixels = votes.shape[1]
    prior = votes.mean()
    p, q = np.full(len(votes), raters.FIRST_GUESS), np.full(len(votes), raters.FIRST_GUESS)
    truth = np.zeros(pixels)
    for _ in range(steps + 1):
        for i in range(pixels):
            a, b = prior, 1 - prior
            for j, vote in enumerate(votes[:, i]):
                a *= p[j] if vote else 1 - p[j]
                b *= 1 - q[j] if vote else q[j]
            truth[i] = a / (a + b)
        for j, vote in enumerate(votes):
            p[j] = np.clip((truth * vote).sum() / truth.sum(), 1e-4, 1 - 1e-4)
            q[j] = np.clip(((1 - truth) * ~vote).sum() / (1 - truth).sum(), 1e-4, 1 - 1e-4)
    return truth


def test_staple_equals_the_equations_written_as_loops():
    votes = independent(1)[1][:3, :6, :7]
    fused = STAPLE(jnp.asarray(as_scores(votes)), jnp.ones((3, 1), bool), steps=4)
    expected = slow_staple(votes.reshape(3, -1), 4).reshape(6, 7)
    np.testing.assert_allclose(np.asarray(fused)[..., 0], expected, atol=1e-4)


def test_counting_patterns_or_pixels_is_the_same(monkeypatch):
    scores = jnp.asarray(np.random.default_rng(0).random((4, 9, 9, 2), np.float32))
    available = jnp.ones((4, 2), bool).at[1, 0].set(False)
    inside = jnp.ones((9, 9), bool).at[7:].set(False)
    patterns = STAPLE(scores, available, inside)
    monkeypatch.setattr(raters, "MAX_POOLED_SYSTEMS", 3)
    pixels = jax.jit(lambda *given: raters.staple(*given))(scores, available, inside)
    np.testing.assert_allclose(np.asarray(patterns), np.asarray(pixels), atol=1e-5)


def test_dawid_skene_recovers_the_confusion_of_independent_raters():
    random = np.random.default_rng(0)
    confusion = np.stack([np.full((3, 3), (1 - a) / 2) for a in (0.9, 0.8, 0.7, 0.6)])
    for matrix, a in zip(confusion, (0.9, 0.8, 0.7, 0.6), strict=True):
        np.fill_diagonal(matrix, a)
    confusion[1, 2] = [0.45, 0.05, 0.5]
    truth = random.choice(3, 4000, p=[0.5, 0.3, 0.2])
    said = (confusion[:, truth].cumsum(-1) < random.random((4, 4000, 1))).sum(-1)
    posterior, found = DAWID_SKENE(
        jnp.asarray(np.eye(3, dtype=np.float32)[said]),
        jnp.ones(4, bool),
        jnp.ones(3, bool),
        jnp.ones(4000),
    )
    np.testing.assert_allclose(np.asarray(found), confusion, atol=0.06)
    np.testing.assert_allclose(np.asarray(posterior).sum(-1), 1, atol=1e-5)
    votes = np.eye(3)[said].sum(0).argmax(-1)
    assert (np.asarray(posterior).argmax(-1) == truth).mean() > (votes == truth).mean()


def test_dawid_skene_leaves_out_what_is_not_in_the_image():
    scores = np.random.default_rng(0).random((3, 6, 6, 3)).astype(np.float32)
    available = np.ones((3, 3), bool)
    available[:, 1] = False
    present = [0, 2]
    fused = fuse.apply("dawid_skene", scores, available)
    assert (fused[..., 1] == 0).all()
    without = fuse.apply("dawid_skene", scores[..., present], available[:, present])
    np.testing.assert_allclose(fused[..., present], without, atol=1e-6)


def test_padding_does_not_count():
    votes = independent(3)[1][:3, :6, :6]
    padded = np.zeros((3, 9, 8, 1), np.float32)
    padded[:, :6, :6] = as_scores(votes)
    inside = np.zeros((9, 8), bool)
    inside[:6, :6] = True
    everyone = jnp.ones((3, 1), bool)
    for rule in map(jax.jit, fuse.COUNTING.values()):
        whole = rule(jnp.asarray(padded), everyone, jnp.asarray(inside))
        tight = rule(jnp.asarray(as_scores(votes)), everyone)
        np.testing.assert_allclose(np.asarray(whole)[:6, :6], np.asarray(tight), atol=1e-5)


def correlated(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Square objects, and six systems of which most spill over the same surroundings."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:H, :W]
    y, x = random.integers(12, 28, 2)
    distance = np.maximum(abs(rows - y), abs(columns - x))
    truth = distance <= 6
    halo = (distance <= 10) & (random.random((H, W)) < 0.6)
    spill = np.array([0.9, 0.8, 0.5, 0.3, 0.2, 0.1])[:, None, None]
    found = np.array([0.95, 0.9, 0.8, 0.7, 0.7, 0.6])[:, None, None]
    sees = random.random((6, H, W))
    return truth, np.where(truth, sees < found, halo[None] & (sees < spill))


def test_em_believes_errors_that_raters_share_and_a_plain_vote_does_not():
    counts = {name: 0 for name in ("majority_vote", "staple", "dawid_skene")}
    for seed in range(3):
        truth, votes = correlated(seed)
        for name in counts:
            fused = fuse.apply(name, as_scores(votes), np.ones((6, 1), bool))[..., 0] > 0.5
            pair = metrics.confusion(truth.astype(np.uint8), fused.astype(np.uint8), 1)
            counts[name] = counts[name] + pair.counts
    score = {name: float(metrics.mean_iou(total)) for name, total in counts.items()}
    assert score["dawid_skene"] < score["majority_vote"] - 0.02, score
    assert score["staple"] < score["majority_vote"] - 0.02, score
