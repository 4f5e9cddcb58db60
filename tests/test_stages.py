"""The whole path on a handful of drawn scenes: every stage is real, and every stage resumes."""

import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data import stores
from wsss_jax.data.classes import ClassList
from wsss_jax.datasets import synthetic, tfds_builder
from wsss_jax.datasets.check import survey
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError
from wsss_jax.models import build
from wsss_jax.recipes import demo, recipe, summary
from wsss_jax.recipes import report as reporting
from wsss_jax.run.executors import Workers
from wsss_jax.run.training import Training
from wsss_jax.stages import evaluate
from wsss_jax.stages.combine import Fusion, combine, stacked
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.export import Export, export
from wsss_jax.stages.features import Features, features
from wsss_jax.stages.import_maps import Import, import_priors
from wsss_jax.stages.masks import Masking, decide, fixed, label_free_threshold
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import refine
from wsss_jax.stages.suggest import Suggestion, suggest
from wsss_jax.stages.train import fit, trained
from wsss_jax.train import checkpoint
from wsss_jax.types import IGNORE, ScoreMaps
from wsss_jax.weights import loading as weights


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("scenes"), 36, 0)


@pytest.fixture(scope="module")
def small(scenes, tmp_path_factory):
    """The demo's recipe, cut down to one step of two systems, two rules and a tiny combiner."""
    whole = demo.recipe(scenes, epochs=1)
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    weights.save(build.backbone("tiny", rngs=nnx.Rngs(0), output_stride=16), path)
    systems = {name: whole.systems[name] for name in ("fine", "coarse")}
    return replace(
        whole,
        systems=systems,
        explanation=Explanation(scales=(1.0,), batch_size=16),
        fusions=("mean", "staple"),
        combiner=Combining(cells=12, walk_steps=0),
        features=(Features(path, backbone="tiny", taps=(1, 2), channels=4, batch_size=16),),
        rivals=True,
        gallery=3,
    )


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, recipe.make(small, out)


def test_the_whole_path_makes_every_store_and_the_page(small, made, scenes, capsys):
    out, stores_made = made
    source = open_dataset(scenes, split="all")
    for store in stores_made.stores.values():
        assert not store.missing(source.ids)
    assert not stores_made.masks.missing(source.ids)
    results = recipe.judge_all(small, stores_made)
    rows = summary.rows(stores_made.groups, results)
    summary.write(out, rows, source.classes)
    summary.show(rows)
    page = reporting.page(out / "report.html", small, stores_made, rows, source)
    assert page.stat().st_size > 10_000
    assert "combined: trust" in page.read_text()
    assert stores_made.final == "combined_crf"
    record = json.loads((out / "results.json").read_text())
    assert len(record["results"]) == 2 * len(stores_made.stores)
    tables = (out / "results.md").read_text()
    assert "fuse_mean" in tables and "tiny.npz (not known; licence not known)" in tables
    assert "Supervision" in page.read_text()
    assert "tuned" in capsys.readouterr().out.lower()


def test_the_same_command_finds_everything_done_and_repairs_what_is_gone(small, made):
    out, stores_made = made
    store = stores_made.stores["fuse_mean"]
    gone, kept = store.ids()[:2]
    before = store.path(kept).stat().st_mtime_ns
    lost = store.path(gone).read_bytes()
    store.path(gone).unlink()
    recipe.make(small, out)
    assert store.path(gone).read_bytes() == lost
    assert store.path(kept).stat().st_mtime_ns == before


def test_refinements_that_a_recipe_leaves_out_are_not_done(small, made, tmp_path):
    out, stores_made = made
    begun = shutil.copytree(out, tmp_path / "run", ignore=shutil.ignore_patterns("pseudo_masks"))
    without = recipe.make(replace(small, refinements=("saliency", "walk"), last=None), begun)
    assert without.final == "combined"
    left_out = {name for name in stores_made.stores if name.endswith("_crf")}
    assert left_out and stores_made.stores.keys() - without.stores.keys() == left_out


def test_systems_refined_alone_are_rivals_of_the_combiner(small, made, capsys):
    _, steps = made
    alone = "single: refined as the combiner does"
    theirs = [name for name, group in steps.groups.items() if group == alone]
    assert theirs == ["combined_fine", "combined_coarse"]
    assert {"combined_fine_crf", "combined_coarse_crf"} <= steps.groups.keys()
    results = [r for r in recipe.judge_all(small, steps) if r.split == "val"]
    rivals = [r for r in results if steps.groups[r.name].startswith("single")]
    rows = {row.result.name: row for row in summary.rows(steps.groups, results)}
    assert rows["combined"].reference == max(rivals, key=lambda r: r.miou()).name
    assert all(rows[name].gain is None for name in theirs)
    long = replace(rows["combined"], result=replace(rows["combined"].result, name="n" * 40))
    capsys.readouterr()
    summary.show([*rows.values(), long], width=80)
    shown = capsys.readouterr().out
    assert shown.count("n" * 10) and not re.search(r"\d…", shown)  # no number is cut for a name


def test_other_settings_in_the_same_folder_are_refused_by_name(small, made):
    out, _ = made
    changed = replace(small, explanation=replace(small.explanation, flip=False))
    with pytest.raises(ValueError, match="flip: True -> False"):
        recipe.make(changed, out)
    system = replace(small.systems["fine"], seed=9)
    with pytest.raises(ValueError, match=r"settings\.seed: 1 -> 9"):
        recipe.make(replace(small, systems={"fine": system}), out)


def test_machines_may_share_the_systems_of_a_recipe(small, made):
    out, stores_made = made
    (store,) = recipe.train_systems(small, out, ["coarse"])
    assert store.folder == stores_made.stores["cam_coarse"].folder
    with pytest.raises(ValueError, match="did you mean 'coarse'"):
        recipe.train_systems(small, out, ["corse"])


def test_a_recipe_of_some_classes_sees_the_others_as_background(small):
    source = recipe.opened(replace(small, classes=("star", "kite")), "val")
    assert source.classes.names == ("star", "kite") and source.has_background
    whole = recipe.opened(small, "val")
    numbers = [whole.classes.index(name) for name in source.classes.names]
    for id in source.ids:
        np.testing.assert_array_equal(source.labels(id), whole.labels(id)[numbers])
        old, new = whole.mask(id), source.mask(id)
        np.testing.assert_array_equal(new == 1, old == numbers[0] + 1)
        np.testing.assert_array_equal(new == 2, old == numbers[1] + 1)
        np.testing.assert_array_equal(new == 255, old == 255)
        assert set(np.unique(new)) <= {0, 1, 2, 255}


def test_score_maps_belong_to_the_labels_and_peak_at_one(made, scenes):
    source = open_dataset(scenes, split="all")
    for id in source.ids[:5]:
        maps = made[1].stores["cam_fine"].get_scores(id)
        np.testing.assert_array_equal(maps.classes, np.flatnonzero(source.labels(id)))
        assert maps.size == source.size(id)
        tops = maps.scores.max(axis=(0, 1))
        assert ((tops > 0.99) | (maps.peak <= 0.01)).all() and maps.scores.min() >= 0


def test_a_run_remembers_its_settings_and_weights(small, made):
    settings, classes, state = trained(made[0] / "run_fine")
    assert settings == small.systems["fine"] and len(classes) == len(synthetic.CLASSES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_an_unfinished_run_cannot_be_explained(scenes, tmp_path):
    source = open_dataset(scenes, split="val")
    with pytest.raises(BadFileError, match="wsss train"):
        explain(tmp_path, source, tmp_path / "maps", Explanation(), ids=source.ids)


def test_a_damaged_photograph_is_skipped_named_and_counted(scenes, made, tmp_path, capsys):
    broken = tmp_path / "scenes"
    synthetic.write(broken, 36, 0)
    victim = open_dataset(broken, split="val").ids[0]
    path = next((broken / "images").glob(f"{victim}.*"))
    path.write_bytes(path.read_bytes()[:200])
    source = open_dataset(broken, split="val")
    settings = Explanation(scales=(1.0,), batch_size=16)
    store = explain(made[0] / "run_fine", source, tmp_path / "maps", settings, ids=source.ids)
    assert store.missing(source.ids) == (victim,)
    assert victim in capsys.readouterr().out
    assert victim in json.loads((tmp_path / "maps/skipped.json").read_text())


def test_prepared_records_and_packed_stores_go_through_every_stage(small, made, scenes, tmp_path):
    """What comes out is what a plain folder and single files give."""
    records = tfds_builder.write(scenes, tmp_path / "records")
    source, plain = (open_dataset(root, split="val") for root in (records, scenes))
    assert set(open_dataset(records, split="all").ids) == set(open_dataset(scenes, split="all").ids)
    assert survey(records).problems == () and survey(records).images == 36
    out, stores_made = made
    settings = Explanation(scales=(1.0,), batch_size=16)
    cams = explain(out / "run_fine", source, tmp_path / "cams", settings, ids=source.ids)
    network = features(source, tmp_path / "looks", small.features[0], ids=source.ids)
    for store in (cams, network):
        store.pack()
    again = import_priors(Import(), cams.folder, source, tmp_path / "again", ids=source.ids)
    again.pack()
    walk = refine(again, source, tmp_path / "walk", Walk(radius=2, steps=1), ids=source.ids)
    mean = combine([cams, walk], source, tmp_path / "mean", Fusion("mean"), ids=source.ids)
    mean.pack()
    inputs = Inputs(source, (cams, walk), features=(network,))
    run = learn(inputs, tmp_path / "run", Combining(cells=12, walk_steps=0), ids=source.ids)
    fused = fuse(run, inputs, tmp_path / "fused", ids=source.ids)
    for store in fused:
        store.pack()
    masks = decide(mean, tmp_path / "masks", Masking(0.3), ids=source.ids, workers=Workers(2))
    masks.pack()
    assert not masks.missing(source.ids) and len(list((tmp_path / "masks").rglob("*.*"))) == 2
    for id in source.ids:
        old, new = (store.get_scores(id) for store in (stores_made.stores["cam_fine"], cams))
        np.testing.assert_allclose(new.scores, old.scores, atol=2e-3)
        np.testing.assert_array_equal(again.get_scores(id).scores, new.scores)
    found, wanted = (evaluate.evaluate(masks, s, Scoring(), split="val") for s in (source, plain))
    np.testing.assert_array_equal(found.counts, wanted.counts)
    page = reporting.page_of_stores(tmp_path / "page.html", [fused.maps], source, Scoring(), 2)
    assert page.stat().st_size > 10_000
    assert export(masks, source, tmp_path / "png", Export("png")).done == len(source.ids)
    assert len(suggest(fused.maps, source, tmp_path / "next", Suggestion(3), features=network)) == 3


def test_systems_on_other_grids_and_with_missing_classes_are_stacked():
    fine = ScoreMaps(np.ones((4, 6, 2), "f4"), np.array([1, 3], "i4"), (16, 24), np.ones(2, "f4"))
    coarse = ScoreMaps(
        np.full((2, 3, 1), 0.5, "f4"), np.array([3], "i4"), (16, 24), np.ones(1, "f4")
    )
    scores, available = stacked([fine, coarse], np.array([1, 3]))
    assert scores.shape == (2, 4, 6, 2)
    np.testing.assert_array_equal(available, [[True, True], [False, True]])
    np.testing.assert_allclose(scores[1, ..., 1], 0.5)
    other = replace(coarse, size=(16, 25))
    with pytest.raises(ValueError, match="disagree"):
        stacked([fine, other], np.array([3]))


class ToySource:
    """Two photographs, one of them without truth."""

    name, has_background = "toy", True
    ids = ("a", "b")

    def __init__(self, classes):
        self.classes = classes

    def labels(self, id):
        return np.array([True, True])

    def image(self, id):
        return np.zeros((4, 4, 3), np.uint8)

    def encoded(self, id):
        return b""

    def size(self, id):
        return (4, 4)

    def mask(self, id):
        truth = np.zeros((4, 4), np.uint8)
        truth[:2], truth[3, 3] = 1, 255
        return truth if id == "a" else None


def toy_store(folder, classes, kind, scores):
    store = stores.create(folder, holds="scores", classes=classes.names, made_by={}, kind=kind)
    maps = ScoreMaps(scores, np.array([0, 1], "i4"), (4, 4), np.ones(2, "f4"), kind)
    for id in ToySource.ids:
        store.put_scores(id, maps)
    return store


def test_evaluation_by_hand(tmp_path):
    classes = ClassList(("cat", "dog"))
    scores = np.zeros((4, 4, 2), "f4")
    scores[:2, :, 0], scores[2, :, 1] = 0.8, 0.4
    store = toy_store(tmp_path / "s", classes, "activation", scores)
    result = evaluate.evaluate(store, ToySource(classes), Scoring(), split="toy")
    assert result.ids == ("a",)
    # At 0.3: row 2 is called dog, so background is 3 of 7; cat is right; dog has no truth.
    expected = np.zeros((3, 3), int)
    expected[1, 1], expected[0, 0], expected[0, 2] = 8, 3, 4
    np.testing.assert_array_equal(result.counts[0], expected)
    assert result.miou() == pytest.approx((3 / 7 + 1 + 0) / 3)
    assert result.tuned >= 0.4 and result.miou(tuned=True) == 1


def test_a_threshold_without_truth_parts_the_scores_of_what_wins(tmp_path):
    scores = np.zeros((4, 4, 2), "f4")
    scores[:2, :, 0], scores[2:, :, 1] = 0.905, 0.105
    store = toy_store(tmp_path / "s", ClassList(("cat", "dog")), "activation", scores)
    found = label_free_threshold(store, ("a", "none"))
    assert found == pytest.approx((0.11 + 0.9) / 2)
    source = ToySource(ClassList(("cat", "dog")))
    result = evaluate.evaluate(store, source, Scoring(), split="toy", otsu=found)
    assert result.otsu == 0.5 and result.miou_at(0.5) == result.curve[evaluate.GRID.index(0.5)]
    record = evaluate.as_record(result, source.classes)
    assert record["otsu"]["miou"] == pytest.approx(result.miou_at(0.5), abs=1e-6)
    assert label_free_threshold(store, ()) is None  # nothing to read it off
    half = toy_store(tmp_path / "p", source.classes, "probability", scores)
    assert label_free_threshold(half, ("a",)) is None  # a half by meaning


def test_probabilities_are_decided_against_what_they_leave_for_background(tmp_path):
    classes = ClassList(("cat", "dog"))
    scores = np.zeros((4, 4, 2), "f4")
    scores[:2, :, 0], scores[:2, :, 1] = 0.4, 0.3  # background 0.3: cat is the most probable
    scores[2:, :, 0], scores[2:, :, 1] = 0.3, 0.3  # background 0.4
    store = toy_store(tmp_path / "p", classes, "probability", scores)
    masks = decide(store, tmp_path / "m", fixed(store, Scoring()), ids=("a",))
    np.testing.assert_array_equal(masks.get_mask("a"), np.repeat([1, 0], 2)[:, None] * np.ones(4))
    result = evaluate.evaluate(store, ToySource(classes), Scoring(), split="toy")
    judged = evaluate.evaluate(masks, ToySource(classes), Scoring(), split="toy")
    np.testing.assert_array_equal(result.counts, judged.counts)
    assert result.miou() == 1.0


def test_pixels_that_are_not_certain_are_left_open(tmp_path):
    scores = np.zeros((1, 4, 2), "f4")
    scores[0, :, 0] = [0.96, 0.9, 0.4, 0.04]
    store = toy_store(tmp_path / "p", ClassList(("cat", "dog")), "probability", scores)
    masks = decide(store, tmp_path / "m", Masking(0.5, certain=0.95), ids=("a",))
    expected = np.tile([1, IGNORE, IGNORE, 0], (4, 1))
    np.testing.assert_array_equal(masks.get_mask("a"), expected)
    held = toy_store(tmp_path / "s", ClassList(("cat", "dog")), "activation", scores)
    with pytest.raises(ValueError, match="tell nothing about certainty"):
        decide(held, tmp_path / "x", Masking(0.5, certain=0.95), ids=("a",))
    for wrong in ({"threshold": 1.0}, {"certain": -1.0}, {"certain": 0.9, "background": False}):
        with pytest.raises(ValueError, match=r"wanted|to be none"):
            Masking(**wrong)


def test_without_background_every_pixel_gets_a_class(tmp_path):
    classes = ClassList(("cat", "dog"))
    scores = np.zeros((4, 4, 2), "f4")
    scores[:2, :, 0] = 0.01
    scores[2:, :, 1] = 0.01
    store = toy_store(tmp_path / "s", classes, "activation", scores)
    scoring = Scoring(background=False)
    masks = decide(store, tmp_path / "m", fixed(store, scoring), ids=("a",))
    assert masks.get_mask("a").min() == 1
    result = evaluate.evaluate(store, ToySource(classes), scoring, split="toy")
    assert result.scored == (1, 2) and result.counts[0, :, 0].sum() == 0


def test_fusion_with_saliency_halves_what_does_not_stand_out(tmp_path):
    classes = ClassList(("cat", "dog"))
    scores = np.ones((4, 4, 2), "f4")
    store = toy_store(tmp_path / "s", classes, "activation", scores)
    cue = stores.create(
        tmp_path / "c", holds="scores", classes=("saliency",), made_by={}, kind="probability"
    )
    shown = np.zeros((4, 4, 1), "f4")
    shown[:2] = 1
    cue.put_scores(
        "a", ScoreMaps(shown, np.zeros(1, "i4"), (4, 4), np.ones(1, "f4"), "probability")
    )
    source = ToySource(classes)
    fused = combine([store], source, tmp_path / "f", Fusion(), ids=source.ids, saliency=cue)
    np.testing.assert_allclose(fused.get_scores("a").scores[:, 0, 0], [1, 1, 0.5, 0.5])
    assert fused.missing(source.ids) == ("b",)  # an image without the cue is skipped, not guessed


def test_training_goes_on_after_a_kill_in_the_middle(scenes, tmp_path, monkeypatch):
    settings = replace(demo.recipe(scenes, epochs=2).systems["fine"], save_every=1)
    source = open_dataset(scenes, split="train")
    whole = trained(fit(source, settings, tmp_path / "whole"))[2]
    save = checkpoint.Checkpoints.save

    def dies_after_saving(self, step, state, extra):
        save(self, step, state, extra)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", dies_after_saving)
        with pytest.raises(KeyboardInterrupt):
            fit(source, settings, tmp_path / "parts")
    parts = trained(fit(source, settings, tmp_path / "parts"))[2]
    for one, other in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert isinstance(settings, Training)
