"""Saliency as a stage: hints, maps and pictures; and the network of saliency and edges."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import training_batches
from wsss_jax.data import stores
from wsss_jax.data.classes import SALIENCY
from wsss_jax.data.files import read_levels
from wsss_jax.datasets import synthetic, views
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError
from wsss_jax.ops import boundaries
from wsss_jax.ops.resize import resize
from wsss_jax.run import dense, folders, training
from wsss_jax.run.training import Training
from wsss_jax.stages import evaluate, saliency
from wsss_jax.stages.parts import objects
from wsss_jax.stages.saliency import Looking
from wsss_jax.systems import objects as system_of_objects
from wsss_jax.systems import saliency as system_of_contrast
from wsss_jax.systems.objects import Objects
from wsss_jax.systems.saliency import Contrast
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import IGNORE, Batch, ScoreMaps

U = IGNORE
VIEW = Augmentation(crop=32, long_side=(32, 40), hue=0.0)
SMALL = Objects("tiny", None, 16, optim=Optim("adamw", 5e-3, schedule="constant"))


def test_boundaries_are_where_two_known_classes_meet():
    mask = np.array(
        [
            [0, 0, 1, 1, 1],
            [0, 0, 1, 1, 1],
            [0, 0, 1, 1, U],
            [0, 0, 1, 1, 1],
        ]
    )
    found = boundaries.class_boundaries(jnp.asarray(mask[None], jnp.int32))[0]
    wanted = [
        [0, 1, 1, 0, 0],
        [0, 1, 1, U, U],
        [0, 1, 1, U, U],
        [0, 1, 1, U, U],
    ]
    np.testing.assert_array_equal(found, wanted)


def test_cells_take_any_edge_and_most_of_the_objects():
    labels = jnp.asarray([[[0, 1, 0, U], [0, 0, 0, U], [U, U, 1, 0]]], jnp.int32)
    np.testing.assert_array_equal(boundaries.any_in_cell(labels, 2), [[[1, U], [U, 1]]])
    np.testing.assert_array_equal(boundaries.most_of_cell(labels, 2), [[[0, 0], [U, U]]])


def test_two_masks_travel_in_one_plane():
    objects_, classes = (grid.ravel() for grid in np.meshgrid([0, 1, U], [*range(84), U]))
    plane = boundaries.packed(objects_[None].astype(np.uint8), classes[None].astype(np.uint8))
    assert len(np.unique(plane)) == 3 * 85 and plane.max() < U
    padded = jnp.asarray(np.append(plane, [[U]], axis=1)[None], jnp.int32)
    found = boundaries.unpacked(padded)
    np.testing.assert_array_equal(found[0][0, 0], [*objects_, U])
    np.testing.assert_array_equal(found[1][0, 0], [*classes, U])
    with pytest.raises(ValueError, match="classes up to 84"):
        boundaries.packed(np.zeros((1, 1), np.uint8), np.full((1, 1), 84, np.uint8))


def planes(*, classes=True, size=32):
    """A bright square object of class 3 on a dark ground, twice."""
    mask = np.zeros((size, size), np.uint8)
    mask[8:24, 8:24] = 3
    other = mask if classes else np.full_like(mask, U)
    plane = boundaries.packed((mask > 0).astype(np.uint8), other)
    rng = np.random.default_rng(0)
    images = 0.2 + 0.6 * (mask[..., None] > 0) + 0.1 * rng.random((2, size, size, 3))
    full = np.ones((2, size, size), bool)
    parts = (images.astype(np.float32), np.ones((2, 1), bool), full, np.ones(2, bool))
    images, labels, inside, real = map(jnp.asarray, parts)
    return Batch(images, labels, inside, real, jnp.asarray(np.stack([plane] * 2), jnp.int32))


@pytest.fixture(scope="module")
def learner():
    system = system_of_objects.make(SMALL, steps=20)
    return jax.jit(system.init)(jax.random.key(0)), jax.jit(system.step)


def test_saliency_and_edges_are_learned_together(learner):
    state, step = learner
    found = []
    for number in range(12):
        state, metrics = step(state, planes(), jax.random.key(number))
        found.append([float(metrics[name]) for name in ("saliency", "edges", "loss")])
    first, last = np.array(found[0]), np.array(found[-1])
    assert np.isfinite(found).all() and (last < 0.8 * first).all()
    assert last[2] == pytest.approx(last[:2].sum(), rel=1e-5)
    _, metrics = step(state, planes(classes=False), jax.random.key(0))
    assert float(metrics["edges"]) == 0 and float(metrics["saliency"]) > 0
    assert step._cache_size() == 1


def store_of(folder, holds, classes=SALIENCY):
    return stores.create(folder, holds=holds, classes=classes.names, made_by={"stage": "test"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("saliency")
    data = synthetic.write(out / "data", 6, 0, settings=synthetic.Scenes(size=40))
    source = open_dataset(data, split="all")
    hints = store_of(out / "hints", "scores", source.classes)
    for id in source.ids:
        classes = np.flatnonzero(source.labels(id)).astype(np.int32)
        truth = np.asarray(source.mask(id))
        inner = truth[2::4, 2::4, None] == classes + 1
        scores = (0.8 * inner).astype(np.float32)
        hints.put_scores(id, ScoreMaps(scores, classes, (40, 40), scores.max((0, 1))))
    return out, source, hints


def test_hints_and_their_weight_go_together(world, tmp_path):
    _, source, hints = world
    plain, hinted = Contrast(), Contrast(hint_weight=1.0)
    with pytest.raises(ValueError, match=r"hint_weight is 0\.0, and there are hints"):
        saliency.notes_of(plain, hints)
    with pytest.raises(ValueError, match="there are no hints"):
        saliency.notes_of(hinted, None)
    assert saliency.notes_of(hinted, hints)["hints"]["by"] == {"stage": "test"}
    empty = stores.create(tmp_path / "e", holds="scores", classes=("a",), made_by={})
    with pytest.raises(ValueError, match=f"no hints of 6 of 6 images .{source.ids[0]}"):
        saliency.hint_reader(empty, source)
    logits = stores.create(tmp_path / "l", holds="scores", classes=("a",), made_by={}, kind="logit")
    with pytest.raises(ValueError, match="holds logit"):
        saliency.hint_reader(logits, source)


def test_hints_travel_as_bytes_beside_the_photograph(world):
    _, source, hints = world
    read = saliency.hint_reader(hints, source)
    plane = read(source.ids[0])
    assert plane.shape == (40, 40) and plane.dtype == np.uint8
    assert plane.max() == round(254 * float(np.float16(0.8)))
    seen = views.agnostic(source)
    batch = next(training_batches(seen, VIEW, seed=0, batch_size=2, masks=read))
    scores = np.asarray(system_of_contrast.on_cells(jnp.asarray(batch.masks), 16))
    assert scores.shape == (2, 2, 2) and 0 < scores.max() <= 0.81


def test_maps_are_saliency_and_pictures_read_back_the_same(world, tmp_path, monkeypatch):
    _, source, hints = world
    run = tmp_path / "run"
    settings = Training(Contrast("tiny", None, 8, hint_weight=1.0))
    notes = saliency.notes_of(settings.model, hints)
    folders.claim(run, training.record(settings, source, notes))
    (run / "finished").write_text("")

    def ramp(state, images, inside):
        count, height, width = images.shape[0], images.shape[1] // 8, images.shape[2] // 8
        line = jnp.linspace(-2.0, 3.0, width)
        return jnp.broadcast_to(line[None, None, :, None], (count, height, width, 1))

    monkeypatch.setattr(saliency, "_logits", lambda model, *rest: ramp(*rest))
    monkeypatch.setattr(folders, "last_state", lambda folder, template: jnp.zeros(()))
    asked = Looking(scales=(1.0,), flip=False, batch_size=4)
    store = saliency.predict(run, source, tmp_path / "maps", asked, ids=source.ids)
    assert store.classes == SALIENCY.names and store.kind == "probability"
    assert store.made_by["system"] == "c2am_h" and store.made_by["hints"]["store"] == "hints"
    maps = store.get_scores(source.ids[0])
    assert maps.scores.shape == (10, 10, 1) and (np.diff(maps.scores[3, :, 0]) >= 0).all()
    peak = replace(asked, reading="peak")
    other = saliency.predict(run, source, tmp_path / "peak", peak, ids=source.ids)
    by_peak = other.get_scores(source.ids[0]).scores
    assert by_peak.max() == pytest.approx(1, abs=1e-3) and by_peak.min() == 0
    np.testing.assert_array_equal(by_peak > 0, maps.scores > 0.5)
    pngs = saliency.write_pngs(store, tmp_path / "png", ids=source.ids)
    back = read_levels(pngs / f"{source.ids[0]}.png")
    whole = resize(maps.scores, (40, 40))[..., 0]
    np.testing.assert_allclose(back, whole, atol=0.51 / 255)


def test_saliency_is_judged_against_every_class_at_once(world, tmp_path):
    _, source, _ = world
    seen = views.agnostic(source)
    store = stores.create(
        tmp_path / "s", holds="scores", classes=SALIENCY.names, made_by={}, kind="probability"
    )
    for id in source.ids:
        scores = (np.asarray(source.mask(id)) > 0).astype(np.float32)[..., None]
        store.put_scores(
            id,
            ScoreMaps(scores, np.zeros(1, np.int32), (40, 40), np.ones(1, np.float32), store.kind),
        )
    scoring = evaluate.Scoring()
    assert evaluate.evaluate(store, seen, scoring, split="all").miou() == 1


def test_boundary_maps_teach_edges_themselves(world, tmp_path, monkeypatch):
    _, source, _ = world
    proposals = store_of(tmp_path / "p", "masks")
    drawn = store_of(tmp_path / "e", "scores")
    shares = np.zeros((40, 40, 1), np.float32)
    shares[:, 8], shares[:, 24] = 0.6, 0.2  # most drew the one line, few the other
    for id in source.ids:
        proposals.put_mask(id, np.zeros((40, 40), np.uint8))
        drawn.put_scores(id, ScoreMaps(shares, np.zeros(1, np.int32), (40, 40), shares.max((0, 1))))
    read = objects.drawn_edges(drawn, source).masks(source.ids[0])
    assert [set(read[:, column]) for column in (8, 24, 30)] == [{1}, {U}, {0}]
    plane = jnp.asarray(boundaries.packed(proposals.get_mask(source.ids[0]), read), jnp.int32)
    batch = replace(planes(), masks=jnp.stack([plane] * 2), real=jnp.ones(2, bool))
    _, cells = system_of_objects.labels_of(batch, drawn=True)
    assert [int(cells[0, 0, column]) for column in (2, 6, 7)] == [1, U, 0]
    made = []
    monkeypatch.setattr(folders, "learn", lambda *given, seed: made.append(given[3]))
    settings = Training(SMALL, VIEW, epochs=1, batch_size=2)
    fit = partial(objects.fit, source, settings, proposals=proposals)
    record = json.loads((fit(tmp_path / "run", edges=drawn) / "settings.json").read_text())
    assert made == [tmp_path / "run"] and record["edges"]["maps"] == "e"
    with pytest.raises(ValueError, match="give one of them"):
        fit(tmp_path / "x", edges=drawn, classes=proposals)
    with pytest.raises(ValueError, match="boundary maps are activations"):
        objects.drawn_edges(proposals, source)
    coarse = store_of(tmp_path / "q", "scores")
    for id in source.ids:
        coarse.put_scores(id, replace(drawn.get_scores(id), scores=shares[::4, ::4]))
    with pytest.raises(BadFileError, match="--stride 1"):
        objects.drawn_edges(coarse, source).masks(source.ids[0])


def test_a_network_learns_from_stores_and_fills_two(world, learner, tmp_path, monkeypatch):
    _, source, _ = world
    proposals = store_of(tmp_path / "p", "masks")
    classes = store_of(tmp_path / "c", "masks", source.classes)
    for id in source.ids:
        truth = np.asarray(source.mask(id))
        classes.put_mask(id, truth)
        proposals.put_mask(id, (truth > 0).astype(np.uint8))
    settings = Training(SMALL, VIEW, epochs=1, batch_size=2)
    planes_seen = []

    def learned(system, batches, plan, folder, *, seed):
        planes_seen.append(next(batches).masks)
        Checkpoints(folder / "checkpoint").save(1, learner[0], {})
        (folder / "finished").write_text("")

    monkeypatch.setattr(folders, "learn", learned)
    fit = partial(objects.fit, source, settings, proposals=proposals, classes=classes)
    run = fit(tmp_path / "run")
    assert fit(tmp_path / "run") == run and len(planes_seen) == 1
    found = boundaries.unpacked(jnp.asarray(planes_seen[0]))
    np.testing.assert_array_equal(found[0] == 1, (found[1] > 0) & (found[1] != U))
    record = json.loads((run / "settings.json").read_text())
    assert record["classes"]["made_by"] == {"stage": "test"}
    with pytest.raises(ValueError, match="holds beetle as class 1, the data set has saliency"):
        objects.fit(source, settings, tmp_path / "x", proposals=classes)
    asked = Looking(scales=(1.0,), batch_size=6)
    targets = tmp_path / "saliency", tmp_path / "edges"
    both = objects.predict(run, source, targets, asked, ids=source.ids)
    assert [store.classes for store in both] == [("saliency",), ("edge",)]
    for store in both:
        maps = store.get_scores(source.ids[0])
        assert maps.scores.shape == (10, 10, 1) and 0 <= maps.scores.min() <= maps.scores.max() <= 1
    monkeypatch.setattr(dense, "_answer", None)  # would be called for a missing image
    objects.predict(run, source, targets, asked, ids=source.ids)
