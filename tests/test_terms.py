"""Terms that systems share, on a tiny network: padding, weights, the way of the gradients."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax import losses
from wsss_jax.systems import Classifier, classifier, terms
from wsss_jax.systems.terms import Erasing, Puzzle
from wsss_jax.train import state as states
from wsss_jax.types import Batch

OWN = Classifier("tiny", None, 8)


@pytest.fixture(scope="module")
def module():
    return classifier.module_of(OWN, 3, jax.random.key(0))


def batch(height=32, width=32):
    rng = np.random.default_rng(0)
    inside = np.zeros((2, 32, 32), bool)
    inside[:, :height, :width] = True
    images = np.where(inside[..., None], rng.random((2, 32, 32, 3), np.float32), 0)
    labels = jnp.asarray([[True, False, True], [False, True, False]])
    return Batch(jnp.asarray(images), labels, jnp.asarray(inside), jnp.ones(2, bool))


def test_tiles_are_classified_nearly_as_the_whole_image(module):
    logits, view = terms.look(module, batch(), 0.0, None)
    tiled, distance = terms.puzzle(view, Puzzle(), None)
    assert view.maps.shape == (2, 4, 4, 3) and float(distance) > 0
    # Tiles have borders of their own, so the loss is near that of the whole image, not equal.
    whole = losses.multilabel_soft_margin(logits, view.targets).mean()
    assert float(tiled) == pytest.approx(float(whole), rel=0.3)
    np.testing.assert_allclose(view.maps.mean(axis=(1, 2)), logits, rtol=1e-4, atol=1e-5)


def test_padding_changes_neither_term(module):
    clean = batch(16, 32)
    dirty = dataclasses.replace(clean, images=jnp.where(clean.inside[..., None], clean.images, 0.7))
    found = []
    for one in (clean, dirty):
        _, view = terms.look(module, one, 0.0, None)
        chosen = jnp.asarray([[True, False, False], [False, True, False]])
        mask = jax.nn.sigmoid(terms.region(view, chosen, 1.0))
        erased = terms.seen_without(module, one, mask, view.targets, None)
        found.append((*terms.puzzle(view, Puzzle(), None), erased))
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_crops_of_broken_cells_are_refused(module):
    small = jax.tree.map(lambda a: a[:, :24, :24] if a.ndim > 2 else a, batch())
    _, view = terms.look(module, small, 0.0, None)
    with pytest.raises(ValueError, match="choose a crop that 16 divides"):
        terms.puzzle(view, Puzzle(), None)


def test_what_should_remain_is_every_label_but_the_chosen(module):
    chosen = jnp.asarray([[True, False, False], [False, True, False]])
    found = terms.without(batch(), chosen, 0.0)
    np.testing.assert_array_equal(found, [[0, 0, 1], [0, 0, 0]])


def test_the_region_is_the_map_of_the_chosen_class(module):
    _, view = terms.look(module, batch(), 0.0, None)
    chosen = jnp.asarray([[True, False, False], [False, True, False]])
    pixels = terms.region(view, chosen, 1.0)
    np.testing.assert_allclose(pixels[0, 7::8, 7::8], view.maps[0, ..., 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pixels[1, 7::8, 7::8], view.maps[1, ..., 1], rtol=1e-4, atol=1e-5)


def test_weights_follow_their_schedules():
    assert float(Puzzle().at(25, 100)) == 2 and float(Puzzle().at(70, 100)) == 4
    stairs, line = Erasing(Path("x"), stages=15), Erasing(Path("x"))
    assert [round(float(stairs.at(step, 15)), 4) for step in (0, 1, 14)] == [0.3, 0.35, 1.0]
    assert [round(float(line.at(step, 100)), 4) for step in (0, 50, 100)] == [0.3, 0.65, 1.0]


def test_unknown_variants_are_refused_by_name():
    with pytest.raises(ValueError, match="did you mean 'masking'"):
        Puzzle(classes="maskin")
    with pytest.raises(ValueError, match="known: l1, l2"):
        Puzzle(distance="huber")


def test_erasing_teaches_the_maps_through_a_judge_that_stays(module):
    network = states.functional(module)
    judge = classifier.module_of(OWN, 3, jax.random.key(5))
    one = batch()
    chosen = jnp.asarray([[True, False, False], [False, True, False]])

    def loss(params):
        _, view = terms.look(network.bind(params, network.stats), one, 0.0, None)
        mask = jax.nn.relu(terms.region(view, chosen, 1.0)) / 10
        return terms.seen_without(judge, one, mask, terms.without(one, chosen, 0.0), None)

    gradients = jax.tree.leaves(jax.grad(loss)(network.params))
    assert all(np.isfinite(g).all() for g in gradients)
    assert max(float(np.abs(g).max()) for g in gradients) > 0
