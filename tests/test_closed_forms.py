"""Combining without a network: the closed form that teaches students, with its probe."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import toy_evidence
from toy_evidence import IDS

from wsss_jax.data import stores, views
from wsss_jax.data.files import BadFileError
from wsss_jax.models.combiner import CombinerShape
from wsss_jax.ops import evidence as ops
from wsss_jax.stages import closed_forms, combine_learned, learn_combiner
from wsss_jax.stages.closed_forms import Closed
from wsss_jax.stages.combine_learned import Learned
from wsss_jax.stages.combiner_run import Combining
from wsss_jax.systems.label_free import Protocol

SETTINGS = Combining(Protocol(walk_steps=9), cells=24, network=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy_evidence.looked(toy_evidence.written(folder), folder / "features")


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    return closed_forms.learn(inputs, folder, SETTINGS, ids=IDS[:4])


def fused(run, inputs, folder, ids=IDS):
    store = closed_forms.fuse(run, inputs, folder, ids=ids)
    return {id: store.get_scores(id) for id in ids}


def threshold_of(run):
    return json.loads((run / "teacher.json").read_text())["threshold"]


def test_a_class_is_more_probable_than_background_where_its_map_exceeds_the_threshold():
    maps = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 5, 4, 3)).astype(np.float32))
    present = jnp.array([[True, True, False], [True, False, False]])
    for threshold in (0.3, 0.7):
        said = np.asarray(ops.beside_background(maps, present, jnp.float32(threshold)))
        here = np.where(np.asarray(present)[:, None, None], maps, 0)
        assert ((said > 1 - said.sum(-1, keepdims=True)) == (here > threshold)).all()
        np.testing.assert_allclose(said.argmax(-1), here.argmax(-1))
        assert said.sum(-1).max() < 1
    none = ops.beside_background(maps, present, jnp.float32(0))
    np.testing.assert_allclose(none.sum(-1), 1, atol=1e-4)


def test_it_is_the_rival_of_the_ablation_at_its_threshold(inputs, run, tmp_path):
    names = tuple(store.folder.name for store in inputs.systems)
    way = Closed(names, steps=1, saliency=True, threshold=0.4, cells=24, probes=2)
    seen = SETTINGS.sees(inputs)
    home = tmp_path / "rival"
    store, threshold = closed_forms.combine(way, seen, home / "maps", ids=IDS, teaching=IDS[:4])
    assert threshold == threshold_of(run)
    for id, maps in fused(run, inputs, tmp_path / "fused").items():
        scores = store.get_scores(id).scores
        assert (
            maps.kind == "probability"
            and maps.classes.tolist() == np.flatnonzero(inputs.source.labels(id)).tolist()
        )
        clear = np.abs(scores.max(-1) - threshold) > 0.01  # stores keep 16 bits
        more = maps.scores.max(-1) > 1 - maps.scores.sum(-1)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(more[clear], (scores.max(-1) > threshold)[clear])
        odds = maps.scores / (1 - maps.scores.sum(-1, keepdims=True))
        np.testing.assert_allclose(odds, scores / threshold, rtol=0.02, atol=0.02)


def test_it_takes_other_systems_and_goes_on_where_it_stopped(inputs, run, tmp_path):
    before = fused(run, inputs, tmp_path / "fused")
    probe = (run / "probe_2.npz").read_bytes()
    assert closed_forms.learn(inputs, run, SETTINGS, ids=IDS[:4]) == run
    assert (run / "probe_2.npz").read_bytes() == probe
    store = stores.open_store(tmp_path / "fused")
    store.path(IDS[1]).unlink()
    after = fused(run, inputs, tmp_path / "fused")
    for id in IDS:
        np.testing.assert_array_equal(before[id].scores, after[id].scores)
    fewer = replace(inputs, systems=inputs.systems[3:], saliency=None)
    some = fused(run, fewer, tmp_path / "fewer", ids=IDS[:1])[IDS[0]]
    assert np.abs(some.scores - before[IDS[0]].scores).max() > 0.05
    blank = replace(inputs, source=views.photographs(inputs.source))
    assert not len(fused(run, blank, tmp_path / "blank", ids=IDS[:1])[IDS[0]].classes)


def test_without_background_every_cell_is_of_a_class(inputs, tmp_path):
    shape = CombinerShape(background=False)
    settings = replace(SETTINGS, protocol=replace(SETTINGS.protocol, shape=shape, probes=1))
    run = closed_forms.learn(inputs, tmp_path / "run", settings, ids=IDS)
    for maps in fused(run, inputs, tmp_path / "fused").values():
        np.testing.assert_allclose(maps.scores.sum(-1), 1, atol=2e-3)


def test_what_it_cannot_do_is_said(inputs, run, tmp_path):
    with pytest.raises(ValueError, match="needs frozen features; make them by `wsss features`"):
        closed_forms.learn(replace(inputs, features=None), run, SETTINGS, ids=IDS[:4])
    with pytest.raises(ValueError, match="neither a network nor a probe"):
        replace(SETTINGS, protocol=Protocol(probes=0))
    with pytest.raises(ValueError, match=r"other settings(.|\n)*network"):
        learn_combiner.learn(inputs, run, replace(SETTINGS, network=True), ids=IDS[:4])
    with pytest.raises(BadFileError, match="without a network, wanted one with"):
        learn_combiner.fuse(run, inputs, tmp_path / "fused", ids=IDS)
    asked = {"saliency": inputs.saliency, "source": inputs.source, "teaching": inputs.source}
    few = Learned(tmp_path / "few", labelled=2, combining=SETTINGS)
    with pytest.raises(ValueError, match="--labelled fine-tunes a network"):
        combine_learned.combine(few, inputs.systems, out=tmp_path / "out", **asked)
    with pytest.raises(ValueError, match=r"--features: .* name the folder of its run \(--run\)"):
        Learned(features=tmp_path)
    damaged = tmp_path / "damaged"
    closed_forms.learn(inputs, damaged, SETTINGS, ids=IDS[:4])
    (damaged / "teacher.json").write_text("{}")
    with pytest.raises(BadFileError, match=r"teacher\.json: KeyError.*learn again"):
        closed_forms.fuse(damaged, inputs, tmp_path / "fused", ids=IDS)
    (damaged / "teacher.json").unlink()
    with pytest.raises(BadFileError, match=r"teacher\.json: not there"):
        closed_forms.fuse(damaged, inputs, tmp_path / "fused", ids=IDS)


def test_one_command_makes_it(inputs, tmp_path):
    chosen = Learned(tmp_path / "run", features=inputs.features.folder, combining=SETTINGS)
    made = combine_learned.combine(
        chosen, inputs.systems, inputs.saliency, inputs.source, inputs.source, tmp_path / "out"
    )
    assert made.kind == "probability" and set(made.ids()) == set(IDS)
    assert not (tmp_path / "out_gates").exists()
    assert made.made_by["stage"] == "closed form"
