"""Stage refine on tiny stores: what it keeps, what it refuses, and what its index says."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from wsss_jax.crf import by_pydensecrf as crf_pydensecrf
from wsss_jax.crf import dense as crf
from wsss_jax.data import stores
from wsss_jax.data.classes import ClassList
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.stages import refine as refining
from wsss_jax.stages.masks import label_free_threshold
from wsss_jax.stages.parts import walks
from wsss_jax.stages.parts.walks import Walk, walked
from wsss_jax.stages.refine import Crf, crf_refined, refine
from wsss_jax.types import ScoreMaps

CLASSES = ClassList(("cat", "dog", "owl"))
QUICK = Walk(radius=2, sigma_colour=0.1, sigma_space=2.0, steps=4)


def photograph(height: int = 12, width: int = 16) -> np.ndarray:
    """Left half red, right half blue, with a little noise."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 220
    image[:, width // 2 :, 2] = 220
    return image + np.random.default_rng(0).integers(0, 5, image.shape, dtype=np.uint8)


def maps(scores, *, classes=(1,), size=(12, 16), kind="activation") -> ScoreMaps:
    scores = np.asarray(scores, np.float32)
    return ScoreMaps(scores, np.asarray(classes, np.int32), size, scores.max(axis=(0, 1)), kind)


def half(*, classes: int = 1) -> np.ndarray:
    """A score on the upper left of the photograph only; further classes on the right."""
    scores = np.zeros((12, 16, classes), np.float32)
    scores[:4, :8, 0] = 1
    scores[4:, 8:, 1:] = 0.5
    return scores


@dataclass(frozen=True)
class Photographs:
    """A source of photographs in memory."""

    images: dict
    classes: ClassList = CLASSES
    name: str = "toy"
    has_background: bool = True
    asked: list = field(default_factory=list)

    @property
    def ids(self):
        return tuple(self.images)

    def labels(self, id):
        return np.array([False, True, False])

    def image(self, id):
        self.asked.append(id)
        return self.images[id]

    def size(self, id):
        return self.images[id].shape[:2]

    def mask(self, id):
        return None

    def encoded(self, id):
        return b""


def store_of(folder, records, *, kind="activation"):
    store = stores.create(
        folder, holds="scores", classes=CLASSES.names, made_by={"stage": "test"}, kind=kind
    )
    for id, record in records.items():
        store.put_scores(id, record)
    return store


@pytest.fixture
def toy(tmp_path):
    source = Photographs({"a": photograph(), "b": photograph(), "c": photograph()})
    records = {"a": maps(half()), "b": maps(half(classes=2), classes=(0, 2))}
    records["c"] = maps(np.zeros((12, 16, 0)), classes=())
    return store_of(tmp_path / "maps", records), source


@pytest.mark.parametrize("settings", [QUICK, Crf(stride=2)], ids=["walk", "crf"])
def test_every_image_gets_its_classes_and_one_without_classes_stays_empty(toy, tmp_path, settings):
    store, source = toy
    refined = refine(store, source, tmp_path / "out", settings, ids=source.ids)
    assert refined.ids() == source.ids and not (tmp_path / "out/skipped.json").exists()
    assert refined.kind == ("activation" if isinstance(settings, Walk) else "probability")
    for id in source.ids:
        before, after = store.get_scores(id), refined.get_scores(id)
        np.testing.assert_array_equal(after.classes, before.classes)
        assert after.size == before.size and after.scores.min(initial=0) >= 0
    assert refined.get_scores("c").scores.shape[-1] == 0
    assert "c" not in source.asked  # nothing to refine, so nothing to decode


@pytest.mark.parametrize("settings", [QUICK, Crf(stride=1)], ids=["walk", "crf"])
def test_scores_fill_their_colour_and_stop_at_its_edge(settings):
    function = walked if isinstance(settings, Walk) else crf_refined
    scores = np.zeros((12, 16, 1), np.float32)
    scores[:, :8] = 1
    scores[5:7, 3:5] = 0  # a hole that the photograph knows nothing of
    refined = function(maps(scores), photograph(), settings).scores[..., 0]
    assert refined[5:7, 3:5].min() > 0.5 and refined[:, 8:].max() < 0.1


def test_the_index_names_settings_program_and_version_and_refuses_others(toy, tmp_path):
    store, source = toy
    out = tmp_path / "out"
    refine(store, source, out, Crf(), ids=source.ids[:1])
    record = json.loads((out / "index.json").read_text())
    assert record["made_by"]["backend"] == "jax" and record["made_by"]["preset"] == "psa"
    assert record["made_by"]["computed_by"].startswith("wsss_jax ")
    assert record["parents"] == ["maps"]
    with pytest.raises(ValueError, match="preset: 'psa' -> 'irn'"):
        refine(store, source, out, Crf(preset="irn"), ids=source.ids)
    with pytest.raises(ValueError, match="stage: 'crf' -> 'walk'"):
        refine(store, source, out, QUICK, ids=source.ids)


def test_another_version_does_not_go_on_in_the_same_folder(toy, tmp_path, monkeypatch):
    store, source = toy
    refine(store, source, tmp_path / "out", QUICK, ids=source.ids[:1])
    monkeypatch.setattr(refining, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"computed_by: .* -> 'wsss_jax 99\.0'"):
        refine(store, source, tmp_path / "out", QUICK, ids=source.ids[:1])


def test_an_absent_backend_is_refused_before_anything_is_made(toy, tmp_path, monkeypatch):
    store, source = toy
    monkeypatch.setattr(crf_pydensecrf, "available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'wsss-jax\[crf\]'"):
        refine(store, source, tmp_path / "out", Crf(backend="pydensecrf"), ids=source.ids)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not crf_pydensecrf.available(), reason="pydensecrf is not installed")
def test_pydensecrf_gives_the_same_and_is_named_in_the_index(toy, tmp_path):
    store, source = toy
    ours = refine(store, source, tmp_path / "ours", Crf(), ids=source.ids)
    theirs = refine(store, source, tmp_path / "theirs", Crf(backend="pydensecrf"), ids=source.ids)
    assert (
        "pydensecrf"
        in json.loads((tmp_path / "theirs/index.json").read_text())["made_by"]["computed_by"]
    )
    for id in source.ids:
        one, other = ours.get_scores(id).scores, theirs.get_scores(id).scores
        np.testing.assert_allclose(one, other, atol=2e-3)  # records are float16


def test_half_a_run_goes_on_and_a_lost_record_is_made_again(toy, tmp_path):
    store, source = toy
    first = refine(store, source, tmp_path / "out", QUICK, ids=source.ids[:1])
    kept = first.path("a").stat().st_mtime_ns
    whole = refine(store, source, tmp_path / "out", QUICK, ids=source.ids)
    assert not whole.missing(source.ids) and whole.path("a").stat().st_mtime_ns == kept
    lost = whole.path("b").read_bytes()
    whole.path("b").unlink()
    refine(store, source, tmp_path / "out", QUICK, ids=source.ids)
    assert whole.path("b").read_bytes() == lost


def test_bad_records_and_photographs_are_skipped_and_listed(tmp_path, capsys):
    images = {id: photograph() for id in ("good", "nan", "negative", "broken", "absent")}
    images["other_size"] = photograph(10, 16)
    source = Photographs(images)
    good = maps(half())
    store = store_of(tmp_path / "maps", dict.fromkeys(("good", "broken", "other_size"), good))
    for id, value in (("nan", np.nan), ("negative", -0.5)):
        scores = half()
        scores[0, 0] = value
        np.savez(
            store.path(id), scores=scores.astype("f2"), classes=np.ones(1, "i2"),
            size=np.array([12, 16], "i4"), peak=np.ones(1, "f4"),
        )  # fmt: skip
    store.path("broken").write_bytes(b"PK\x03\x04 not an archive")
    refined = refine(store, source, tmp_path / "out", QUICK, ids=source.ids)
    assert refined.ids() == ("good",)
    reasons = json.loads((tmp_path / "out/skipped.json").read_text())
    assert "NaN" in reasons["nan"] and "scores from -0.5" in reasons["negative"]
    assert "damaged" in reasons["broken"] and "run the stage" in reasons["absent"]
    assert "(12, 16), worked on as (12, 16), this one comes as (10, 16)" in reasons["other_size"]
    assert "skipped 5 image(s)" in capsys.readouterr().out
    # Mended, the same command finishes the rest and the list says so.
    for id in ("nan", "negative", "broken", "absent"):
        store.put_scores(id, good)
    refine(store, source, tmp_path / "out", QUICK, ids=source.ids)
    assert list(json.loads((tmp_path / "out/skipped.json").read_text())) == ["other_size"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-3])
@pytest.mark.parametrize("settings", [QUICK, Crf()], ids=["walk", "crf"])
def test_scores_that_are_no_scores_are_refused(settings, value):
    function = walked if isinstance(settings, Walk) else crf_refined
    scores = half()
    scores[3, 3] = value
    with pytest.raises(ValueError, match="wanted finite numbers >= 0"):
        function(maps(scores), photograph(), settings)


def test_masks_and_logits_are_refused(toy, tmp_path):
    _, source = toy
    logits = store_of(tmp_path / "logits", {}, kind="logit")
    with pytest.raises(ValueError, match="holds logit"):
        refine(logits, source, tmp_path / "out", QUICK, ids=source.ids)
    decided = stores.create(tmp_path / "m", holds="masks", classes=CLASSES.names, made_by={})
    with pytest.raises(ValueError, match="holds masks"):
        refine(decided, source, tmp_path / "out", QUICK, ids=source.ids)


@pytest.mark.parametrize("settings", [QUICK, Crf(stride=2)], ids=["walk", "crf"])
def test_one_pixel_is_an_image(settings):
    function = walked if isinstance(settings, Walk) else crf_refined
    single = maps(np.full((1, 1, 1), 0.8), size=(1, 1))
    refined = function(single, photograph(1, 1), settings)
    assert refined.scores.shape == (1, 1, 1) and refined.size == (1, 1)
    assert 0.5 < refined.scores[0, 0, 0] <= 1  # alone, the winner stays the winner


def test_cells_without_neighbours_keep_their_score():
    scores = np.random.default_rng(1).random((12, 16, 1)).astype(np.float32)
    scores /= scores.max()
    lonely = np.random.default_rng(2).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    unlike = Walk(radius=2, sigma_colour=1e-4, sigma_space=2.0, steps=64)
    refined = walked(maps(scores), lonely, unlike)
    np.testing.assert_allclose(refined.scores, scores, atol=1e-4)


def test_a_walk_over_colours_does_not_cross_edges(toy, tmp_path):
    store, source = toy
    made = stores.create(tmp_path / "edges", holds="scores", classes=("edge",), made_by={})
    wall = np.zeros((12, 16, 1), np.float32)
    wall[6] = 1
    for id in source.ids:
        made.put_scores(id, maps(wall, classes=(0,)))
    free = refine(store, source, tmp_path / "free", QUICK, ids=source.ids)
    bound = replace(QUICK, edges=made.folder)
    stopped = refine(store, source, tmp_path / "stopped", bound, ids=source.ids)
    below = [one.get_scores("a").scores[7:, :8, 0].max() for one in (free, stopped)]
    assert below[0] > 0.01 and below[1] == 0
    made.put_scores(source.ids[0], maps(wall[:6], classes=(0,), size=(6, 16)))
    with pytest.raises(BadFileError, match=r"\(6, 16\), its scores of"):
        walks.edges_of(source.ids[0], store.get_scores(source.ids[0]), bound)
    with pytest.raises(UserError, match="wanted edges"):
        refine(store, source, tmp_path / "x", replace(QUICK, edges=store.folder), ids=source.ids)


def test_a_walk_of_probabilities_keeps_their_sums():
    first = np.clip(half() * 0.7, 0, 0.7)
    both = np.concatenate([first, 0.9 - first], axis=-1)
    given = maps(both, classes=(1, 2), kind="probability")
    refined = walked(given, photograph(), QUICK)
    assert refined.kind == "probability"
    np.testing.assert_allclose(refined.scores.sum(axis=-1), 0.9, atol=1e-3)


def test_probabilities_may_end_as_activations(tmp_path):
    first = np.clip(half() * 0.7, 0, 0.7)
    given = maps(first, kind="probability")
    store = store_of(tmp_path / "maps", {"a": given}, kind="probability")
    settings, source = replace(QUICK, to_activations=True), Photographs({"a": photograph()})
    made = refine(store, source, tmp_path / "out", settings, ids=("a",))
    assert made.kind == "activation"
    as_scores = walked(maps(first), photograph(), QUICK).scores
    np.testing.assert_allclose(made.get_scores("a").scores, as_scores, atol=2e-3)


def test_a_crf_of_hard_labels_is_that_of_the_decision():
    scores = np.concatenate([half() * 0.8, 0.5 - half() * 0.5], axis=-1)
    given, settings = maps(scores, classes=(0, 1)), Crf("pnoc_masks", 0.3, 1, certainty=0.9)
    refined = crf_refined(given, photograph(), settings)
    ranks = np.where(scores.max(-1) > 0.3, scores.argmax(-1) + 1, 0)
    expected = crf.refine_labels(photograph(), ranks, crf.PRESETS["pnoc_masks"], k=3, gt_prob=0.9)[
        ..., 1:
    ]
    np.testing.assert_allclose(refined.scores, expected, atol=1e-5)
    alone = crf_refined(maps(half()), photograph(), replace(settings, background=None))
    np.testing.assert_allclose(alone.scores, 1, atol=1e-5)  # one class, and nothing beside it


def test_a_map_of_zeros_stays_zero_and_does_not_disturb_the_others():
    alone = walked(maps(half()), photograph(), QUICK).scores
    with_zeros = np.concatenate([half(), np.zeros((12, 16, 1), np.float32)], -1)
    both = walked(maps(with_zeros, classes=(1, 2)), photograph(), QUICK).scores
    np.testing.assert_allclose(both[..., :1], alone, atol=1e-6)
    assert not both[..., 1].any()


def test_coarse_maps_of_odd_photographs_are_refined_on_their_own_grid():
    image = photograph(13, 19)
    coarse = maps(np.ones((4, 5, 1)), size=(13, 19))
    refined = walked(coarse, image, QUICK)
    assert refined.scores.shape == (4, 5, 1)
    np.testing.assert_allclose(refined.scores, 1, atol=1e-4)  # a constant stays constant
    cut = crf_refined(coarse, image, Crf(stride=2))
    assert cut.scores.shape == (7, 10, 1) and cut.kind == "probability"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Walk(radius=0),
        lambda: Walk(sigma_colour=0.0),
        lambda: Walk(steps=-1),
        lambda: Walk(Path("run"), Path("edges")),
        lambda: Crf(preset="paper"),
        lambda: Crf(background=0.0),
        lambda: Crf(stride=0),
    ],
)
def test_impossible_settings_are_refused_when_they_are_made(wrong):
    with pytest.raises(ValueError, match=r"wanted|known"):
        wrong()


def test_a_crf_may_read_its_background_off_the_store(toy, tmp_path):
    store, source = toy
    found = label_free_threshold(store, source.ids)
    made = refine(store, source, tmp_path / "crf", Crf(background="otsu"), ids=source.ids)
    index = json.loads((made.folder / "index.json").read_text())
    assert index["made_by"]["background"] == round(found, 2)
    fixed = Crf(background=index["made_by"]["background"])
    same = refine(store, source, tmp_path / "crf", fixed, ids=source.ids)
    assert not same.missing(source.ids)  # the very same settings: nothing is refused
    with pytest.raises(ValueError, match="one image tells no background"):
        crf_refined(store.get_scores(source.ids[0]), photograph(), Crf(background="otsu"))


def test_without_background_the_classes_share_every_pixel():
    several = maps(half(classes=2), classes=(0, 2))
    refined = crf_refined(several, photograph(), Crf(background=None, stride=1))
    np.testing.assert_allclose(refined.scores.sum(axis=-1), 1, atol=1e-4)
