"""The combiner as a stage: from stores to stores, resumable, and never a look at a mask."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data import fusion_world, stores
from wsss_jax.data.datasets import open_dataset
from wsss_jax.data.evidence import Inputs
from wsss_jax.data.external import SALIENCY
from wsss_jax.data.files import BadFileError
from wsss_jax.models.combiner import CombinerShape
from wsss_jax.stages import learn_combiner
from wsss_jax.stages.learn_combiner import Combining
from wsss_jax.systems.fusion import Protocol
from wsss_jax.types import ScoreMaps

WORLD = fusion_world.make(5, seed=11, size=24)
SETTINGS = Combining(
    Protocol(CombinerShape(width=8, walk_steps=2), students=2, walk_steps=2, average_steps=1),
    epochs=1,
    distil_epochs=1,
    cells=24,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The world as files: a folder of pictures without masks, and a store for each system."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "data" / "images").mkdir(parents=True)
    labels = {}
    for row in range(len(WORLD)):
        pixels = np.round(255 * WORLD.images[row]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "data" / "images" / f"w{row}.png")
        labels[f"w{row}"] = [fusion_world.CLASSES[c] for c in np.flatnonzero(WORLD.labels[row])]
    content = {"classes": list(fusion_world.CLASSES), "image_labels": labels}
    (folder / "data" / "labels.json").write_text(json.dumps(content))

    def store(name, classes, kind):
        return stores.create(
            folder / name, holds="scores", classes=classes, kind=kind, made_by={"world": 11}
        )

    systems = [store(name, fusion_world.CLASSES, "activation") for name in fusion_world.SYSTEMS]
    saliency = store("saliency", SALIENCY.names, "probability")
    for row in range(len(WORLD)):
        classes = np.flatnonzero(WORLD.labels[row]).astype(np.int32)
        for number, system in enumerate(systems):
            if (number, row) == (1, 2):
                continue  # one system has not seen one image
            scores = WORLD.scores[row, number][..., classes]
            maps = ScoreMaps(scores, classes, (24, 24), scores.max(axis=(0, 1)))
            system.put_scores(f"w{row}", maps)
        scores = WORLD.saliency[row][..., None]
        maps = ScoreMaps(
            scores, np.zeros(1, np.int32), (24, 24), scores.max(axis=(0, 1)), "probability"
        )
        saliency.put_scores(f"w{row}", maps)
    source = open_dataset(folder / "data", split="all")
    return Inputs(source, tuple(systems), saliency=saliency)


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("combiner") / "run"
    return learn_combiner.learn(inputs, folder, SETTINGS, ids=inputs.source.ids[:4])


def test_what_it_writes_are_probabilities_gates_and_doubts(inputs, run, tmp_path):
    ids = inputs.source.ids
    fused, gates, doubt = learn_combiner.fuse(run, inputs, tmp_path / "fused", ids=ids)
    for id in ids:
        maps, trust, unsure = (store.get_scores(id) for store in (fused, gates, doubt))
        assert (
            maps.scores.shape[:2] == trust.scores.shape[:2] == unsure.scores.shape[:2] == (24, 24)
        )
        assert list(maps.classes) == list(np.flatnonzero(inputs.source.labels(id)))
        assert maps.kind == "probability" and maps.scores.sum(axis=-1).max() < 1.01
        np.testing.assert_allclose(trust.scores.sum(axis=-1), 1, atol=5e-3)
        assert unsure.scores.min() >= 0 and unsure.scores.max() <= 1
    assert not gates.get_scores("w2").scores[..., 1].any()  # that system has not seen this image
    assert gates.classes == fusion_world.SYSTEMS


def test_it_goes_on_where_it_was_stopped_with_the_same_result(inputs, run, tmp_path):
    ids = inputs.source.ids
    fused, _, doubt = learn_combiner.fuse(run, inputs, tmp_path / "fused", ids=ids)
    before = {id: fused.path(id).read_bytes() for id in ids}
    doubt.path("w1").unlink()
    fused.path("w1").unlink()
    learn_combiner.fuse(run, inputs, tmp_path / "fused", ids=ids)
    assert {id: fused.path(id).read_bytes() for id in ids} == before
    assert learn_combiner.learn(inputs, run, SETTINGS, ids=ids[:4]) == run


def test_fewer_systems_than_in_training_can_be_fused(inputs, run, tmp_path):
    fewer = replace(inputs, systems=inputs.systems[4:], saliency=None)
    fused, gates, _ = learn_combiner.fuse(run, fewer, tmp_path / "two", ids=("w0",))
    assert gates.get_scores("w0").scores.shape[-1] == 2
    assert np.isfinite(fused.get_scores("w0").scores).all()


def test_other_settings_are_refused_and_an_unfinished_run_is_named(inputs, run, tmp_path):
    with pytest.raises(ValueError, match="epochs"):
        learn_combiner.learn(inputs, run, replace(SETTINGS, epochs=3), ids=inputs.source.ids[:4])
    with pytest.raises(BadFileError, match="no finished combiner"):
        learn_combiner.fuse(tmp_path, inputs, tmp_path / "out", ids=("w0",))


def test_scores_of_another_photograph_cost_only_that_image(inputs, run, tmp_path):
    bad = stores.create(
        tmp_path / "bad", holds="scores", classes=fusion_world.CLASSES, made_by={"world": 0}
    )
    maps = inputs.systems[0].get_scores("w0")
    bad.put_scores("w0", replace(maps, size=(25, 24)))
    mixed = replace(inputs, systems=(bad, *inputs.systems[1:]))
    fused, _, doubt = learn_combiner.fuse(run, mixed, tmp_path / "mixed", ids=("w0", "w1"))
    assert fused.ids() == ("w1",)
    assert "(25, 24)" in (doubt.folder / "skipped.json").read_text()
