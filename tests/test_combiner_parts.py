"""The combiner's parts: closed forms, members and probes, by known values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.combiner import consensus, learn, probes, refine
from wsss_jax.combiner.consensus import Evidence
from wsss_jax.combiner.settings import Combining
from wsss_jax.errors import BadFileError, UserError


def evidence(scores, available=None, saliency=None, inside=None, images=None):
    b, s, h, w, k = scores.shape
    random = np.random.default_rng(0)
    made = Evidence(
        images=random.random((b, h, w, 3), np.float32) if images is None else images,
        features=np.zeros((b, h, w, 0), np.float32),
        scores=scores,
        available=np.ones((b, s, k), bool) if available is None else available,
        present=np.ones((b, k), bool),
        saliency=np.ones((b, h, w), np.float32) if saliency is None else saliency,
        inside=np.ones((b, h, w), bool) if inside is None else inside,
    )
    return jax.tree.map(jnp.asarray, made)


def test_without_a_walk_a_system_is_its_map_times_saliency_with_maximum_one():
    scores = np.array([[0.2, 0.4]], np.float32).reshape(1, 1, 1, 2, 1)
    saliency = np.array([[[1.0, 0.0]]], np.float32)
    made = consensus.of_each_system(evidence(scores, saliency=saliency), steps=0)
    np.testing.assert_allclose(np.asarray(made).ravel(), [1, 1], atol=1e-5)  # 0.2·1 and 0.4·½


def test_a_class_that_a_system_lacks_has_the_mean_of_the_others():
    each = [np.full((1, 1, 1, 2), value, np.float32) for value in (0.2, 0.6, 0.9)]
    scores = jnp.stack(each, axis=1)
    available = jnp.array([[[True, True], [True, True], [True, False]]])
    filled = np.asarray(consensus.filled(scores, available))
    np.testing.assert_allclose(filled[0, 2, 0, 0], [0.9, 0.4], atol=1e-6)
    assert not np.asarray(consensus.filled(scores, jnp.zeros_like(available))).any()


def test_systems_and_classes_are_treated_alike_and_padding_changes_nothing():
    random = np.random.default_rng(1)
    scores = random.random((1, 2, 8, 8, 2), np.float32)
    images = random.random((1, 8, 8, 3), np.float32)
    form = jax.jit(consensus.of_each_system, static_argnames="steps")
    plain = np.asarray(form(evidence(scores, images=images), steps=4))
    turned = np.asarray(form(evidence(scores[:, ::-1, ..., ::-1], images=images), steps=4))
    np.testing.assert_allclose(turned[:, ::-1, ..., ::-1], plain, atol=1e-5)
    wide = np.pad(scores, ((0, 0), (0, 0), (0, 3), (0, 2), (0, 0)), constant_values=0.7)
    inside = np.pad(np.ones((1, 8, 8), bool), ((0, 0), (0, 3), (0, 2)))
    room = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)))
    padded = np.asarray(form(evidence(wide, inside=inside, images=room), steps=4))
    np.testing.assert_allclose(padded[:, :, :8, :8], plain, atol=1e-5)
    assert not padded[:, :, 8:].any() and not padded[..., 8:, :].any()


def test_a_refined_map_is_more_probable_than_background_just_above_its_threshold():
    maps = np.array([[0.3, 0.1], [0.5, 0.1], [0.5, 0.6]], np.float32)
    shares = refine.with_background(maps, np.array([0.4, 0.7]))
    raised = np.array([0.4, 0.3, 0.1]) ** 8
    np.testing.assert_allclose(shares[0], raised / raised.sum(), atol=1e-6)
    # In the third cell the highest map is below its own threshold: background, whatever the other.
    assert (shares.argmax(axis=1) == [0, 1, 0]).all()
    assert (refine.with_background(maps, np.zeros(2))[:, 0] == 0).all()


def test_smoothing_is_the_mean_over_cells_weighted_by_the_softmax_of_cosines():
    similar = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    maps = np.array([[1.0], [0.0], [0.4]], np.float32)
    far = np.exp(-1 / 0.5)
    want = [1.4 / (2 + far), 1.4 * far / (1 + 2 * far), 1.4 / (2 + far)]
    made = refine.Smoothing(similar, 0.5)(maps)
    np.testing.assert_allclose(made.ravel(), want, rtol=1e-5)
    np.testing.assert_array_equal(refine.Smoothing(similar, 0.0)(maps), maps)
    np.testing.assert_array_equal(refine.Smoothing(similar[:, :0], 0.5)(maps), maps)


def test_smoothing_of_many_cells_by_evenly_spread_ones_is_near_that_by_all(monkeypatch):
    random = np.random.default_rng(0)
    angle = random.random(3000) * 6
    similar = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    maps = (angle[:, None] < 2).astype(np.float32)
    few = refine.Smoothing(similar, 0.1)(maps)
    monkeypatch.setattr(refine, "KEYS", 3000)
    np.testing.assert_allclose(few, refine.Smoothing(similar, 0.1)(maps), atol=0.06)


def test_labels_are_the_highest_map_above_the_threshold():
    maps = np.array([[0.3, 0.6], [0.2, 0.1], [0.7, 0.6]], np.float32)
    assert refine.labels_at(maps, np.array([0.5, 0.5])).tolist() == [2, 0, 1]
    assert refine.labels_at(maps, np.array([0.5, 0.65])).tolist() == [0, 0, 1]
    assert refine.labels_at(maps, np.array([-1.0, -1.0])).tolist() == [2, 1, 1]


def test_a_class_whose_maps_are_high_everywhere_has_a_higher_threshold():
    """40 images of each: the first class stands out of 0.1, the second one out of 0.5."""

    def image(label: int, ground: float) -> refine.Cells:
        maps = np.full((1, 100, 1), ground, np.float32)
        maps[:, :25] = 0.9
        nothing = np.zeros((100, 0), np.float32)
        pixels, known = np.zeros((100, 3), np.float32), np.ones(1, bool)
        labels = np.array([label])
        return refine.Cells(
            "a", ("a",), labels, maps, known, pixels, nothing, nothing, saliency=None, truth=None
        )

    sample = [image(0, 0.1) for _ in range(40)] + [image(1, 0.5) for _ in range(40)]
    found = learn._thresholds(sample, None, Combining(), 3)
    shared = learn._thresholds(sample, None, Combining(thresholds="shared"), 3)
    assert 0.1 < shared[0] < 0.5 and (shared == shared[0]).all()
    assert found[0] == found[2] == shared[0] and 0.5 < found[1] < 0.9
    # Of two images nothing sure is known, so the shared threshold stays.
    few = learn._thresholds([*sample[:40], *sample[40:42]], None, Combining(), 3)
    assert (few == few[0]).all()
    assert not learn._thresholds(sample, None, Combining(background=False), 3).any()


@pytest.fixture(scope="module")
def learned():
    """Two classes told apart by the first number, background by the second; 10 % wrong labels."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 3, 600)
    centres = np.array([[0, 2], [-2, 0], [2, 0]], np.float32)
    cells = (centres[labels] + 0.5 * random.normal(size=(600, 2))).astype(np.float32)
    noisy = np.where(random.random(600) < 0.1, random.integers(0, 3, 600), labels)
    possible = np.ones((600, 3), bool)
    probe = probes.fit(("a", "b"), cells, noisy, possible, np.ones(600), penalty=1e-3)
    return probe, cells, labels


def test_a_probe_is_righter_than_the_labels_that_taught_it(learned):
    probe, cells, labels = learned
    found = probe.probabilities(cells, ("a", "b"))
    assert (found.argmax(axis=1) == labels).mean() > 0.97
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_a_probe_knows_only_its_classes_and_its_width(learned):
    probe, cells, _ = learned
    only = probe.probabilities(cells, ("b",))
    assert only.shape == (600, 2)
    with pytest.raises(UserError, match="has not learned c;"):
        probe.probabilities(cells, ("b", "c"))
    with pytest.raises(UserError, match="2 numbers, these have 3"):
        probe.probabilities(np.zeros((1, 3), np.float32), ("a",))


def test_a_probe_is_read_as_it_was_written(learned, tmp_path):
    probe, cells, _ = learned
    probe.save(tmp_path / "p.npz")
    read = probes.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(
        read.probabilities(cells, ("a", "b")), probe.probabilities(cells, ("a", "b"))
    )
    content = bytearray((tmp_path / "p.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad.npz").write_bytes(bytes(content))
    with pytest.raises(BadFileError, match=r"bad\.npz"):
        probes.load(tmp_path / "bad.npz")


def test_without_background_a_probe_never_names_it():
    cells = np.eye(4, dtype=np.float32)
    possible = np.array([[False, True, True]] * 4)
    labels = np.array([1, 2, 1, 2])
    probe = probes.fit(("a", "b"), cells, labels, possible, np.ones(4), penalty=1e-2)
    found = probe.probabilities(cells, ("a", "b"))
    assert (found[:, 0] == 0).all() and (found.argmax(axis=1) == labels).all()


def test_cells_hold_features_colours_to_the_second_order_and_saliency():
    features, image = np.full((1, 2), 7, np.float32), np.array([[1.0, 0.5, 0.0]], np.float32)
    cells = probes.cells_of(features, image, np.array([0.5], np.float32))
    assert cells.tolist() == [[7, 7, 1, 0, -1, 1, 0, 1, 0, 0, -1, 0.5, 0.25]]
    assert probes.cells_of(features, image, None).shape == (1, 11)


def test_classes_that_no_image_shows_together_are_told_apart():
    """Cells of class a point up, of b down, in images of one class each; background is at 0."""
    cells = np.array([[0, 1], [0, -1], [1, 0]] * 20, np.float32)
    labels = np.array([1, 2, 0] * 20)
    possible = np.array([[True, True, False], [True, False, True], [True, True, False]] * 20)
    probe = probes.fit(("a", "b"), cells, labels, possible, np.ones(60), penalty=1e-3)
    found = probe.probabilities(cells, ("a", "b"))
    assert (found.argmax(axis=1) == labels).all()
    assert found[0, 1] > 10 * found[0, 2] and found[1, 2] > 10 * found[1, 1]


def test_steps_go_with_the_area_and_odd_settings_are_refused():
    assert [Combining(cells=n).steps() for n in (64, 128, 32)] == [32, 128, 8]
    assert Combining(cells=24, walk_steps=0).steps() == 0
    wrong: list[dict[str, Any]] = [{"cells": 1}, {"penalty": 0.0}, {"labelled": -1}]
    wrong += [{"smoothing": -0.1}, {"labelled_share": 1.0}]
    for settings in wrong:
        with pytest.raises(UserError, match="wanted"):
            Combining(**settings)
