"""Segmentation from masks: the loss by hand, who may teach, what is predicted, and resuming."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from wsss_jax.batches.augment import Augmentation
from wsss_jax.data import stores
from wsss_jax.datasets import synthetic, views
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError
from wsss_jax.losses import pixel_loss
from wsss_jax.ops import masks as deciding
from wsss_jax.run import dense, folders, thresholds, training
from wsss_jax.run.training import Training
from wsss_jax.stages import predict, segment
from wsss_jax.stages.segment import Prediction
from wsss_jax.systems import pixels
from wsss_jax.systems.pixels import Segmenter
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import IGNORE, Batch, System

SMALL = Segmenter("tiny", None, 16, width=8, optim=Optim("adamw", 3e-3, schedule="constant"))
VIEW = Augmentation(crop=32, long_side=(32, 40), hue=0.0)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]))
    masks = jnp.asarray([0, 1, IGNORE], jnp.int32)
    plain = pixel_loss.cross_entropy(logits, masks)
    np.testing.assert_allclose(plain, [np.log(2), -np.log(0.8), 0], rtol=1e-5)
    smooth = pixel_loss.cross_entropy(logits, masks, 0.3)
    wanted = -(0.8 * np.log(0.5) + 0.1 * np.log(0.25) + 0.1 * np.log(0.25))
    assert float(smooth[0]) == pytest.approx(wanted, rel=1e-5) and float(smooth[2]) == 0
    counts = jnp.asarray([False, True, True])
    mean = pixel_loss.mean_known(plain, masks, counts)
    assert float(mean) == pytest.approx(-np.log(0.8), rel=1e-5)
    assert float(pixel_loss.mean_known(plain, masks, counts & False)) == 0


def test_ignored_pixels_and_padding_give_no_gradient():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 4, 5, 3)), jnp.float32)
    masks = rng.integers(0, 3, (2, 4, 5)).astype(np.int32)
    masks[0, 1] = IGNORE
    counts = np.ones((2, 4, 5), bool)
    counts[1, :, 3:] = False

    @jax.jit
    @jax.grad
    def gradient(logits):
        losses = pixel_loss.cross_entropy(logits, jnp.asarray(masks), 0.1)
        return pixel_loss.mean_known(losses, jnp.asarray(masks), jnp.asarray(counts))

    found = np.asarray(gradient(logits))
    silent = (masks == IGNORE) | ~counts
    assert not found[silent].any() and (np.abs(found[~silent]).sum(-1) > 0).all()


def batch(size=32, known=True):
    """Two scenes that are bright where the mask says 1; the second lies off the corner."""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, size, size), np.int32)
    masks[:, 8:20, 6:22] = 1
    images = 0.2 + 0.6 * (masks[..., None] == 1) + 0.1 * rng.random((2, size, size, 3))
    inside = np.ones((2, size, size), bool)
    inside[1, :7], inside[1, :, :5] = False, False
    masks[~inside] = IGNORE
    images = np.where(inside[..., None], images, 0).astype(np.float32)
    if not known:
        masks[:] = IGNORE
    parts = (images, np.ones((2, 6), bool), inside, np.ones(2, bool), masks)
    return Batch(*(jnp.asarray(part) for part in parts))


@pytest.fixture(scope="module")
def learner():
    system = pixels.make(SMALL, classes=6, steps=20)
    return jax.jit(system.init)(jax.random.key(0)), jax.jit(system.step)


def test_the_loss_falls_and_one_trace_serves_all_steps(learner):
    state, step = learner
    found = []
    for number in range(12):
        state, metrics = step(state, batch(), jax.random.key(number))
        found.append(float(metrics["loss"]))
    assert np.isfinite(found).all() and found[-1] < 0.7 * found[0]
    assert step._cache_size() == 1 and float(metrics["known"]) == 1.0


def test_a_batch_without_a_known_pixel_teaches_nothing(learner):
    state, step = learner
    after, metrics = step(state, batch(known=False), jax.random.key(0))
    assert float(metrics["loss"]) == 0 and float(metrics["known"]) == 0
    # What is left is AdamW's own decay of the weights.
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)


def test_images_are_moved_to_the_corner_with_their_masks():
    given = batch()
    moved = jax.jit(pixels.in_corner)(given)
    np.testing.assert_array_equal(moved.images[0], given.images[0])
    np.testing.assert_array_equal(moved.images[1, :25, :27], given.images[1, 7:, 5:])
    np.testing.assert_array_equal(moved.masks[1, :25, :27], given.masks[1, 7:, 5:])
    assert bool(moved.inside[1, :25, :27].all()) and int(moved.inside[1].sum()) == 25 * 27
    assert not bool(moved.images[1, 25:].any()) and bool((moved.masks[1, :, 27:] == IGNORE).all())


def test_a_pixel_is_background_where_the_rest_is_largest():
    """Deciding at a half gives the argmax over background and all classes."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(6, 0.4), (9, 11)).astype(np.float32)
    shares[..., 5] = 0.01  # a class that cannot win is dropped
    shares /= shares.sum(-1, keepdims=True)
    maps = segment.probabilities(shares, (9, 11))
    assert 4 not in maps.classes and maps.kind == "probability"
    winner, score = thresholds.foreground(maps)
    np.testing.assert_array_equal(deciding.decide(winner, score, 0.5), shares.argmax(-1))
    labelled = segment.probabilities(shares, (9, 11), np.array([0, 1, 0, 0, 1], bool))
    assert labelled.classes.tolist() == [1, 4]
    np.testing.assert_allclose(
        labelled.scores[..., 0], shares[..., 2] / shares[..., [0, 2, 5]].sum(-1), rtol=1e-5
    )


@pytest.fixture(scope="module")
def world(learner, tmp_path_factory):
    """Drawn scenes, a store of their true masks as if decided earlier, and a finished run."""
    out = tmp_path_factory.mktemp("segment")
    data = synthetic.write(out / "data", 12, 0, settings=synthetic.Scenes(size=40))
    source = open_dataset(data, split="train")
    store = stores.create(
        out / "masks", holds="masks", classes=source.classes.names, made_by={"stage": "decide"}
    )
    for id in source.ids:
        store.put_mask(id, np.asarray(source.mask(id)))
    settings = Training(SMALL, VIEW, epochs=2, batch_size=4, save_every=1)
    notes = segment.notes_of(source, segment.pseudo_masks(store, source))
    folders.claim(out / "run", training.record(settings, source, notes))
    Checkpoints(out / "run" / "checkpoint").save(4, learner[0], {})
    (out / "run" / "finished").write_text("4 steps\n")
    return out, source, store, settings, out / "run"


def test_pseudo_masks_must_be_whole_and_of_the_same_classes(world, tmp_path):
    _, source, store, settings, run = world
    part = stores.create(tmp_path / "part", holds="masks", classes=store.classes, made_by={})
    part.put_mask(source.ids[0], store.get_mask(source.ids[0]))
    with pytest.raises(ValueError, match=f"no masks of 7 of 8 images.*{source.ids[1]}"):
        segment.pseudo_masks(part, source)
    other = stores.create(tmp_path / "other", holds="masks", classes=("x",), made_by={})
    with pytest.raises(ValueError, match="x as class 1, the data set has beetle"):
        segment.pseudo_masks(other, source)
    scores = stores.create(tmp_path / "scores", holds="scores", classes=("x",), made_by={})
    with pytest.raises(ValueError, match="decide masks first"):
        segment.pseudo_masks(scores, source)
    part.put_mask(source.ids[0], np.full((40, 40), 9, np.uint8))
    whole = replace(source, ids=source.ids[:1])
    with pytest.raises(BadFileError, match="value 9 in a mask of 6 classes"):
        segment.pseudo_masks(part, whole).masks(source.ids[0])
    with pytest.raises(ValueError, match=r"settings\.epochs: 2 -> 3"):
        teacher = segment.pseudo_masks(store, source)
        segment.fit(source, teacher, replace(settings, epochs=3), run)


def test_records_say_who_taught(world, tmp_path):
    _, source, _, _, run = world
    record = json.loads((run / "settings.json").read_text())
    assert record["learned_from"]["made_by"] == {"stage": "decide"}
    bound = segment.notes_of(source, segment.truth(source))
    assert "full supervision, an upper bound" in bound["learned_from"]["masks"]
    blind = views.photographs(source)
    with pytest.raises(BadFileError, match="no true mask"):
        segment.truth(blind).masks(source.ids[0])


def test_a_stopped_run_goes_on_with_the_same_masks(world, tmp_path, monkeypatch):
    """What is learned here is a number that depends on every image and mask, and their order."""
    _, source, store, settings, _ = world

    def step(state, batch, key):
        seen = (batch.images.mean() + batch.masks.astype(jnp.float32).mean()) / 100
        metrics = {"loss": seen, "skipped": jnp.zeros((), jnp.int32)}
        return {"sum": 1.1 * state["sum"] + seen}, metrics

    def toy(model, *, classes, steps):
        return System(lambda key: {"sum": jnp.zeros(())}, step)

    def fitted(name):
        segment.fit(source, segment.pseudo_masks(store, source), settings, tmp_path / name)
        template = {"sum": jax.ShapeDtypeStruct((), jnp.float32)}
        return float(folders.last_state(tmp_path / name, template)["sum"])

    monkeypatch.setattr(pixels, "make", toy)
    whole = fitted("whole")
    fitted("stopped")
    (tmp_path / "stopped" / "finished").unlink()
    shutil.rmtree(tmp_path / "stopped" / "checkpoint" / "4")
    assert fitted("stopped") == whole


def test_prediction_sees_photographs_only_and_resumes(world, tmp_path, monkeypatch):
    out, _, _, _, run = world
    source = views.photographs(open_dataset(out / "data", split="val"))
    settings = Prediction(scales=(1.0,), batch_size=4)

    def predicted():
        return segment.predict(run, source, tmp_path / "scores", settings, ids=source.ids)

    store = predicted()
    assert store.kind == "probability" and not store.missing(source.ids)
    maps = store.get_scores(source.ids[0])
    assert maps.size == (40, 40) and maps.scores.shape[:2] == (10, 10)
    assert 0 <= maps.scores.min() and maps.scores.sum(-1).max() <= 1 + 1e-3
    assert store.made_by["learned_from"]["masks"] == "masks"
    monkeypatch.setattr(segment, "_network_of", None)  # would be called for a missing image
    predicted()


def test_prediction_can_keep_to_the_labels(world, tmp_path, monkeypatch):
    _, source, _, _, run = world
    even = dense.Dense(lambda state, images, inside: jnp.zeros((4, 16, 16, 7)), None, 4, 1.0)
    monkeypatch.setattr(segment, "_network_of", lambda run, record: even)
    settings = Prediction(scales=(1.0,), batch_size=4, among="labelled")
    ids = source.ids[:2]
    store = segment.predict(run, source, tmp_path / "scores", settings, ids=ids)
    for id in ids:
        shown = np.flatnonzero(source.labels(id)).tolist()
        assert store.get_scores(id).classes.tolist() == shown


def test_new_photographs_are_asked_of_the_folder_that_segment_wrote(world, tmp_path, monkeypatch):
    out, source, _, _, _ = world
    even = dense.Dense(lambda state, images, inside: jnp.zeros((4, 10, 10, 7)), None, 4, 1.0)
    monkeypatch.setattr(segment, "_network_of", lambda run, record: even)
    photograph = tmp_path / "new.png"
    Image.fromarray(source.image(source.ids[0])).save(photograph)
    assert predict.predict(out, [photograph], tmp_path / "masks", predict.Predicting()) == 1
    assert (tmp_path / "masks" / "new.png").is_file()
