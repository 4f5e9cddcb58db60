"""The combiner as a whole, on a small world as files."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import toy_world

from wsss_jax.combiner import learn as learning
from wsss_jax.combiner import probes, record
from wsss_jax.combiner.evidence import tell_absent
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data import stores
from wsss_jax.datasets import views
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops import metrics
from wsss_jax.run import left_out
from wsss_jax.run.images import Tally, record_skipped
from wsss_jax.stages.combine import Fusion, combine
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.study import fusion_world, world

SETTINGS = Combining(cells=24, walk_steps=24)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_world.written(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return learn(inputs, folder, SETTINGS, ids=inputs.source.ids)


@pytest.fixture(scope="module")
def fused(inputs, run, tmp_path_factory):
    return fuse(run, inputs, tmp_path_factory.mktemp("out") / "fused", ids=inputs.source.ids)


def scores(store, ids):
    return {id: store.get_scores(id).scores for id in ids}


def test_probabilities_trust_and_uncertainty_are_what_they_are_called(inputs, fused):
    for id in inputs.source.ids:
        maps, trust, doubt = (store.get_scores(id).scores for store in fused)
        assert maps.min() >= 0 and maps.sum(axis=-1).max() <= 1.001
        np.testing.assert_allclose(trust.sum(axis=-1), 1, atol=0.01)
        assert 0 <= doubt.min() and doubt.max() <= 1
        present = np.flatnonzero(inputs.source.labels(id))
        assert fused.maps.get_scores(id).classes.tolist() == present.tolist()
    assert fused.maps.kind == "probability" and fused.trust.classes == inputs.names()


def test_the_order_of_systems_changes_nothing(inputs, fused, tmp_path):
    turned = replace(inputs, systems=inputs.systems[::-1])
    run = learn(turned, tmp_path / "run", SETTINGS, ids=inputs.source.ids)
    ids = inputs.source.ids
    other = scores(fuse(run, turned, tmp_path / "fused", ids=ids).maps, ids)
    for id, maps in scores(fused.maps, ids).items():
        np.testing.assert_allclose(other[id], maps, atol=2e-3)


def test_a_record_that_is_gone_is_made_again_alike(inputs, run, fused):
    id = inputs.source.ids[0]
    before = fused.maps.path(id).read_bytes()
    fused.maps.path(id).unlink()
    fuse(run, inputs, fused.maps.folder, ids=inputs.source.ids)
    assert fused.maps.path(id).read_bytes() == before


def test_a_bad_map_costs_its_system_and_never_the_image(inputs, run, tmp_path, capsys):
    first, second = inputs.source.ids[:2]
    kept = inputs.systems[0].path(first).read_bytes()
    try:
        inputs.systems[0].path(first).write_bytes(kept[:-40])
        hidden = inputs.systems[1].path(second).rename(tmp_path / "hidden.npz")
        for _ in range(2):  # the second finds all done, and forgets nothing
            fresh = replace(inputs, missing={})
            with left_out.recorded() as record:
                made = fuse(run, fresh, tmp_path / "fused", ids=(first, second))
            assert "fused 2 map(s)" in record.line() and record.exit_code() == left_out.CODE
        assert set(made.maps.ids()) == {first, second}
        absent = json.loads((tmp_path / "fused" / "absent.json").read_text())
        assert absent == {first: ["part"], second: ["overctx"]}
        assert "part lacks maps of 1 image" in capsys.readouterr().out
        assert (made.trust.get_scores(first).scores[..., 0] == 0).all()
        hidden.rename(inputs.systems[1].path(second))
    finally:
        inputs.systems[0].path(first).write_bytes(kept)


def test_an_image_without_any_map_is_left_out_and_named(inputs, run, tmp_path, capsys):
    few = replace(inputs, systems=inputs.systems[:1], missing={})
    id, other = inputs.source.ids[:2]
    hidden = few.systems[0].path(id).rename(tmp_path / "hidden.npz")
    try:
        made = fuse(run, few, tmp_path / "fused", ids=(id, other))
        assert made.maps.ids() == (other,)
        assert (
            "no system has a map"
            in json.loads((tmp_path / "fused" / "skipped.json").read_text())[id]
        )
    finally:
        hidden.rename(few.systems[0].path(id))


def test_a_system_that_the_run_has_not_learned_is_fused_too(inputs, run, tmp_path):
    stranger = stores.create(
        tmp_path / "stranger", holds="scores", classes=inputs.source.classes.names, made_by={}
    )
    for id in inputs.source.ids:
        stranger.put_scores(id, inputs.systems[0].get_scores(id))
    made = fuse(
        run,
        replace(inputs, systems=(stranger, inputs.systems[1]), missing={}),
        tmp_path / "fused",
        ids=inputs.source.ids[:1],
    )
    assert made.trust.classes == ("stranger", "overctx") and len(made.maps.ids()) == 1


def test_the_record_decides_and_other_inputs_are_refused(inputs, run, tmp_path):
    settings, found, seen = record.load(run, inputs)
    assert settings == SETTINGS and seen.cells == 24
    assert found.probe.classes == inputs.source.classes.names
    assert ((found.thresholds > 0) & (found.thresholds < 1)).all()
    copied = shutil.copytree(run, tmp_path / "copied")
    path = copied / "thresholds.json"
    for damaged in ({"another": 0.5}, dict.fromkeys(inputs.source.classes.names, 2.0)):
        path.write_text(json.dumps(damaged))
        with pytest.raises(BadFileError, match=r"thresholds\.json: .* delete .* learn it again"):
            record.load(copied, inputs)
    for changed, what in (
        (replace(inputs, features=inputs.features[:1]), "features"),
        (replace(inputs, features=inputs.features[::-1]), "features"),
        (replace(inputs, saliency=None), "saliency"),
    ):
        with pytest.raises(UserError, match=f"give the {what} of its training"):
            fuse(run, changed, tmp_path / "fused", ids=inputs.source.ids)
    fewer = views.only(inputs.source, inputs.source.classes.names[:2])
    named = [replace(one, classes=fewer.classes.names) for one in inputs.systems]
    with pytest.raises(UserError, match="fuse the classes of its training"):
        record.load(run, replace(inputs, source=fewer, systems=tuple(named)))
    with pytest.raises(UserError, match="walk_steps: 24 -> 8"):
        learn(inputs, run, replace(SETTINGS, walk_steps=8), ids=inputs.source.ids)


def test_inputs_that_cannot_be_told_apart_or_teach_nothing_are_refused(inputs, tmp_path):
    with pytest.raises(UserError, match="two systems are called part"):
        replace(inputs, systems=(inputs.systems[0], inputs.systems[0]))
    empty = stores.create(
        tmp_path / "empty", holds="scores", classes=inputs.source.classes.names, made_by={}
    )
    with pytest.raises(UserError, match="learn without empty"):
        learn(
            replace(inputs, systems=(*inputs.systems, empty), missing={}),
            tmp_path / "run",
            SETTINGS,
            ids=inputs.source.ids,
        )


def test_a_run_that_learned_anew_or_from_other_labels_is_another(inputs, run, tmp_path):
    fuse(run, inputs, tmp_path / "fused", ids=inputs.source.ids)
    anew = tmp_path / "run"  # of the same name
    learn(inputs, anew, replace(SETTINGS, seed=1), ids=inputs.source.ids)
    with pytest.raises(UserError, match=r"learned"):
        fuse(anew, inputs, tmp_path / "fused", ids=inputs.source.ids)
    other = views.View(
        inputs.source, inputs.source.classes, lambda id: ~inputs.source.labels(id), lambda id: None
    )
    with pytest.raises(UserError, match="photographs: "):
        learn(replace(inputs, source=other), run, SETTINGS, ids=inputs.source.ids)


def test_maps_that_tell_nothing_and_features_of_no_image_are_told(inputs, tmp_path):
    flat, bare = (
        stores.create(
            tmp_path / name,
            holds="scores",
            classes=inputs.source.classes.names,
            made_by={},
            kind=kind,
        )
        for name, kind in (("flat", "activation"), ("bare", "logit"))
    )
    for id in inputs.source.ids:
        found = inputs.systems[0].get_scores(id)
        flat.put_scores(id, replace(found, scores=np.zeros_like(found.scores)))
    same = replace(inputs, systems=(flat,), saliency=None, features=(), missing={})
    with pytest.raises(UserError, match="one and the same score everywhere"):
        learn(same, tmp_path / "run", SETTINGS, ids=inputs.source.ids)
    with pytest.raises(UserError, match="flat holds no features; make a store of them"):
        replace(inputs, features=(flat,))
    lacking = replace(inputs, features=(bare,), missing={})
    with pytest.raises(BadFileError, match=r"none of 6 images can be learned from; .*bare"):
        learn(lacking, tmp_path / "other", SETTINGS, ids=inputs.source.ids)


def test_a_damaged_photograph_without_a_class_is_left_out(inputs, run, tmp_path):
    empty = inputs.source.ids[0]

    def size(id):
        if id == empty:
            raise BadFileError(f"{id} is damaged")
        return inputs.source.size(id)

    public = (name for name in dir(inputs.source) if not name.startswith("_"))
    source = {name: getattr(inputs.source, name) for name in public}
    labels = {id: inputs.source.labels(id) * (id != empty) for id in inputs.source.ids}
    broken = SimpleNamespace(**{**source, "labels": labels.__getitem__, "size": size})
    few = replace(inputs, source=broken, missing={})
    made = fuse(run, few, tmp_path / "fused", ids=inputs.source.ids)
    assert made.maps.missing(inputs.source.ids) == (empty,)
    assert "is damaged" in json.loads((tmp_path / "fused/skipped.json").read_text())[empty]


def test_images_that_show_no_class_teach_background(inputs, tmp_path, monkeypatch):
    empty = inputs.source.ids[0]

    def labels_of(id):
        known = inputs.source.labels(id)
        return np.zeros_like(known) if id == empty else known

    public = (name for name in dir(inputs.source) if not name.startswith("_"))
    source = {name: getattr(inputs.source, name) for name in public}
    emptied = SimpleNamespace(**{**source, "labels": labels_of})
    learned = []

    def fit(names, cells, labels, possible, weights, **settings):
        learned.append((labels, possible))
        return probes.fit(names, cells, labels, possible, weights, **settings)

    monkeypatch.setattr(learning, "probes", SimpleNamespace(fit=fit))
    few = replace(inputs, source=emptied, missing={})
    run = learn(few, tmp_path / "run", SETTINGS, ids=inputs.source.ids)
    for labels, possible in learned:
        of_it = possible.all(axis=1)  # cells of it may be of any class, and are of none
        assert of_it.sum() == 400 and (labels[of_it] == 0).all()
    made = fuse(run, few, tmp_path / "fused", ids=inputs.source.ids)
    assert made.maps.get_scores(empty).scores.shape[-1] == 0
    assert not few.missing  # a map is missed of classes alone


def test_true_masks_are_read_of_the_labelled_images_alone_and_told(inputs, tmp_path, monkeypatch):
    read, kind = [], type(inputs.source)
    mask = kind.mask
    monkeypatch.setattr(kind, "mask", lambda self, id: read.append(id) or mask(self, id))
    settings = replace(SETTINGS, labelled=2)
    few = replace(inputs, missing={})
    run = learn(few, tmp_path / "run", settings, ids=inputs.source.ids)
    taught = record.record_of(run)["labelled"]
    assert len(taught) == 2
    made = fuse(run, inputs, tmp_path / "fused", ids=inputs.source.ids)
    assert made.maps.made_by["labelled"] == taught
    read.clear()
    learn(few, tmp_path / "free", SETTINGS, ids=inputs.source.ids)
    assert not read
    learned = []

    def fit(names, cells, labels, possible, weights, **settings):
        learned.append((labels, possible))
        return probes.fit(names, cells, labels, possible, weights, **settings)

    monkeypatch.setattr(learning, "probes", SimpleNamespace(fit=fit))
    without = replace(settings, background=False)
    learn(few, tmp_path / "without", without, ids=inputs.source.ids)
    for labels, possible in learned:  # true background is no class then, and teaches nothing
        assert possible[np.arange(len(labels)), labels].all()
    with pytest.raises(UserError, match="6 images have labels and true masks, 7 are wanted"):
        learn(few, tmp_path / "many", replace(SETTINGS, labelled=7), ids=inputs.source.ids)


def test_without_features_it_is_better_than_the_best_closed_form_at_its_best(tmp_path):
    """Acceptance A of the world: over mean × saliency whose threshold the truth itself chose."""
    made = world.write(fusion_world.make(40, seed=7), tmp_path)
    ids, scoring = made.source.ids, Scoring()
    run = learn(made, tmp_path / "run", Combining(cells=48), ids=ids)
    combined = fuse(run, made, tmp_path / "fused", ids=ids).maps
    ours = evaluate(combined, made.source, scoring, split="all")
    mean = combine(
        made.systems, made.source, tmp_path / "mean", Fusion(), ids=ids, saliency=made.saliency
    )
    rival = evaluate(mean, made.source, scoring, split="all")
    assert metrics.mean_iou(ours.counts.sum(axis=0), ours.scored) == pytest.approx(ours.miou())
    assert ours.miou() > rival.miou(tuned=True) + 0.02


def test_of_very_many_images_a_sample_teaches_that_keeps_rare_classes(inputs, monkeypatch):
    monkeypatch.setattr(learning, "MAX_IMAGES", 40)
    labels = {f"i{n}": np.zeros(len(inputs.source.classes), bool) for n in range(500)}
    for number, one in enumerate(labels.values()):
        one[:3] = number % 100 == 7, number % 2 == 0, number % 3 == 0
    view = views.View(inputs.source, inputs.source.classes, labels.__getitem__, labels.get)
    many = replace(inputs, source=view, labelled=frozenset({"i498", "i499"}))
    shown = {id: int(one.sum()) for id, one in labels.items()}
    chosen = learning._taught(shown, many, SETTINGS)
    assert len(chosen) == 40 and many.labelled <= set(chosen)
    rare = sum(labels[id][0] for id in chosen)
    assert rare == min(5, 40 // (2 * len(inputs.source.classes)))  # at random 0.4 are expected
    assert set(chosen) == set(learning._taught(dict(reversed(shown.items())), many, SETTINGS))
    assert learning._taught({"i1": 1}, many, SETTINGS) == {"i1": 1}


def test_each_share_has_lists_of_its_own_which_a_whole_pass_takes_over(tmp_path):
    for index in range(2):
        lacking = {f"i{index}": {"cam": "no record"}}
        tell_absent(tmp_path, lacking, [f"i{index}"], (index, 2))
        record_skipped(tmp_path, Tally(1, {f"i{index}": "damaged"}, (index, 2)))
    assert len(list(tmp_path.iterdir())) == 4
    with left_out.recorded() as told:
        tell_absent(tmp_path, {}, ["i1"])  # which was made up for
        record_skipped(tmp_path, Tally(2, {}))
    assert told.exit_code() == left_out.CODE
    assert [path.name for path in tmp_path.iterdir()] == ["absent.json"]
    assert json.loads((tmp_path / "absent.json").read_text()) == {"i0": ["cam"]}
