"""Combining without a network: each system with a probe of its own, and one of all."""

import json
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import toy_evidence
from toy_evidence import IDS

from wsss_jax import config
from wsss_jax.combiner import (
    combine_learned,
    combine_probes,
    combiner_run,
    few_shot,
    learn_combiner,
    linear_probe,
)
from wsss_jax.combiner import consensus as ops
from wsss_jax.combiner.combine_learned import Learned
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.few_shot import FewShot
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import CombinerShape
from wsss_jax.data import stores, views
from wsss_jax.errors import BadFileError
from wsss_jax.study import closed_forms
from wsss_jax.study.closed_forms import Closed

SETTINGS = Combining(Protocol(walk_steps=9), cells=24, network=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy_evidence.looked(toy_evidence.written(folder), folder / "features")


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    return combine_probes.learn(inputs, folder, SETTINGS, ids=IDS[:4])


def fused(run, inputs, folder, ids=IDS):
    store = combine_probes.fuse(run, inputs, folder, ids=ids)
    return {id: store.get_scores(id) for id in ids}


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


def test_what_several_say_is_their_geometric_mean_with_background():
    random = np.random.default_rng(1)
    each = random.dirichlet(np.ones(3), (2, 4, 3, 3)).astype(np.float32)  # two images, 4 systems
    scores = jnp.asarray(each[..., 1:])
    present, whole = jnp.ones((2, 2), bool), jnp.ones((2, 4, 2), bool)
    said = np.asarray(ops.pooled(scores, whole, present))
    wanted = np.exp(np.log(np.maximum(each, 1e-4)).mean(axis=1))
    np.testing.assert_allclose(said, wanted / wanted.sum(-1, keepdims=True), rtol=1e-3)
    # A system that lacks a class says nothing of the image, and who is not there is not heard.
    lacking = whole.at[0, 1, 0].set(False).at[0, 2].set(False)
    rest = np.exp(np.log(np.maximum(each[0, [0, 3]], 1e-4)).mean(axis=0))
    some = np.asarray(ops.pooled(scores, lacking, present))
    np.testing.assert_allclose(some[0], rest / rest.sum(-1, keepdims=True), rtol=1e-3)
    np.testing.assert_allclose(some[1], said[1], rtol=1e-5)
    one = np.asarray(ops.pooled(scores, whole, jnp.array([[True, False]] * 2)))
    assert not one[..., 2].any()
    np.testing.assert_allclose(one.sum(-1), 1, atol=1e-5)


def test_a_system_by_itself_is_the_closed_form_of_an_ablation_at_its_threshold(
    inputs, run, tmp_path
):
    fused(run, inputs, tmp_path / "fused")
    for one in inputs.systems[:2]:
        name = one.folder.name
        way = Closed((name,), 1, True, 0.4, cells=24, probes=2, along="features", last="roots")
        alone = replace(SETTINGS.sees(inputs), systems=(one,))
        home = tmp_path / name
        known = [id for id in IDS[:4] if one.path(id).is_file()]
        rival, threshold = closed_forms.combine(way, alone, home / "maps", ids=IDS, teaching=known)
        mended = stores.open_store(tmp_path / f"fused_{name}")
        for id in mended.ids():
            scores, maps = rival.get_scores(id).scores, mended.get_scores(id).scores
            odds = maps / np.maximum(1 - maps.sum(-1, keepdims=True), 1e-3)
            np.testing.assert_allclose(odds, scores / threshold, rtol=0.03, atol=0.03)


def test_what_a_system_has_not_seen_it_has_no_say_in(inputs, run, tmp_path):
    maps = fused(run, inputs, tmp_path / "fused")
    lacking, first = inputs.systems[1], inputs.systems[0].folder.name
    mended = stores.open_store(tmp_path / f"fused_{lacking.folder.name}")
    assert set(mended.ids()) == set(IDS) - {IDS[2]} and np.isfinite(maps[IDS[2]].scores).all()
    one = replace(inputs, systems=(lacking,))
    with pytest.raises(ValueError, match=r"has no record of any of the 1 images that teach"):
        combine_probes.learn(one, tmp_path / "run", SETTINGS, ids=IDS[2:3])
    # Whatever true masks taught says so, in the fused store and in those of the single systems.
    taught = stores.create(
        tmp_path / first,
        holds="scores",
        classes=lacking.classes,
        kind=lacking.kind,
        made_by={"labelled": ["x"]},
    )
    taught.put_scores(IDS[0], inputs.systems[0].get_scores(IDS[0]))
    shots = replace(inputs, systems=(taught,))
    store = combine_probes.fuse(run, shots, tmp_path / "shots", ids=IDS[:1])
    beside = stores.open_store(tmp_path / f"shots_{first}")
    assert store.made_by["labelled"] == beside.made_by["labelled"] == ["x"]


def test_the_last_probe_calls_as_much_background_as_its_labels(inputs, run):
    random = np.random.default_rng(0)
    seen = random.normal(size=(900, 3)).astype(np.float32)
    possible = random.random((900, 4)) < 0.7
    possible[:, :2] = True
    weights = random.uniform(0.5, 1.5, 900)
    labels = np.where(seen[:, 0] + random.normal(size=900) > 1.2, 1, 0)
    kernel, offset = linear_probe.fit(seen, labels, possible, weights, penalty=1e-2)
    moved = linear_probe.with_share(kernel, offset, seen, labels, possible, weights)

    def called(offset):
        logits = np.where(possible, seen @ kernel + offset, -np.inf)
        return np.average(logits.argmax(1) == 0, weights=weights)

    share = np.average(labels == 0, weights=weights)
    assert abs(called(moved) - share) < 0.005 < abs(called(offset) - share)
    np.testing.assert_array_equal(moved[1:], offset[1:])
    assert (run / "probe_last.npz").is_file()


def test_it_takes_other_systems_and_goes_on_where_it_stopped(inputs, run, tmp_path):
    before = fused(run, inputs, tmp_path / "fused")
    own = run / "systems" / inputs.systems[0].folder.name / "probe_2.npz"
    probe = own.read_bytes()
    assert combine_probes.learn(inputs, run, SETTINGS, ids=IDS[:4]) == run
    assert own.read_bytes() == probe
    store = stores.open_store(tmp_path / "fused")
    store.path(IDS[1]).unlink()
    after = fused(run, inputs, tmp_path / "fused")
    for id in IDS:
        np.testing.assert_array_equal(before[id].scores, after[id].scores)
    fewer = replace(inputs, systems=inputs.systems[3:], saliency=None)
    some = fused(run, fewer, tmp_path / "fewer", ids=IDS[:1])[IDS[0]]
    assert np.abs(some.scores - before[IDS[0]].scores).max() > 0.05
    # One that the run has not seen goes along with the probe of all.
    new = shutil.copytree(inputs.systems[0].folder, tmp_path / "stranger")
    strange = replace(inputs, systems=(*inputs.systems[:1], stores.open_store(new)))
    both = fused(run, strange, tmp_path / "both", ids=IDS[:1])[IDS[0]]
    assert np.isfinite(both.scores).all() and both.scores.std() > 0.01
    blank = replace(inputs, source=views.photographs(inputs.source))
    assert not len(fused(run, blank, tmp_path / "blank", ids=IDS[:1])[IDS[0]].classes)


def test_without_background_every_cell_is_of_a_class(inputs, tmp_path):
    shape = CombinerShape(background=False)
    settings = replace(SETTINGS, protocol=replace(SETTINGS.protocol, shape=shape, probes=1))
    run = combine_probes.learn(inputs, tmp_path / "run", settings, ids=IDS)
    for maps in fused(run, inputs, tmp_path / "fused").values():
        np.testing.assert_allclose(maps.scores.sum(-1), 1, atol=2e-3)


def test_what_it_cannot_do_is_said(inputs, run, tmp_path):
    with pytest.raises(ValueError, match="need frozen features; make them by `wsss features`"):
        combine_probes.learn(replace(inputs, features=None), run, SETTINGS, ids=IDS[:4])
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
    twins = replace(inputs, systems=(inputs.systems[0], inputs.systems[0]))
    with pytest.raises(ValueError, match=r"two systems are called part; .* rename"):
        combine_probes.learn(twins, tmp_path / "twins", SETTINGS, ids=IDS[:4])
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "systems" / "part" / "teacher.json").write_text("{}")
    with pytest.raises(BadFileError, match=r"teacher\.json: KeyError.*learn again"):
        combine_probes.fuse(damaged, inputs, tmp_path / "fused", ids=IDS)
    (damaged / "systems" / "part" / "teacher.json").unlink()
    with pytest.raises(BadFileError, match=r"teacher\.json: not there"):
        combine_probes.fuse(damaged, inputs, tmp_path / "fused", ids=IDS)


def test_the_last_threshold_alone_is_read_off_roots(inputs, run, tmp_path):
    """Those that teach the probes are the same, and records from before go on as they were."""
    before = config.from_json(Protocol, {"walk_along": "features"})
    assert before.last_threshold == "maps" and SETTINGS.protocol.last_threshold == "roots"
    as_before = replace(SETTINGS, protocol=replace(SETTINGS.protocol, last_threshold="maps"))
    other = combine_probes.learn(inputs, tmp_path / "run", as_before, ids=IDS[:4])
    for home in (run / "systems").iterdir():
        there = other / "systems" / home.name
        for name in ("teacher_1.json", "teacher_2.json", "probe_2.npz"):
            assert (home / name).read_bytes() == (there / name).read_bytes()
        lower, higher = (json.loads((f / "teacher.json").read_text()) for f in (home, there))
        assert lower["threshold"] < higher["threshold"]


def test_it_teaches_a_network_that_sees_no_probe(inputs, tmp_path):
    protocol = replace(SETTINGS.protocol, shape=CombinerShape(width=8), students=2)
    settings = Combining(protocol, distil_epochs=2, cells=24, save_every=2)
    run = learn_combiner.learn(inputs, tmp_path / "run", settings, ids=IDS[:4])
    assert not list(run.glob("students*")) and not list(run.glob("average*"))
    target = stores.open_store(run / settings.target(inputs.channels()))
    alone = combine_probes.learn(inputs, tmp_path / "alone", settings.alone(), ids=IDS[:4])
    wanted = fused(alone, inputs, tmp_path / "wanted", ids=IDS[:4])
    for id, maps in wanted.items():
        np.testing.assert_array_equal(target.get_scores(id).scores, maps.scores)
    example = combiner_run.seen_by(run, inputs).read(IDS[4])
    assert example.probe is None and example.last_probe is not None
    made, gates, doubt = learn_combiner.fuse(run, inputs, tmp_path / "fused", ids=IDS)
    assert set(made.ids()) == set(IDS) == set(gates.ids())
    apart = np.stack([doubt.get_scores(id).scores[..., 1] for id in IDS])
    assert np.isfinite(apart).all() and apart.max() > 1e-3  # shown other systems it says otherwise
    # It is averaged with what taught it: shown is what it says, and what they say, by themselves.
    record = json.loads((run / "settings.json").read_text())
    assert record["settings"].pop("with_probes")
    apart_run = shutil.copytree(run, tmp_path / "apart")
    (apart_run / "settings.json").write_text(json.dumps(record))
    network, _, _ = learn_combiner.fuse(apart_run, inputs, tmp_path / "network", ids=IDS[3:5])
    assert not combine_learned.by_probes(tmp_path / "network")
    (probes,) = combine_learned.by_probes(tmp_path / "fused")
    singles = combine_learned.each_mended(tmp_path / "fused", inputs.systems)
    assert [one.parents for one in singles] == [(one.folder.name,) for one in inputs.systems]
    for id in IDS[3:5]:
        one, other, both = (s.get_scores(id).scores for s in (network, probes, made))
        odds = np.sqrt(one * other), np.sqrt((1 - one.sum(-1)) * (1 - other.sum(-1)))
        wanted_mean = odds[0] / (odds[0].sum(-1) + odds[1])[..., None]
        np.testing.assert_allclose(both, wanted_mean, atol=5e-3)
        assert np.abs(both - one).max() > 0.01
    # Other systems, none with a probe of its own, in a network that true masks have taught since.
    tuned = few_shot.fine_tune(run, inputs, tmp_path / "tuned", FewShot(1, epochs=1), ids=IDS[:4])
    fewer = replace(inputs, systems=inputs.systems[3:])
    some, _, _ = learn_combiner.fuse(tuned, fewer, tmp_path / "fewer", ids=IDS[:1])
    assert np.isfinite(some.get_scores(IDS[0]).scores).all() and some.made_by["labelled"]
    # Where nothing is to be learned by a probe, students teach.
    assert settings.target(0) == replace(settings, teacher="students").target(2)
    with pytest.raises(ValueError, match=r"two systems are called part"):
        twins = replace(inputs, systems=(inputs.systems[0], inputs.systems[0]))
        learn_combiner.learn(twins, tmp_path / "twins", settings, ids=IDS[:4])


def test_a_system_that_cannot_teach_is_refused_before_anything_is_written(inputs, tmp_path):
    lacking, run = inputs.systems[1], tmp_path / "run"
    known = replace(inputs, systems=(inputs.systems[0],))
    both = replace(inputs, systems=inputs.systems[:2])
    for network, stage in ((False, combine_probes), (True, learn_combiner)):
        with pytest.raises(ValueError, match=rf"{lacking.folder.name} has no record of any of"):
            stage.learn(both, run, replace(SETTINGS, network=network), ids=IDS[2:3])
        assert not run.exists()
    combine_probes.learn(known, run, SETTINGS, ids=IDS[2:3])


def test_the_probes_of_a_run_that_were_lost_are_missed(inputs, run, tmp_path):
    home = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(home / "systems" / inputs.systems[0].folder.name)
    with pytest.raises(BadFileError, match=r"probe_2\.npz"):
        combine_probes.fuse(home, inputs, tmp_path / "fused", ids=IDS)


def test_one_command_makes_it(inputs, tmp_path):
    chosen = Learned(tmp_path / "run", features=inputs.features.folder, combining=SETTINGS)
    made = combine_learned.combine(
        chosen, inputs.systems, inputs.saliency, inputs.source, inputs.source, tmp_path / "out"
    )
    assert made.kind == "probability" and set(made.ids()) == set(IDS)
    # The finished run fuses other systems, where it is asked to learn nothing.
    given = (inputs.systems[3:], inputs.saliency, inputs.source, inputs.source)
    with pytest.raises(ValueError, match="other settings"):
        combine_learned.combine(chosen, *given, tmp_path / "some")
    some = combine_learned.combine(replace(chosen, learn=False), *given, tmp_path / "some")
    assert set(some.ids()) == set(IDS)
    with pytest.raises(BadFileError, match="nowhere"):
        nowhere = replace(chosen, run=tmp_path / "nowhere", learn=False)
        combine_learned.combine(nowhere, *given, tmp_path / "none")
    with pytest.raises(ValueError, match="--no-learn does not"):
        combine_learned.combine(replace(chosen, learn=False, labelled=1), *given, tmp_path / "none")
    assert not (tmp_path / "out_gates").exists()
    assert made.made_by["stage"] == "probes" and (tmp_path / "out_part").is_dir()
