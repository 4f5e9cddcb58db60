"""How far the combiner's teacher walks, and along what."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax import config
from wsss_jax.combiner import consensus as evidence_ops
from wsss_jax.combiner import fusion, label_free
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import CombinerShape
from wsss_jax.ops import affinity
from wsss_jax.types import Evidence


def test_the_teacher_alone_walks_as_far_on_any_grid():
    given = Protocol(walk_steps=32, average_steps=3, shape=CombinerShape(walk_steps=16))
    assert label_free.on_grid(given, label_free.WALKED_ON) == given
    assert label_free.on_grid(given, 32) == replace(given, walk_steps=8)
    assert label_free.on_grid(given, 128) == replace(given, walk_steps=128)
    still = replace(given, walk_steps=0)
    assert label_free.on_grid(still, 32) == still
    # What the steps are for: after them a point has spread over the same share of the picture.
    spread = []
    for cells in (24, 48):
        point = np.zeros((1, cells, cells, 1), np.float32)
        point[:, cells // 2, cells // 2] = 1
        flat = evidence_ops.pairs(
            jnp.zeros((1, cells, cells, 3)), jnp.ones((1, cells, cells), bool)
        )
        steps = label_free.on_grid(given, cells).walk_steps
        found = np.asarray(evidence_ops.spread(jnp.asarray(point), flat, steps=steps))[0, ..., 0]
        away = (np.arange(cells) - cells // 2) / cells
        spread.append(np.sqrt((found.sum(axis=0) * away**2).sum() / found.sum()))
    assert spread[0] == pytest.approx(spread[1], rel=0.15)


def test_the_teacher_walks_along_frozen_features_where_there_are_any():
    height, width, steps = 8, 10, 16
    features = np.random.default_rng(0).normal(size=(1, height, width, 30)).astype(np.float32)
    inside = jnp.ones((1, height, width), bool)
    found = affinity.from_likeness(jnp.asarray(features), radius=3, sigma=0.5, inside=inside)
    for number, (down, right) in enumerate(affinity.stencil(3)):
        apart = features[0, 2, 4] - features[0, 2 + down, 4 + right]
        wanted = np.exp(-np.square(apart).mean() / (2 * 0.5**2))
        np.testing.assert_allclose(found.values[0, number, 2, 4], wanted, rtol=1e-4)
    # One colour everywhere, two halves whose features differ: what is on the left stays there.
    halves = np.zeros((1, height, width, 5), np.float32)
    halves[:, :, width // 2 :] = 2
    scores = np.zeros((1, 1, height, width, 1), np.float32)
    scores[..., 3, 1, 0] = 1
    yes = jnp.ones((1, 1), bool)
    flat, none = jnp.zeros((1, height, width)), jnp.zeros((1, 3), bool)
    e = Evidence(
        images=jnp.zeros((1, height, width, 3)),
        scores=jnp.asarray(scores),
        available=yes[..., None],
        peak=jnp.ones((1, 1, 1)),
        present=yes,
        saliency=flat,
        edges=flat,
        probe=flat[..., None],
        cues=none,
        features=jnp.asarray(halves),
        inside=inside,
        real=yes[0],
    )
    teach = jax.jit(fusion.consensus, static_argnums=0)
    old = config.from_json(Protocol, {"walk_steps": steps})  # of a run from before
    assert old.walk_along == "colours" and Protocol().walk_along == "features"
    along = Protocol(walk_steps=steps)
    for protocol, batch, crosses in (
        (along, e, False),
        (old, e, True),
        (along, replace(e, features=e.features[..., :0]), True),
    ):
        right = np.asarray(teach(protocol, batch, batch.available))[0, :, width // 2 :, 0]
        assert (right.max() > 0.1) == crosses and (right.max() < 1e-3) != crosses
