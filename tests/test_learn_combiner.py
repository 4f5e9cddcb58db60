"""The combiner as a stage: from stores to stores, resumable, and never a look at a mask."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import toy_evidence
from toy_evidence import IDS, WORLD

from wsss_jax import config
from wsss_jax.combiner import (
    combine_learned,
    combiner_networks,
    combiner_run,
    early_stop,
    few_shot,
    fusion,
    label_free,
    learn_combiner,
    probe,
    teacher,
)
from wsss_jax.combiner import probe_maps as probes
from wsss_jax.combiner.batches import batched, evidence_groups
from wsss_jax.combiner.combine_learned import Learned
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.early_stop import LeftOut
from wsss_jax.combiner.few_shot import FewShot
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import CombinerShape
from wsss_jax.combiner.probe_maps import Probe
from wsss_jax.data import stores, views
from wsss_jax.errors import BadFileError
from wsss_jax.ops import masks
from wsss_jax.recipes import summary
from wsss_jax.run import folders
from wsss_jax.run.executors import Workers
from wsss_jax.stages import masks as pseudo_masks
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.masks import BINS
from wsss_jax.study import fusion_world

GROUPS = ("own", "consensus", "saliency")
SETTINGS = Combining(
    Protocol(
        CombinerShape(GROUPS, width=8, walk_steps=2), students=2, walk_steps=2, average_steps=1
    ),
    epochs=1,
    distil_epochs=1,
    cells=24,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_evidence.written(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("combiner") / "run"
    return learn_combiner.learn(inputs, folder, SETTINGS, ids=inputs.source.ids[:4])


def test_what_it_writes_and_how_it_goes_on_where_it_stopped(inputs, run, tmp_path):
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
    assert not gates.get_scores(IDS[2]).scores[..., 1].any()  # that system has not seen this image
    assert gates.classes == fusion_world.SYSTEMS
    before = {id: fused.path(id).read_bytes() for id in ids}
    fused.path(IDS[1]).unlink()
    learn_combiner.fuse(run, inputs, tmp_path / "fused", ids=ids)
    assert {id: fused.path(id).read_bytes() for id in ids} == before
    assert learn_combiner.learn(inputs, run, SETTINGS, ids=ids[:4]) == run


def test_a_system_that_counts_in_other_units_says_the_same(inputs, run, tmp_path, capsys):
    """A fifth of all its scores changes nothing, unless the run is one from before that."""
    ids, first = inputs.source.ids, inputs.systems[0]
    small = stores.create(
        tmp_path / "small", holds="scores", classes=first.classes, kind=first.kind, made_by={}
    )
    for id in ids:
        maps = first.get_scores(id)
        small.put_scores(id, replace(maps, scores=0.2 * maps.scores))
    other = replace(inputs, systems=(small, *inputs.systems[1:]))
    before = shutil.copytree(run, tmp_path / "before")
    record = json.loads((before / "settings.json").read_text())
    assert record["settings"].pop("units") == "typical"
    (before / "settings.json").write_text(json.dumps(record))

    def apart(run, name):
        pair = (
            learn_combiner.fuse(run, seen, tmp_path / f"{name}{number}", ids=ids)[0]
            for number, seen in enumerate((inputs, other))
        )
        one, two = ([store.get_scores(id).scores for id in ids] for store in pair)
        return max(np.abs(a - b).max() for a, b in zip(one, two, strict=True))

    assert apart(run, "now") < 0.01
    assert "small: scores reach 0.2, and are divided by that" in capsys.readouterr().out
    assert apart(before, "then") > 0.1


def test_fewer_systems_than_in_training_can_be_fused(inputs, run, tmp_path):
    fewer = replace(inputs, systems=inputs.systems[4:], saliency=None)
    fused, gates, _ = learn_combiner.fuse(run, fewer, tmp_path / "two", ids=(IDS[0],))
    assert gates.get_scores(IDS[0]).scores.shape[-1] == 2
    assert np.isfinite(fused.get_scores(IDS[0]).scores).all()
    # An image of which no class is known is all background, like everywhere else.
    blank = replace(fewer, source=views.photographs(fewer.source))
    fused, gates, _ = learn_combiner.fuse(run, blank, tmp_path / "two", ids=(IDS[1],))
    assert not len(fused.get_scores(IDS[1]).classes) and gates.ids() == (IDS[0],)
    assert fused.get_scores(IDS[1]).size == fewer.source.size(IDS[1])


def test_other_settings_are_refused_and_an_unfinished_run_is_named(inputs, run, tmp_path):
    with pytest.raises(ValueError, match="epochs"):
        learn_combiner.learn(inputs, run, replace(SETTINGS, epochs=3), ids=inputs.source.ids[:4])
    with pytest.raises(BadFileError, match="no finished run"):
        learn_combiner.fuse(tmp_path, inputs, tmp_path / "out", ids=(IDS[0],))


def test_scores_of_another_photograph_cost_only_that_image(inputs, run, tmp_path):
    bad = stores.create(
        tmp_path / "bad", holds="scores", classes=fusion_world.CLASSES, made_by={"world": 0}
    )
    maps = inputs.systems[0].get_scores(IDS[0])
    bad.put_scores(IDS[0], replace(maps, size=(25, 24)))
    mixed = replace(inputs, systems=(bad, *inputs.systems[1:]))
    fused, _, doubt = learn_combiner.fuse(run, mixed, tmp_path / "mixed", ids=(IDS[0], IDS[1]))
    assert fused.ids() == (IDS[1],)
    assert "(25, 24)" in (doubt.folder / "skipped.json").read_text()


def test_few_labels_move_the_network_and_their_folder_belongs_to_one_draw(inputs, run, tmp_path):
    ids, shots = inputs.source.ids[:4], FewShot(1, epochs=1, learning_rate=0.05)
    tuned = few_shot.fine_tune(run, inputs, tmp_path / "one", shots, ids=ids)
    before, after = (combiner_networks.distilled(folder).params for folder in (run, tuned))
    moved = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), before, after
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
    template = fusion.template(SETTINGS.protocol, inputs.channels())
    last = folders.last_state(tuned / "distilled", template).params
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c, (a + b) / 2, atol=1e-6), before, last, after
    )
    assert few_shot.fine_tune(run, inputs, tmp_path / "one", shots, ids=ids) == tuned
    with pytest.raises(ValueError, match="seed"):
        few_shot.fine_tune(run, inputs, tmp_path / "one", replace(shots, seed=5), ids=ids)
    with pytest.raises(ValueError, match=r"0\.0 of the way"):
        FewShot(way=0.0)
    with pytest.raises(ValueError, match="9 are wanted"):
        few_shot.drawn(inputs, FewShot(9), ids)


def test_the_command_learns_and_with_labelled_images_says_which(inputs, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    chosen = Learned(tmp_path / "run", labelled=1, combining=SETTINGS)
    teaching = replace(inputs.source, ids=inputs.source.ids[:4])
    given = (inputs.systems, inputs.saliency, inputs.source, teaching)
    fused = combine_learned.combine(chosen, *given, tmp_path / "few")
    taught = json.loads((tmp_path / "run_k1" / "settings.json").read_text())["labelled"]
    assert len(taught) == 1 and taught[0] in teaching.ids
    assert fused.made_by["labelled"] == taught
    masks = pseudo_masks.decide(
        fused, tmp_path / "masks", pseudo_masks.Masking(0.5), ids=fused.ids()
    )
    assert masks.made_by["labelled"] == taught  # and what is made from it says so too
    results = pseudo_masks.judged(
        [fused, masks], inputs.source, Scoring(), split="all", workers=Workers()
    )
    text = summary.explanation(summary.against_first(results))
    assert "true masks of some images taught it: few (1), masks (1)." in text
    free = combine_learned.combine(replace(chosen, labelled=0), *given, tmp_path / "free")
    assert "labelled" not in free.made_by
    with pytest.raises(ValueError, match="9 are wanted"):
        combine_learned.combine(replace(chosen, labelled=9), *given, tmp_path / "nine")
    with pytest.raises(ValueError, match="name the folder"):
        combine_learned.combine(replace(chosen, run=None), *given, tmp_path / "none")


def test_students_of_a_second_round_learn_from_the_mean_of_the_first(inputs, run, tmp_path):
    # The students of the first round are those of a run of one round.
    ids, twice = inputs.source.ids[:4], replace(SETTINGS, rounds=2)
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "distilled")
    shutil.rmtree(again / "average")
    (again / "finished").unlink()
    record = json.loads((again / "settings.json").read_text())
    record["settings"]["rounds"] = 2
    (again / "settings.json").write_text(json.dumps(record))
    learn_combiner.learn(inputs, again, twice, ids=ids)
    assert set(stores.open_store(again / "average_2").ids()) == set(ids)
    # Both start alike and see the same images, so that only the teacher tells them apart.
    lines = [(again / f"students{n}" / "metrics.jsonl").read_text() for n in ("", "_2")]
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in lines]
    assert losses[0][0] != losses[1][0]
    shutil.rmtree(again / "students")  # the last round's are asked how far they disagree
    fused, _, _ = learn_combiner.fuse(again, inputs, tmp_path / "fused", ids=ids[:1])
    assert np.isfinite(fused.get_scores(ids[0]).scores).all()


def test_a_run_of_an_earlier_version_is_refused_by_name(inputs, run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    record = json.loads((old / "settings.json").read_text())
    del record["version"]
    (old / "settings.json").write_text(json.dumps(record))
    with pytest.raises(BadFileError, match=r"old: learned by an earlier version.*learn it again"):
        learn_combiner.fuse(old, inputs, tmp_path / "fused", ids=inputs.source.ids[:1])
    with pytest.raises(ValueError, match="version"):
        learn_combiner.learn(inputs, old, SETTINGS, ids=inputs.source.ids)
    assert not (tmp_path / "fused").exists()


def test_a_record_from_before_there_were_rounds_is_one_of_one_round(run):
    record = json.loads((run / "settings.json").read_text())["settings"]
    assert "rounds" not in record
    found = combiner_run.finished(run)[0]
    assert found == replace(
        SETTINGS, protocol=label_free.on_grid(SETTINGS.protocol, SETTINGS.cells)
    )


def test_early_stopping_keeps_the_state_that_predicts_left_out_systems_best(
    inputs, tmp_path, monkeypatch
):
    protocol = replace(SETTINGS.protocol, students=1)
    settings = replace(SETTINGS, protocol=protocol, distil_epochs=4, patience=1)
    scores = iter([3.0, 2.0, 2.5, 1.0])
    monkeypatch.setattr(LeftOut, "score", lambda self, state: next(scores))
    run = learn_combiner.learn(inputs, tmp_path / "run", settings, ids=inputs.source.ids)
    steps = json.loads((run / "distilled" / "scores.json").read_text())
    assert list(steps.values()) == [3.0, 2.0, 2.5]  # the fourth epoch was never made
    assert int(combiner_networks.distilled(run).step) == sorted(map(int, steps))[1]


def test_the_teachers_threshold_is_read_off_its_own_maps_once(inputs, tmp_path):
    small, path = replace(inputs, cells=24), tmp_path / "teacher.json"
    slots = small.slots(IDS[:2])
    found = teacher.otsu(small, IDS[:2], SETTINGS.protocol, path)
    # The maps peak at 1, and what is above the threshold differs most from what is below.
    (group,) = evidence_groups(small.read, slots, cells=24, skip=lambda id, reason: None)
    maps = np.asarray(teacher._highest(group.evidence, protocol=SETTINGS.protocol))
    values = maps[maps >= 0]
    assert len(values) == 2 * 24 * 24 and values.max() == pytest.approx(1)
    spread = [
        (values < t).mean() * (values >= t).mean()
        * (values[values < t].mean() - values[values >= t].mean()) ** 2
        for t in (found, found - 0.1, found + 0.1)
    ]  # fmt: skip
    assert spread[0] == max(spread)
    roots = teacher.otsu(small, IDS[:2], SETTINGS.protocol, tmp_path / "roots.json", roots=True)
    counts = np.histogram(np.sqrt(values), BINS, (0.0, 1.0))[0].astype(float)
    assert roots == pytest.approx(masks.otsu(counts) ** 2, abs=1e-4) and roots < found
    path.write_text('{"threshold": 0.25}')
    protocol = replace(SETTINGS.protocol, probes=0)
    known, _ = teacher.prepared(protocol, small, IDS[:2], tmp_path, otsu=True)
    assert known.threshold == 0.25
    assert teacher.prepared(protocol, small, IDS[:2], tmp_path, otsu=False) == (protocol, small)


def test_the_score_of_early_stopping_is_finite_and_its_images_do_not_teach(inputs, run, tmp_path):
    teaching, judges = early_stop.held_out([str(n) for n in range(25)])
    assert judges == ("9", "19") and len(teaching) == 23
    small = replace(inputs, cells=24)
    watch = LeftOut(tmp_path, SETTINGS.protocol, small, inputs.source.ids[:2], patience=2)
    state = combiner_networks.distilled(run)
    assert not watch(5, state) and 0 < watch.scores()[5] < 10
    assert not watch(9, state)  # as good as the best
    assert watch.scores()[5] == watch.scores()[9]


@pytest.fixture(scope="module")
def looked(inputs, tmp_path_factory):
    return toy_evidence.looked(inputs, tmp_path_factory.mktemp("features") / "features")


def test_a_probe_is_learned_twice_shown_to_all_but_students_and_kept(looked, tmp_path):
    shape = replace(SETTINGS.protocol.shape, groups=(*GROUPS, "probe"))
    protocol = replace(SETTINGS.protocol, shape=shape)
    settings = replace(SETTINGS, protocol=protocol, teacher="students")
    ids = looked.source.ids[:4]
    run = learn_combiner.learn(looked, tmp_path / "run", settings, ids=ids)
    first, second = (probes.load(run / f"probe_{number}.npz") for number in (1, 2))
    assert first.classes == fusion_world.CLASSES and first.salient
    assert first.kernel.shape == (2 + 9 + 2, 7)
    assert np.abs(first.kernel - second.kernel).max() > 1e-3  # learned from other labels
    seen = combiner_run.seen_by(run, looked)
    example = seen.read(IDS[4])
    assert example.probe.shape == example.scores.shape[1:]
    batch = jax.tree.map(jax.numpy.asarray, batched([example], rows=1, slots=2, cells=24))
    assert batch.cues[0].tolist() == [True, False, True]
    blind, shown = (
        fusion.views_of(
            replace(settings.protocol, probe_students=see), jax.numpy.ones((1, 6), bool), batch
        )
        for see in (False, True)
    )
    assert not blind[0].cues[0, 2] and blind[0].cues[0, 0] and shown[0].cues[0, 2]
    # Teachers listen to it, and the network too.
    bare = replace(batch, cues=batch.cues & jax.numpy.array([[True, True, False]]))
    teach = jax.jit(fusion.consensus, static_argnums=0)
    network = fusion.structure(settings.protocol.shape, 2)
    state = combiner_networks.distilled(run)
    for says in (
        lambda e: teach(settings.protocol, e, e.available),
        lambda e: fusion.combine(network, state, e, e.available).probabilities(),
    ):
        assert float(abs(says(batch) - says(bare)).max()) > 1e-3
    # What is fused is the mean with one that is learned in the end.
    whole, _, _ = learn_combiner.fuse(run, looked, tmp_path / "whole", ids=ids[:1])
    record = json.loads((run / "settings.json").read_text())
    record["settings"].pop("last_probe")
    alone = shutil.copytree(run, tmp_path / "alone")
    (alone / "settings.json").write_text(json.dumps(record))
    network, _, _ = learn_combiner.fuse(alone, looked, tmp_path / "network", ids=ids[:1])
    said = seen.read(ids[0]).last_probe
    both, one = (store.get_scores(ids[0]).scores for store in (whole, network))
    odds = np.sqrt(one * said), np.sqrt((1 - one.sum(-1)) * (1 - said.sum(-1)))
    wanted = odds[0] / (odds[0].sum(-1) + odds[1])[..., None]
    np.testing.assert_allclose(both, wanted, atol=5e-3)
    assert np.abs(both - one).max() > 0.02
    tuned = few_shot.fine_tune(run, looked, tmp_path / "tuned", FewShot(1, epochs=1), ids=ids)
    assert (tuned / "probe_last.npz").read_bytes() != (run / "probe_last.npz").read_bytes()
    learn_combiner.fuse(tuned, looked, tmp_path / "few", ids=ids[:1])
    Probe(first.classes, first.kernel[1:], first.offset, True).save(run / "probe_2.npz")
    with pytest.raises(ValueError, match=r"2 channels, but the probe .* was learned from 1"):
        combiner_run.seen_by(run, looked)
    (run / "probe_2.npz").write_bytes(b"nothing")
    with pytest.raises(BadFileError, match=r"probe_2\.npz"):
        learn_combiner.fuse(run, looked, tmp_path / "fused", ids=ids[:1])


def test_true_masks_of_labelled_images_teach_the_last_probe(looked, tmp_path):
    """The network calls everything background; what the probe finds it has from two masks."""
    known = replace(SETTINGS.sees(looked), labelled=frozenset(IDS[:2]))

    def says(evidence):
        assert evidence.truth is None
        shape = (*evidence.images.shape[:3], 1 + evidence.present.shape[1])
        return jax.numpy.zeros(shape).at[..., 0].set(1)

    called = {}
    for share in (0.01, 0.9):
        folder = tmp_path / str(share)
        probe.conclude(known, IDS, SETTINGS.protocol, says, folder, share=share)
        last = probes.load(folder / "probe_last.npz")
        example = replace(known, last_probe=last).read(IDS[0])
        maps = example.last_probe
        winner = example.classes[maps.argmax(-1)] + 1
        called[share] = np.where(maps.max(-1) > 1 - maps.sum(-1), winner, 0)
    assert not called[0.01].any()
    mask = WORLD.masks[0]
    assert (mask > 0).mean() > 0.05
    assert (called[0.9] == mask).mean() > 0.5 + 0.5 * (mask == 0).mean()
    with pytest.raises(ValueError, match="wanted a share below 1"):
        FewShot(probe_share=1.0)


def test_the_probe_sees_more_channels_than_the_network(looked):
    few = replace(looked, fitted=1)
    assert looked.channels() == 2 and few.channels() == 1
    one = few.read(IDS[0])
    np.testing.assert_array_equal(one.features, looked.read(IDS[0]).features[..., :1])
    kernel = np.zeros((2 + 9, 7), np.float32)
    kernel[1, 1:] = 3  # the channel that the network is not shown
    asked = replace(few, probe=Probe(fusion_world.CLASSES, kernel, np.zeros(7, np.float32), False))
    assert asked.read(IDS[0]).probe.std() > 0.01


def test_without_features_there_is_no_probe(run, inputs):
    assert SETTINGS.protocol.probes and not list(run.glob("probe*"))
    assert combiner_run.seen_by(run, inputs).probe is None


def test_walks_are_along_colours_unless_edges_are_to_cut_them():
    old = config.from_json(CombinerShape, {"walk_steps": 2})  # of a run from before
    assert old.cut_walks and not CombinerShape().cut_walks
    examples = [WORLD.read("0"), WORLD.read("1")]
    seen = batched(examples, rows=2, slots=2, cells=24)
    blind = replace(seen, edges=np.zeros_like(seen.edges))
    teach = jax.jit(fusion.consensus, static_argnums=0)
    for shape, same in ((CombinerShape(), True), (replace(CombinerShape(), cut_walks=True), False)):
        protocol = replace(SETTINGS.protocol, shape=shape, walk_steps=4)
        one, two = (teach(protocol, batch, batch.available) for batch in (seen, blind))
        assert (float(abs(one - two).max()) < 1e-6) == same
