"""C2AM and C2AM-H: losses by hand, a toy world whose polarity hints decide, and what is carried."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.losses import contrast
from wsss_jax.systems import saliency
from wsss_jax.systems.saliency import Contrast
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import Batch

REAL = jnp.ones(2, bool)


def test_vectors_of_foreground_and_background_by_hand():
    features = jnp.asarray([[[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]]])
    share = jnp.asarray([[[0.75, 0.5, 1.0]]])
    cells = jnp.asarray([[[True, True, False]]])
    front, back = contrast.pooled(features, share, cells)
    np.testing.assert_allclose(front, [[0.375, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(back, [[0.125, 0.5]], rtol=1e-6)


def test_cosines_are_clipped_and_know_no_length():
    a = jnp.asarray([[3.0, 0.0], [1.0, 1.0]])
    found = contrast.cosines(a, a)
    np.testing.assert_allclose(found[0], [0.9995, np.sqrt(0.5)], rtol=1e-5)
    opposite = contrast.cosines(a, -a)
    np.testing.assert_allclose(opposite, 0.0005, rtol=1e-5)


def test_pull_and_push_by_hand():
    similar = jnp.asarray([[0.9995, 0.5], [0.5, 0.9995]])
    own, other = -np.log(0.9995) * np.exp(0.25), -np.log(0.5)
    assert float(contrast.pull(similar, REAL)) == pytest.approx((own + other) / 2, rel=1e-4)
    away = (-np.log(1 - 0.9995) - np.log(0.5)) / 2
    assert float(contrast.push(similar, REAL)) == pytest.approx(away, rel=1e-4)


def test_ranks_go_by_similarity_in_each_row():
    similar = jnp.asarray([[0.99, 0.2, 0.6], [0.2, 0.99, 0.1], [0.6, 0.1, 0.99]])
    found = np.log(contrast.rank_weights(similar, jnp.ones(3, bool), 0.5)) / -0.5
    np.testing.assert_allclose(found, [[-1, 1, 0], [0, -1, 1], [0, 1, -1]], atol=1e-5)


def test_rows_that_only_fill_up_change_nothing():
    rng = np.random.default_rng(0)
    front, back = (jnp.asarray(rng.random((3, 5)), jnp.float32) for _ in range(2))
    filled = contrast.apart(front, back, jnp.asarray([True, True, False]))
    alone = contrast.apart(front[:2], back[:2], REAL)
    assert float(filled) == pytest.approx(float(alone), rel=1e-5)


def test_hints_say_where_foreground_is_and_nothing_elsewhere():
    logits = jnp.asarray([[[0.0, 5.0, -3.0]]])
    hints = jnp.asarray([[[0.4, 0.39, 0.8]]])
    cells = jnp.asarray([[[True, True, False]]])
    found = contrast.hinted(logits, hints, cells, threshold=0.4)
    assert float(found) == pytest.approx(np.log(2), rel=1e-5)
    gradient = jax.grad(lambda x: contrast.hinted(x, hints, cells, threshold=0.4))(logits)
    np.testing.assert_allclose(gradient, [[[0.5 - 0.95, 0, 0]]], atol=1e-6)
    assert float(contrast.hinted(logits, hints * 0, cells, threshold=0.4)) == 0


def test_borders_are_where_real_cells_end():
    cells = np.zeros((1, 7, 8), bool)
    cells[0, 1:6, 2:7] = True
    share = np.ones((1, 7, 8), np.float32)
    share[0, 2:5, 3:6] = 0
    found = [
        float(contrast.border_mean(jnp.asarray(share), jnp.asarray(cells), margin))
        for margin in (1, 2)
    ]
    np.testing.assert_allclose(found, [1, 16 / 24], rtol=1e-6)


def test_hints_of_a_cell_are_the_mean_of_its_known_pixels():
    plane = np.full((1, 3, 4), 255, np.int32)
    plane[0, :2, :2] = [[254, 0], [255, 127]]
    found = saliency.on_cells(jnp.asarray(plane), 2)
    np.testing.assert_allclose(found, [[[0.5, 0], [0, 0]]], atol=1e-6)


EVEN = Optim("adamw", 2e-3, new_layers=1.0, schedule="constant")
SETTINGS = Contrast("tiny", None, 8, hint_weight=3.0, optim=EVEN)


def world(seed, *, hints=True):
    """Eight red discs on green; hints lie on the middles of the discs, or on the green."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    centres = rng.uniform(24, 40, (8, 2))
    disc = np.hypot(y - centres[:, :1, None], x - centres[:, 1:, None]) < 20
    colour = np.where(disc[..., None], (0.9, 0.2, 0.2), (0.2, 0.8, 0.2))
    images = (colour + 0.1 * rng.random((8, 64, 64, 3))).astype(np.float32)
    marked = disc if hints else ~disc
    planes = np.where(marked, 254, 0).astype(np.int32)
    full = np.ones((8, 64, 64), bool)
    batch = Batch(images, np.ones((8, 1), bool), full, np.ones(8, bool), planes)
    return jax.tree.map(jnp.asarray, batch), disc


@pytest.fixture(scope="module")
def learner():
    system = saliency.make(SETTINGS, steps=100)
    start = jax.jit(system.init)(jax.random.key(0))
    return start, jax.jit(system.step)


@pytest.mark.parametrize("on_disc", [True, False])
def test_hints_decide_the_polarity(learner, on_disc):
    """The same start, the same photographs: what is hinted at becomes the foreground."""
    state, step = learner
    losses = []
    for number in range(15):
        batch, _ = world(number, hints=on_disc)
        state, metrics = step(state, batch, jax.random.key(number))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    assert step._cache_size() == 1
    batch, disc = world(99)
    found = saliency.foreground(SETTINGS, state, batch.images, batch.inside)
    centre = disc[:, 4::8, 4::8]
    inner, outer = (float(found[jnp.asarray(where)].mean()) for where in (centre, ~centre))
    assert (inner > outer) == on_disc and abs(inner - outer) > 0.2


def test_without_hints_the_border_is_background(learner):
    state, _ = learner
    bare = replace(SETTINGS, hint_weight=0.0)
    batch, _ = world(0)
    low, high = (
        saliency.foreground(
            bare, replace(state, border=jnp.float32(border)), batch.images, batch.inside
        )
        for border in (0.2, 0.8)
    )
    np.testing.assert_allclose(low, -high, atol=1e-6)
    hinted = saliency.foreground(
        SETTINGS, replace(state, border=jnp.float32(0.8)), batch.images, batch.inside
    )
    np.testing.assert_allclose(hinted, low, atol=1e-6)


def test_a_bad_step_leaves_everything_as_it_was(learner):
    state, step = learner
    batch, _ = world(0)
    broken = replace(batch, images=batch.images * jnp.nan)
    after, metrics = step(state, broken, jax.random.key(0))
    assert int(metrics["skipped"]) == 1
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        if old.dtype == jnp.float32:
            np.testing.assert_array_equal(old, new)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="hint_weight -1"):
        Contrast(hint_weight=-1.0)
    with pytest.raises(ValueError, match="hint_threshold 0"):
        Contrast(hint_threshold=0.0)
