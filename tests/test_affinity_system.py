"""Learned affinity: what moves, what stays, and a walk that it repairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.ops import walk
from wsss_jax.systems import affinity
from wsss_jax.systems.affinity import BRANCHES, AffinityNet
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import IGNORE, Batch

FAST = Optim("adamw", 1e-2, schedule="constant")
PSA = AffinityNet("features", "tiny", None, 8, stride=4, radius=3, optim=FAST)


def scenes(count=2, size=32):
    """Bright rectangles on a dark ground, their true masks, and labels unknown near the border."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 0.2, (count, size, size, 3)).astype(np.float32)
    truth = np.zeros((count, size, size), np.int32)
    labels = np.zeros_like(truth)
    for n in range(count):
        top, left = 4 + 4 * n, 8
        box = np.s_[n, top : top + 16, left : left + 16]
        images[box] += np.asarray([0.7, 0.5, 0.1], np.float32)
        truth[box] = 1 + n
        labels[n, top - 2 : top + 18, left - 2 : left + 18] = IGNORE
        labels[n, top + 2 : top + 14, left + 2 : left + 14] = 1 + n
    inside, real = np.ones(truth.shape, bool), np.ones(count, bool)
    return Batch(images, np.ones((count, 2), bool), inside, real, labels), truth


def test_a_few_steps_of_the_head_alone_teach_a_walk_to_repair_a_partial_map():
    batch, truth = jax.tree.map(jnp.asarray, scenes())
    system = affinity.make(PSA, steps=30)
    before, step = jax.jit(system.init)(jax.random.key(0)), jax.jit(system.step)
    # Unknown masks teach nothing, nor do rows that only fill the batch up.
    unknown = jnp.full_like(batch.masks, IGNORE)
    for masks, real in ((unknown, batch.real), (batch.masks, ~batch.real)):
        given = Batch(batch.images, batch.labels, batch.inside, real, masks)
        _, metrics = step(before, given, jax.random.key(0))
        assert float(metrics["loss"]) == 0 and int(metrics["skipped"]) == 0
    state, found = before, []
    for number in range(30):
        state, metrics = step(state, batch, jax.random.key(number))
        found.append(float(metrics["loss"]))
    assert np.isfinite(found).all() and found[-1] < 0.6 * found[0]
    for name in ("backbone", "affinity"):
        old, new = (jax.tree.leaves(which.params[name]) for which in (before, state))
        same = [bool((a == b).all()) for a, b in zip(old, new, strict=True)]
        assert all(same) if name == "backbone" else not any(same)
    repairs(state, batch, truth)


def repairs(state, batch, truth):
    branch = BRANCHES[PSA.branch]

    @jax.jit
    def walked(params, scores):
        said = affinity.answers(PSA, (params, state.stats), batch.images, batch.inside)
        joined = branch.join(said, PSA.radius, None)
        return walk.propagate(branch.start(scores, said), joined, beta=8, steps=64)

    objects = np.asarray(truth)[:, 2::4, 2::4] > 0
    seeds = np.zeros((2, 8, 8, 1), np.float32)
    for n in range(2):
        y, x = np.argwhere(objects[n]).mean(axis=0).round().astype(int)
        seeds[n, y - 1 : y + 1, x - 1 : x + 1] = 1  # a quarter of the object

    def iou(scores):
        masks = scores[..., 0] > 0.3 * scores.max(axis=(1, 2, 3))[:, None, None]
        return (masks & objects).sum() / (masks | objects).sum()

    after = np.asarray(walked(state.params, jnp.asarray(seeds)))
    assert iou(after) > iou(seeds) + 0.15, (iou(seeds), iou(after))


def test_impossible_settings_are_refused_when_they_are_made():
    with pytest.raises(ValueError, match="did you mean 'boundary'"):
        AffinityNet("boundery")
    with pytest.raises(ValueError, match="radius is 1"):
        AffinityNet(radius=1)
    with pytest.raises(ValueError, match="stride is 0"):
        AffinityNet(stride=0)
