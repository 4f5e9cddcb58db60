"""The combiner starts as the log-opinion pool, and nothing it should not see changes it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.combiner import consensus as evidence_ops
from wsss_jax.combiner import fusion, label_free
from wsss_jax.combiner import network as networks
from wsss_jax.combiner.batches import EvidenceBatches, batched, evidence_groups, slots_for
from wsss_jax.combiner.evidence import grid_of
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import GROUPS, CombinerShape
from wsss_jax.ops import fuse, losses
from wsss_jax.study import fusion_world
from wsss_jax.train import state as states

SMALL = CombinerShape(width=8, walk_steps=2)
WORLD = fusion_world.make(6, seed=3, size=24)


def evidence(ids=("0", "1"), **changes):
    examples = [WORLD.read(id)._replace(**changes) for id in ids]
    return batched(examples, rows=len(examples), slots=2, cells=24)


@pytest.fixture(scope="module")
def network():
    """A combiner whose every weight is random, so that nothing is hidden by a zero."""
    network = states.functional(networks.build(SMALL, features=0, key=jax.random.key(0)))
    keys = iter(jax.random.split(jax.random.key(1), 64))
    params = jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), network.params
    )
    return network._replace(params=params)


@pytest.fixture(scope="module")
def says(network):
    module = network.bind(network.params, network.stats)
    call = jax.jit(lambda e, available: tuple(module(e, available)))
    return lambda e, available=None: call(e, e.available if available is None else available)


def test_untrained_it_is_the_log_opinion_pool():
    e = evidence()
    module = network.build(SMALL, features=0, key=jax.random.key(0))
    logits, gates = jax.jit(lambda e: tuple(module(e, e.available)))(e)
    for row in range(2):
        pool = fuse.apply("log_opinion_pool", e.scores[row], e.available[row])
        for slot in np.flatnonzero(e.present[row]):
            share = jax.nn.sigmoid(logits[row, ..., 1 + slot] - logits[row, ..., 0])
            np.testing.assert_allclose(share, pool[..., slot], atol=1e-5)
            np.testing.assert_allclose(gates[row, ..., slot], 1 / 6, atol=1e-6)


def test_the_order_of_systems_and_classes_does_not_matter(says):
    e = evidence(("0", "2"))
    logits, gates = says(e)
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = replace(
        e, scores=e.scores[:, order], available=e.available[:, order], peak=e.peak[:, order]
    )
    again, gates_again = says(moved)
    np.testing.assert_allclose(again, logits, atol=1e-4)
    np.testing.assert_allclose(gates_again, gates[:, order], atol=1e-5)
    swapped = replace(
        e,
        scores=e.scores[..., ::-1],
        available=e.available[..., ::-1],
        peak=e.peak[..., ::-1],
        present=e.present[..., ::-1],
    )
    other, _ = says(swapped)
    np.testing.assert_allclose(other[..., 1:], logits[..., :0:-1], atol=1e-4)


def test_a_system_that_is_left_out_leaves_no_trace(says):
    e = evidence()
    part = e.available.copy()
    part[:, 2] = False
    noise = np.random.default_rng(0).random(e.scores[:, 2].shape, np.float32)
    other = replace(e, scores=e.scores.copy(), peak=e.peak.copy())
    other.scores[:, 2], other.peak[:, 2] = noise, 7.0
    for first, second in zip(says(e, part), says(other, part), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
    assert not np.asarray(says(e, part)[1])[:, 2].any()


def test_noise_hardly_moves_what_the_other_systems_have_in_common():
    e = jax.tree.map(jnp.asarray, evidence())
    noise = np.random.default_rng(0).random(e.scores[:, 2].shape, np.float32)
    noisy = e.scores.at[:, 2].set(jnp.where(e.inside[..., None], noise, 0))
    rest = e.available & (np.arange(6) != 2)[None, :, None]
    wanted = evidence_ops.statistics(e.scores, rest)[..., 0]
    weights = evidence_ops.heard(evidence_ops.agreement(noisy, e.available, e.inside))
    moved = [
        float(np.abs(evidence_ops.statistics(noisy, e.available, by)[..., 0] - wanted).mean())
        for by in (weights, None)
    ]
    assert moved[0] < moved[1] / 2, moved


def test_noise_hardly_moves_what_the_network_adds(network, monkeypatch):
    e = jax.tree.map(jnp.asarray, evidence())
    noise = np.random.default_rng(0).random(e.scores[:, 2].shape, np.float32)
    noisy = replace(e, scores=e.scores.at[:, 2].set(jnp.where(e.inside[..., None], noise, 0)))
    rest = e.available & (np.arange(6) != 2)[None, :, None]
    module = network.bind(network.params, network.stats)

    def moved():
        ground = jax.jit(lambda available: module(noisy, available).logits[..., 0])
        return float(jnp.abs(ground(noisy.available) - ground(rest)).mean())

    found = moved()
    monkeypatch.setattr(evidence_ops, "heard", jnp.ones_like)
    assert found < moved() / 2, found


def test_equal_weights_of_systems_are_as_none_whatever_their_size():
    e = jax.tree.map(jnp.asarray, evidence())
    found = evidence_ops.statistics(e.scores, e.available, jnp.full(e.available.shape, 0.3))
    np.testing.assert_allclose(found, evidence_ops.statistics(e.scores, e.available), atol=1e-6)


def test_a_system_more_that_knows_nothing_and_slots_that_fill_up_change_nothing(says):
    e = evidence()
    logits, gates = says(e)

    def more(array, axis):
        return np.concatenate([array, np.zeros_like(np.take(array, [0], axis))], axis)

    wider = replace(
        e, scores=more(e.scores, 1), available=more(e.available, 1), peak=more(e.peak, 1)
    )
    again, gates_again = says(wider)
    np.testing.assert_allclose(again, logits, atol=1e-5)
    np.testing.assert_allclose(gates_again[:, :6], gates, atol=1e-6)
    slots = replace(
        e,
        scores=more(e.scores, 4),
        available=more(e.available, 2),
        peak=more(e.peak, 2),
        present=more(e.present, 1),
        probe=more(e.probe, 3),
    )
    again, _ = says(slots)
    np.testing.assert_allclose(again[..., :3], logits, atol=1e-4)
    assert np.isneginf(np.asarray(again)[..., 3]).all()


def test_padding_of_the_canvas_changes_nothing(says):
    examples = [WORLD.read("0"), WORLD.read("1")]
    tight = batched(examples, rows=2, slots=2, cells=24)
    wide = batched(examples, rows=2, slots=2, cells=32)
    for first, second in zip(says(tight), says(wide), strict=True):
        first, second = np.asarray(first), np.asarray(second)
        cut = second[:, :24, :24] if first.ndim == 4 else second[:, :, :24, :24]
        np.testing.assert_allclose(first, cut, atol=2e-4)


def test_gates_are_shares_and_probabilities_sum_to_one(says):
    e = evidence()
    logits, gates = says(e)
    np.testing.assert_allclose(
        np.asarray(gates).sum(axis=1), np.broadcast_to(e.present[:, None, None], (2, 24, 24, 2)),
        atol=1e-5,
    )  # fmt: skip
    total = np.asarray(network.Combined(logits, gates).probabilities()).sum(axis=-1)
    np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize("group", GROUPS[1:])
def test_every_group_can_be_switched_off(group):
    e = evidence()
    shape = replace(SMALL, groups=tuple(name for name in GROUPS if name != group))
    module = network.build(shape, features=4, key=jax.random.key(0))
    e = replace(e, features=np.ones((*e.images.shape[:3], 4), np.float32))
    logits = jax.eval_shape(lambda e: module(e, e.available).logits, e)
    assert logits.shape == (2, 24, 24, 3)


def test_unknown_groups_are_named():
    with pytest.raises(ValueError, match="colour"):
        CombinerShape(groups=("own", "colour"))


def test_the_world_is_the_same_for_the_same_seed_and_its_systems_err():
    again = fusion_world.make(6, seed=3, size=24)
    for name in ("images", "labels", "masks", "scores", "saliency", "edges"):
        np.testing.assert_array_equal(getattr(again, name), getattr(WORLD, name))
    other = fusion_world.make(6, seed=4, size=24)
    assert (other.masks != WORLD.masks).any()
    absent = ~WORLD.labels[:, None, None, None, :]
    assert not np.where(absent, WORLD.scores, 0).any()
    assert WORLD.scores.min() >= 0 and WORLD.scores.max() <= 1
    shown = np.stack([(WORLD.masks == c + 1).any(axis=(1, 2)) for c in range(6)], axis=1)
    assert not (shown & ~WORLD.labels).any()
    with pytest.raises(ValueError, match="24"):
        fusion_world.make(1, seed=0, size=8)


@pytest.mark.parametrize("systems", [1, 2, 3, 4, 5, 6])
def test_splits_are_halves_that_differ(systems):
    seen = label_free.splits(systems, 4, seed=0)
    assert seen.shape == (4, systems) and seen.any(axis=1).all()
    assert (seen == label_free.splits(systems, 4, seed=0)).all()
    if systems >= 4:
        assert (seen[0] ^ seen[1]).all() and (seen[2] ^ seen[3]).all()
        assert abs(int(seen[0].sum()) - systems / 2) <= 0.5
    elif systems > 1:
        assert (seen.sum(axis=1) == systems - 1).all()


def test_random_parts_are_never_empty_and_sometimes_everything():
    available = jnp.ones((400, 5, 2), bool).at[:, 0, 1].set(False)
    part = np.asarray(evidence_ops.random_part(available, 0.5, jax.random.key(0)))
    assert (part <= np.asarray(available)).all()
    assert part.any(axis=1).all()
    whole = (part == np.asarray(available)).all(axis=(1, 2)).mean()
    assert 0.5 < whole < 0.75  # half of them, and one fifth of the other half


def test_being_surer_is_no_better_at_predicting_a_system_that_is_left_out(monkeypatch):
    e, network = evidence(), fusion.structure(SMALL, 0)
    problem = fusion.make_distilled(Protocol(shape=SMALL), features=0, steps=1)
    state = problem.init(jax.random.key(0))

    def score(times: float) -> float:
        def said(network, state, evidence, available):
            mean = evidence.scores.mean(axis=1)  # absent slots are the second of images with one
            maps = jnp.where(evidence.present[:, None, None], times * mean, -jnp.inf)
            ground = jnp.full((*mean.shape[:-1], 1), 0.4 * times)
            return network.Combined(jnp.concatenate([ground, maps], axis=-1), None)

        monkeypatch.setattr(fusion, "combine", said)
        return fusion.left_out_score(np.asarray(fusion.left_out_totals(network, state, e)))

    assert score(16.0) == pytest.approx(score(8.0), rel=1e-4)
    assert score(8.0) < 0.9 * score(-8.0)


def test_the_robust_loss_by_hand():
    logits = jnp.log(jnp.array([[0.2, 0.8]]))
    label = jnp.array([1])
    np.testing.assert_allclose(
        losses.generalised_cross_entropy(logits, label, q=0.0), -np.log(0.8), rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.generalised_cross_entropy(logits, label, q=1.0), 0.2, rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.generalised_cross_entropy(logits, label, q=0.7), (1 - 0.8**0.7) / 0.7, rtol=1e-5
    )


def test_shares_that_differ_cost_what_their_divergence_is():
    labels = jnp.array([[0, 0, 2, 1], [0, 1, 1, 1]])
    counted = jnp.ones((2, 4), bool).at[1, 3].set(False)  # shares are of seven: 3/7 background
    away = losses.share_divergence(jnp.full((2, 4), 0.6), labels, counted)
    by_hand = 3 / 7 * np.log(3 / 7 / 0.6) + 4 / 7 * np.log(4 / 7 / 0.4)
    np.testing.assert_allclose(away, by_hand, rtol=1e-5)
    # One image may be all wrong if another makes up for it: only shares are compared.
    swapped = jnp.array([[1, 1, 1, 0.0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(losses.share_divergence(swapped, labels, counted), 0, atol=1e-6)
    nothing = losses.share_divergence(jnp.full((2, 4), 0.6), labels, jnp.zeros((2, 4), bool))
    gradient = jax.grad(lambda p: losses.share_divergence(p, labels, counted))(jnp.ones((2, 4)))
    assert np.isfinite(nothing) and np.isfinite(gradient).all()


def test_mirroring_twice_is_nothing_and_labels_move_along():
    e = evidence()
    e = replace(e, truth=np.random.default_rng(0).integers(0, 3, (2, 24, 24)).astype(np.int32))
    there = evidence_ops.mirrored(e)
    np.testing.assert_array_equal(there.truth, e.truth[:, :, ::-1])
    np.testing.assert_array_equal(there.scores, e.scores[:, :, :, ::-1])
    jax.tree.map(np.testing.assert_array_equal, evidence_ops.mirrored(there), e)


def test_batches_come_again_from_their_state_and_hold_every_image_once():
    batches = EvidenceBatches(WORLD.read, WORLD.slots(), cells=24, seed=1, slots_per_batch=2)
    first = [next(batches) for _ in range(batches.steps_per_epoch)]
    state = batches.get_state()
    later = next(batches)
    again = EvidenceBatches(WORLD.read, WORLD.slots(), cells=24, seed=1, slots_per_batch=2)
    again.set_state(state)
    np.testing.assert_array_equal(next(again).images, later.images)
    shown = np.concatenate([e.images[e.real] for e in first])
    assert len({image.tobytes() for image in shown}) == len(shown) == 6
    with pytest.raises(ValueError, match="other images"):
        EvidenceBatches(WORLD.read, {"0": 1}, cells=24, seed=1).set_state(state)


def test_groups_hold_every_image_once_and_grids_keep_the_shape():
    seen = [
        id
        for group in evidence_groups(WORLD.read, WORLD.slots(), cells=24, skip=lambda *_: None)
        for id in group.ids
    ]
    assert sorted(seen) == sorted(WORLD.slots())
    assert grid_of((375, 500), 96) == (72, 96) and grid_of((500, 5), 96) == (96, 1)
    assert [slots_for(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]


def test_other_splits_and_thresholds_run_what_was_compiled_once():
    e, key = evidence(("0", "1")), jax.random.key(0)

    def program(seed: int, threshold: float) -> str:
        protocol = Protocol(shape=SMALL, students=2, walk_steps=2, threshold=threshold)
        seen = label_free.splits(6, 2, seed=seed)
        system = fusion.make_students(protocol, seen=seen, features=0, steps=12)
        state = system.init(key)
        np.testing.assert_array_equal(state.seen, seen)
        assert float(state.threshold) == pytest.approx(threshold)
        template = fusion.students_template(protocol, 0, 6)
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, template)
        return jax.jit(system.step).lower(state, e, key).as_text()

    assert not np.array_equal(label_free.splits(6, 2, 0), label_free.splits(6, 2, 3))
    assert program(0, 0.4) == program(3, 0.55)


def test_students_learn_from_others_and_the_network_from_them():
    protocol = Protocol(shape=SMALL, students=2, walk_steps=2, average_steps=1, jitter=0.0)
    seen = label_free.splits(6, 2, seed=0)
    key, e = jax.random.key(0), evidence(("0", "1", "2", "3"))
    system = fusion.make_students(protocol, seen=seen, features=0, steps=12)
    state, losses = system.init(key), []
    traced = [0]

    @jax.jit
    def step(state, batch, key):
        traced[0] += 1
        return system.step(state, batch, key)

    for number in range(24):
        state, metrics = step(state, e, jax.random.fold_in(key, number))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert traced == [1]
    network = fusion.structure(SMALL, 0)

    @jax.jit
    def averaged(students, e):
        views = fusion.views_of(protocol, students.seen, e)
        each = [
            fusion.combine(network, fusion.one_of(students.state, i), view, view.available)
            for i, view in enumerate(views)
        ]
        return fusion.students_mean([one.probabilities() for one in each], views, steps=1)

    mean, apart = averaged(state, e)
    assert mean.shape == (4, 24, 24, 3) and float(apart.max()) > 0
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-4)
    taught = replace(e, target=mean)
    distilled = fusion.make_distilled(protocol, features=0, steps=2)
    one, metrics = jax.jit(distilled.step)(distilled.init(key), taught, key)
    assert np.isfinite(float(metrics["loss"]))
    keeping = fusion.make_distilled(replace(protocol, share_weight=6.0), features=0, steps=2)
    _, dearer = jax.jit(keeping.step)(keeping.init(key), taught, key)
    assert float(dearer["loss"]) > float(metrics["loss"])
    template = fusion.template(protocol, 0)
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, template)
    totals = jax.jit(lambda state, e: fusion.left_out_totals(network, state, e))(one, e)
    assert 0 < fusion.left_out_score(np.asarray(totals)) < 10
