"""Affinity labels: the three rules by hand on toy scores, and the stage that runs them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_refine import Photographs, maps, photograph, store_of

from wsss_jax.crf import dense as crf
from wsss_jax.stages.parts import affinity_labels as labelling
from wsss_jax.stages.parts.affinity_labels import Irn, Pnoc, Psa, irn, make_labels, pnoc, psa
from wsss_jax.types import IGNORE

ROW = [0.0, 1e-6, 0.02, 0.15, 0.35, 0.5, 0.9]


@pytest.fixture
def no_crf(monkeypatch):
    """The CRF leaves everything as it is, so that labels can be worked out by hand."""

    def refined(image, probability, settings):
        return probability

    def of_labels(image, labels, settings, *, k, gt_prob):
        return np.eye(k, dtype=np.float32)[labels]

    monkeypatch.setattr(crf, "refine", refined)
    monkeypatch.setattr(crf, "refine_labels", of_labels)


def row(*scores, classes=(1,)):
    return maps(np.stack(scores, -1)[None], classes=classes, size=(1, len(scores[0])))


def picture(width=7):
    return np.zeros((1, width, 3), np.uint8)


def test_psa_by_hand(no_crf):
    # (1 - s)⁴ > s up to s = 0.28; (1 - s)³² > s up to s = 0.077.
    found = psa(row(ROW), picture(), Psa())
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], [IGNORE, IGNORE, 0, IGNORE, 2, 2, 2])


def test_irn_by_hand_and_the_best_class_wins(no_crf):
    found = irn(row(ROW, ROW[::-1], classes=(0, 2)), picture(), Irn())
    np.testing.assert_array_equal(found[0], [3, 3, 3, IGNORE, 1, 1, 1])
    single = irn(row(ROW), picture(), Irn())
    np.testing.assert_array_equal(single[0], [0, 0, 0, IGNORE, 2, 2, 2])


def test_pnoc_by_hand(no_crf):
    saliency = np.asarray([[0.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.5]], np.float32)
    found = pnoc(row(ROW), picture(), Pnoc(), saliency=saliency)
    # Salient without a class is unknown, a class that is not salient is background.
    np.testing.assert_array_equal(found[0], [0, IGNORE, 0, IGNORE, IGNORE, 0, 2])


@pytest.mark.parametrize("rule", [Psa(), Irn(), Pnoc()], ids=["psa", "irn", "pnoc"])
def test_the_crf_carries_labels_to_the_edge_of_the_object(rule):
    scores = np.full((12, 16, 1), 0.01, np.float32)
    scores[:, :8] = 1
    scores[5:7, 3:5] = 0.2  # a hole that the photograph knows nothing of
    if isinstance(rule, Pnoc):
        saliency = np.zeros((12, 16), np.float32)
        saliency[:, :8] = 1
        found = pnoc(maps(scores), photograph(), rule, saliency=saliency)
    else:
        found = {Psa: psa, Irn: irn}[type(rule)](maps(scores), photograph(), rule)
    assert (found[:, :8] == 2).all() and (found[:, 8:] == 0).all()


def test_the_stage_writes_masks_goes_on_and_lists_what_fails(tmp_path, capsys):
    source = Photographs(dict.fromkeys(("a", "b", "c"), photograph()))
    half = np.zeros((3, 4, 1), np.float32)
    half[:, :2] = 1
    records = {"a": maps(half), "b": maps(half[..., :0], classes=())}
    store = store_of(tmp_path / "maps", records)
    made = make_labels(store, source, tmp_path / "labels", Irn(), ids=source.ids)
    assert made.ids() == ("a", "b") and made.holds == "masks"
    assert set(np.unique(made.get_mask("a"))) <= {0, 2, IGNORE}
    assert (made.get_mask("b") == IGNORE).all()
    assert list(json.loads((tmp_path / "labels/skipped.json").read_text())) == ["c"]
    assert made.made_by["rule"] == "irn" and "skipped 1" in capsys.readouterr().out
    store.put_scores("c", maps(half))
    kept = made.path("a").stat().st_mtime_ns
    again = make_labels(store, source, tmp_path / "labels", Irn(), ids=source.ids)
    assert not again.missing(source.ids) and made.path("a").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match=r"foreground: 0\.3 -> 0\.4"):
        make_labels(store, source, tmp_path / "labels", Irn(foreground=0.4), ids=source.ids)


def test_what_is_certain_can_be_read_off_the_maps_themselves(tmp_path, no_crf):
    source = Photographs({"a": picture(6), "b": picture(6)})
    scores = [[0.125, 0.125, 0.125, 0.375, 0.375, 0.875]] * 2
    store = store_of(tmp_path / "maps", {id: row(s) for id, s in zip("ab", scores, strict=True)})
    rule = Irn(thresholds="otsu")
    made = make_labels(store, source, tmp_path / "labels", rule, ids=source.ids)
    np.testing.assert_array_equal(made.get_mask("a")[0], [0, 0, 0, IGNORE, IGNORE, 2])
    # The middle of the gaps 0.13 to 0.37 and 0.38 to 0.87, in bins of a hundredth.
    assert (made.made_by["background"], made.made_by["foreground"]) == (0.25, 0.62)
    chance = replace(row(scores[0]), kind="probability")
    likely = store_of(tmp_path / "likely", {"a": chance}, kind="probability")
    made = make_labels(likely, source, tmp_path / "by_meaning", rule, ids=("a",))
    np.testing.assert_array_equal(made.get_mask("a"), [[0, 0, 0, IGNORE, IGNORE, 2]])
    assert (made.made_by["background"], made.made_by["foreground"]) == (0.3, 0.7)
    vague = replace(row([0.1, 0.1, 0.2, 0.4, 0.5, 0.6]), kind="probability")
    unsure = store_of(tmp_path / "vague", {"a": vague}, kind="probability")
    with pytest.raises(ValueError, match=r"vague: in 1 of 1 images no probability exceeds 0\.7"):
        make_labels(unsure, source, tmp_path / "nothing", rule, ids=("a",))
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="no two thresholds"):
        make_labels(store_of(tmp_path / "none", {}), source, tmp_path / "x", rule, ids=())


def test_saliency_goes_with_one_rule_only_and_is_read(tmp_path):
    source = Photographs({"a": photograph()})
    half = np.zeros((3, 4, 1), np.float32)
    half[:, :2] = 1
    store = store_of(tmp_path / "maps", {"a": maps(half)})
    cue = labelling.stores.create(
        tmp_path / "saliency", holds="scores", classes=("salient",), made_by={}, kind="probability"
    )
    cue.put_scores("a", maps(half, classes=(0,), kind="probability"))
    made = make_labels(store, source, tmp_path / "labels", Pnoc(), ids=source.ids, saliency=cue)
    assert made.parents == ("maps", "saliency")
    found = made.get_mask("a")
    assert (found[:, :8] == 2).all() and (found[:, 8:] == 0).all()
    for rule, given in ((Pnoc(), None), (Irn(), cue)):
        with pytest.raises(ValueError, match="needs a store of it, the others use none"):
            make_labels(store, source, tmp_path / "x", rule, ids=source.ids, saliency=given)
    logits = store_of(tmp_path / "logits", {}, kind="logit")
    with pytest.raises(ValueError, match="explain first"):
        make_labels(logits, source, tmp_path / "x", Irn(), ids=source.ids)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Psa(low=32.0, high=4.0),
        lambda: Psa(preset="paper"),
        lambda: Irn(foreground=0.05, background=0.3),
        lambda: Irn(certainty=1.0),
        lambda: Pnoc(salient=0.0),
    ],
)
def test_impossible_rules_are_refused_when_they_are_made(wrong):
    with pytest.raises(ValueError, match=r"wanted|known"):
        wrong()
