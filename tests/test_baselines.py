"""OR→AND and logistic stacking: what they learn from, and that they learn it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from wsss_jax.combiner.batches import EvidenceBatches, batched
from wsss_jax.data import views
from wsss_jax.study import baselines, fusion_world, orand_system, world
from wsss_jax.study.baselines import Agreeing
from wsss_jax.study.orand_system import OrAnd
from wsss_jax.types import IGNORE

WORLD = fusion_world.make(5, seed=32, size=24)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return world.write(WORLD, tmp_path_factory.mktemp("world"))


def test_logistic_finds_known_weights():
    random = np.random.default_rng(0)
    x = np.concatenate([np.ones((4000, 1)), random.normal(size=(4000, 2))], axis=1)
    wanted = np.array([-0.5, 2.0, -1.0])
    y = (random.random(4000) < 1 / (1 + np.exp(-x @ wanted))).astype(float)
    np.testing.assert_allclose(baselines.logistic(x, y), wanted, atol=0.15)


def test_stacking_learns_from_labelled_images_alone(inputs, tmp_path):
    ids = inputs.source.ids
    weights = baselines.stacking_weights(inputs, ids[:2])
    assert weights.shape == (3 * 6 + 3,)
    store = baselines.stack(weights, inputs, tmp_path / "stacked", ids=ids)
    right = 0
    for row, id in enumerate(ids[:2]):
        maps = store.get_scores(id)
        said = np.where(maps.scores.max(-1) > 0.5, maps.classes[maps.scores.argmax(-1)] + 1, 0)
        right += (said == WORLD.masks[row]).mean() / 2
    assert right > 0.85
    bare = replace(inputs, saliency=None)
    baselines.stack(weights, bare, tmp_path / "bare", ids=ids[:1])
    with pytest.raises(ValueError, match="learns nothing"):
        baselines.stacking_weights(inputs, ())


def test_or_and_learns_what_all_systems_agree_on(inputs, tmp_path):
    settings = Agreeing(OrAnd(width=4), epochs=2, cells=24)
    ids = inputs.source.ids
    run = baselines.learn_or_and(inputs, tmp_path / "run", settings, ids=ids)
    assert baselines.learn_or_and(inputs, run, settings, ids=ids) == run
    maps = baselines.or_and(run, inputs, tmp_path / "maps", ids=ids).get_scores(ids[0])
    np.testing.assert_allclose(maps.scores.max(axis=(0, 1)), 1, atol=1e-3)
    # An image without labels is all background, and has a record like any other.
    blank = replace(inputs, source=views.photographs(inputs.source))
    none = baselines.or_and(run, blank, tmp_path / "none", ids=ids[:1]).get_scores(ids[0])
    assert not len(none.classes) and none.size == inputs.source.size(ids[0])
    with pytest.raises(ValueError, match="epochs"):
        baselines.learn_or_and(inputs, run, replace(settings, epochs=3), ids=ids)


def test_or_and_has_a_falling_loss_and_sees_scores_alone(inputs):
    examples = [inputs.read(id) for id in inputs.source.ids]
    batch = jax.tree.map(jax.numpy.asarray, batched(examples, rows=5, slots=2, cells=24))
    system = orand_system.make(OrAnd(width=4), features=0, steps=30)
    step, state, losses = jax.jit(system.step), system.init(jax.random.key(0)), []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    network = orand_system.structure(OrAnd(width=4))
    blind = replace(batch, images=0 * batch.images, saliency=0 * batch.saliency)
    seen = orand_system.combine(network, state, batch)
    np.testing.assert_array_equal(seen, orand_system.combine(network, state, blind))
    assert not np.asarray(seen)[~np.asarray(batch.inside)].any()


def test_labelled_images_come_more_often_and_others_say_nothing(inputs):
    ids = inputs.source.ids
    few = replace(inputs, labelled=frozenset(ids[:1]), cells=24)
    batches = EvidenceBatches(
        few.read, few.slots(ids), cells=24, seed=0, slots_per_batch=8, times={ids[0]: 4}
    )
    assert batches.steps_per_epoch == 2  # four times one image and once each of four: rows of 4
    known = [(next(batches).truth != IGNORE).any(axis=(1, 2)).sum() for _ in range(2)]
    assert sum(known) == 4
