"""What is corrected first: uncertain photographs that stand for many, and each class in turn."""

import csv

import numpy as np
import pytest
import toy_exports as toy

from wsss_jax.data import stores
from wsss_jax.ops import coverage
from wsss_jax.stages.suggest import (
    LIST,
    TABLE,
    Row,
    Suggestion,
    ordered,
    suggest,
    uncertainty_of,
)
from wsss_jax.types import ScoreMaps

NAMES = ("cat", "dog")


def row(id, uncertainty, labels, features=None):
    look = None if features is None else np.array(features, np.float32)
    return Row(id, uncertainty, np.array(labels, bool), look)


def ids(found):
    return [one.id for one in found]


def test_classes_take_turns_and_the_most_uncertain_comes_first():
    rows = [
        row("cat1", 0.5, [1, 0]),
        row("cat2", 0.6, [1, 0]),
        row("dog1", 0.2, [0, 1]),
        row("dog2", 0.3, [0, 1]),
    ]
    found = ordered(rows, NAMES, 4)
    # Every cat tells all of the other cat, so the first of equal ones is taken.
    assert ids(found)[:2] == ["cat1", "dog1"] and set(ids(found)) == {r.id for r in rows}
    assert found[0].gain == pytest.approx(1.1 / 1.6) and found[0].like == 1
    assert found[0].classes == ("cat",)
    after = ordered(rows, NAMES, 1, known=["cat2"])
    assert ids(after) == ["dog1"]


def test_near_features_count_and_outliers_do_not_win():
    rows = [
        row("outlier", 0.9, [1, 0], [0, -1]),
        row("a", 0.5, [1, 0], [1, 0]),
        row("middle", 0.5, [1, 0], [1, 0.2]),
        row("b", 0.5, [1, 0], [1, 0.4]),
    ]
    assert ids(ordered(rows, NAMES, 2)) == ["middle", "outlier"]


def test_greedy_choice_is_that_of_the_obvious_version():
    rng = np.random.default_rng(0)
    worth, likeness = rng.random(12), rng.random((12, 12))
    covered = np.zeros(12)
    for item, gain in coverage.choose(worth, likeness, 5):
        gains = [(worth * np.maximum(covered, row)).sum() for row in likeness]
        assert gains[item] == max(gains)
        assert gain * worth.sum() == pytest.approx(gains[item] - (worth * covered).sum())
        covered = np.maximum(covered, likeness[item])


def test_no_uncertainty_still_gives_an_order():
    found = ordered([row("a", 0.0, [1, 0]), row("b", 0.0, [0, 1])], NAMES, 5)
    assert sorted(ids(found)) == ["a", "b"]


@pytest.mark.parametrize("kind", ["probability", "activation"])
def test_uncertainty_is_an_entropy(kind):
    def of(value):
        scores = np.full((2, 3, 1), value, np.float32)
        return uncertainty_of(
            ScoreMaps(scores, np.array([0]), (2, 3), np.ones(1, np.float32), kind)
        )

    assert of(0.5) == pytest.approx(1) and of(0.0) == pytest.approx(0, abs=1e-4)
    assert of(0.7) < of(0.55)


def test_lists_are_written_with_the_names_of_the_photographs(tmp_path):
    source = toy.data_set(tmp_path / "data")
    store = toy.score_store(tmp_path / "fused", kind="probability")
    doubt = stores.create(
        tmp_path / "fused_uncertainty",
        holds="scores",
        classes=("entropy", "disagreement"),
        kind="probability",
        made_by={},
    )
    for id, value in (("one", 0.25), ("two", 0.75)):
        height, width = toy.SIZES[id]
        maps = np.full((-(-height // 8), -(-width // 8), 2), value, np.float32)
        doubt.put_scores(
            id, ScoreMaps(maps, np.arange(2), toy.SIZES[id], np.ones(2, np.float32), "probability")
        )
    found = suggest(store, source, tmp_path / "out", Suggestion())
    assert ids(found) == ["two", "one"] and found[0].uncertainty == 0.75
    assert (tmp_path / "out" / LIST).read_text() == "two.png\none.JPG\n"
    with (tmp_path / "out" / TABLE).open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["photograph"] == "two.png" and first["classes"] == "große Katze"
    assert first["reason"] == "uncertain on 75%"
    assert ids(suggest(store, source, tmp_path / "out", Suggestion(), known=["two"])) == ["one"]
    fused = stores.create(tmp_path / "empty", holds="scores", classes=store.classes, made_by={})
    with pytest.raises(ValueError, match=r"empty: no photograph of .* with a class is in it"):
        suggest(fused, source, tmp_path / "out", Suggestion())
    with pytest.raises(ValueError, match="all 2 photographs with a class are corrected"):
        suggest(store, source, tmp_path / "out", Suggestion(), known=["two", "one"])
    with pytest.raises(ValueError, match="wanted combined score maps"):
        suggest(toy.mask_store(tmp_path / "m"), source, tmp_path / "out", Suggestion())
