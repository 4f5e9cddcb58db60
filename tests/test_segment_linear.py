"""The linear head on frozen features: what it is given, what it learns, what it refuses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from wsss_jax.combiner.probes import Probe
from wsss_jax.data import stores
from wsss_jax.data.classes import ClassList
from wsss_jax.datasets import synthetic, views
from wsss_jax.datasets.synthetic import Scenes
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import UserError
from wsss_jax.run.executors import Workers
from wsss_jax.stages import segment
from wsss_jax.stages.parts import chances, segment_linear
from wsss_jax.stages.parts.segment_linear import Linear
from wsss_jax.types import IGNORE, ScoreMaps

SMALL = Linear(cells=16, penalty=1e-4, smoothing=0.0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Drawn scenes, and features of them in which every class lies in a direction of its own."""
    root = tmp_path_factory.mktemp("linear")
    synthetic.write(root / "data", 12, 3, settings=Scenes(size=32))
    source = open_dataset(root / "data", split="all")
    random = np.random.default_rng(0)
    names = tuple(f"component_{i}" for i in range(len(source.classes) + 2))
    store = stores.create(
        root / "features", holds="scores", classes=names, kind="logit", made_by={}
    )
    for id in source.ids:
        mask = np.where(source.mask(id) == IGNORE, 0, source.mask(id))[::2, ::2]
        scores = np.eye(len(names), dtype=np.float32)[mask]
        scores += 0.1 * random.standard_normal(scores.shape, np.float32)
        numbers = np.arange(len(names), dtype=np.int32)
        maps = ScoreMaps(scores, numbers, source.size(id), scores.max((0, 1)), "logit")
        store.put_scores(id, maps)
    return root, source, store


def test_a_head_learns_masks_and_segments_without_labels(scenes, tmp_path):
    _, source, store = scenes
    run = segment_linear.fit(source, segment.truth(source), [store], SMALL, tmp_path / "run")
    learned = (run / "head.npz").read_bytes()
    bare = views.photographs(source)
    found = segment_linear.predict(run, bare, [store], tmp_path / "scores", ids=source.ids)
    right = known = 0
    for id in source.ids:
        maps, mask = found.get_scores(id), source.mask(id)[::2, ::2]
        rest = 1 - maps.scores.sum(axis=-1, keepdims=True)
        shares = np.concatenate([rest, maps.scores], axis=-1)
        label = np.append(0, maps.classes + 1)[shares.argmax(axis=-1)]
        right += int((label == mask).sum())
        known += int((mask != IGNORE).sum())
    assert right / known > 0.95
    assert found.made_by["learned_from"]["masks"] == segment.TRUTH
    segment_linear.fit(source, segment.truth(source), [store], SMALL, tmp_path / "run")
    assert (run / "head.npz").read_bytes() == learned
    with pytest.raises(UserError, match="other settings"):
        other = replace(SMALL, penalty=1.0)
        segment_linear.fit(source, segment.truth(source), [store], other, tmp_path / "run")


def test_cells_have_their_features_and_the_mean_of_the_first_network():
    first, second = np.asarray([[[1.0], [3.0]]]), np.asarray([[[5.0, 6.0], [7.0, 8.0]]])
    rows = segment_linear.rows_of([first, second])
    np.testing.assert_array_equal(rows, [[1, 5, 6, 2], [3, 7, 8, 2]])


def test_classifiers_multiply_the_odds_by_hand():
    head = Probe(("cat", "dog"), np.zeros((2, 3), np.float32), np.zeros(3, np.float32))
    maps = [np.zeros((1, 2, 1), np.float32)]
    alone = segment_linear.answer(head, maps, None, Linear(smoothing=0.0))
    np.testing.assert_allclose(alone, np.full((2, 3), 1 / 3), rtol=1e-6)
    told = segment_linear.answer(
        head, maps, np.asarray([1, 0.25]), Linear(smoothing=0.0, trust=0.5)
    )
    np.testing.assert_allclose(told, [[0.4, 0.4, 0.2]] * 2, rtol=1e-6)


def test_other_features_and_missing_records_are_refused(scenes, tmp_path):
    _, source, store = scenes
    run = segment_linear.fit(source, segment.truth(source), [store], SMALL, tmp_path / "run")
    other = stores.create(
        tmp_path / "other", holds="scores", classes=("one",), kind="logit", made_by={}
    )
    with pytest.raises(UserError, match="no features of 12 of 12 images"):
        segment_linear.predict(run, source, [other], tmp_path / "x", ids=source.ids)
    with pytest.raises(UserError, match="was learned with features"):
        segment_linear.predict(run, source, [store, store], tmp_path / "x", ids=())
    with pytest.raises(UserError, match="no store of features"):
        segment_linear.fit(source, segment.truth(source), [], SMALL, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    nobody = replace(source, ids=())
    with pytest.raises(UserError, match="no image to learn from"):
        segment_linear.fit(nobody, segment.truth(source), [store], SMALL, tmp_path / "none")
    with pytest.raises(UserError, match="positive penalty"):
        Linear(penalty=0.0)


def test_classifiers_of_other_classes_are_refused(scenes, tmp_path, monkeypatch):
    _, source, _ = scenes
    swapped = ClassList(source.classes.names[::-1])
    monkeypatch.setattr(chances, "subject_of", lambda run: SimpleNamespace(classes=swapped))
    asked = chances.Asking(1.0, 4, Workers())
    with pytest.raises(UserError, match="in this order"):
        chances.chances([tmp_path], source, asked, tmp_path, ids=source.ids)
