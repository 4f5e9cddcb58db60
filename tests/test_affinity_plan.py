"""Labels, network, walk and verdict as one plan, on four drawn scenes."""

import json
from dataclasses import replace

import numpy as np

from wsss_jax.batches.augment import Augmentation
from wsss_jax.crf import dense as crf
from wsss_jax.data import stores
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.recipes.affinity import AffinityPlan
from wsss_jax.run.training import Training
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.systems.affinity import AffinityNet
from wsss_jax.types import ScoreMaps

QUICK = Walk(radius=2, steps=4)


def test_a_plan_goes_from_score_maps_to_a_verdict_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(
        crf, "refine_labels", lambda image, labels, settings, *, k, gt_prob: np.eye(k)[labels]
    )  # what the CRF adds is tested with the labels
    data = synthetic.write(tmp_path / "data", 4, 0, settings=synthetic.Scenes(size=32))
    source = open_dataset(data, split="all")
    maps = stores.create(
        tmp_path / "maps", holds="scores", classes=source.classes.names, made_by={}
    )
    for id in source.ids:
        classes = np.flatnonzero(source.labels(id)).astype(np.int32)
        scores = np.random.default_rng(0).random((8, 8, len(classes)), np.float32)
        maps.put_scores(id, ScoreMaps(scores, classes, (32, 32), scores.max(axis=(0, 1))))
    model = AffinityNet("boundary", "tiny", None, 8, stride=8, radius=2)
    plan = AffinityPlan(
        data,
        maps.folder,
        train_split="all",
        splits=("all",),
        training=Training(model, Augmentation(crop=32, hue=0.0), epochs=1, batch_size=4),
        walk=QUICK,
        colour_walk=QUICK,
        with_crf=False,
    )
    made = plan.make(tmp_path / "out")
    assert made.folder.name == "walk" and made.parents == ("maps", "run")
    assert set(made.ids()) == set(source.ids)
    names = [
        row["name"] for row in json.loads((tmp_path / "out/results.json").read_text())["results"]
    ]
    assert names == ["maps", "colour_walk", "walk"]
    only = source.classes.names  # all of them, so that the store fits
    again = replace(plan, others=(made.folder,), only=only).make(tmp_path / "some")
    assert again.classes == source.classes.names and again.kind == "activation"
    rows = json.loads((tmp_path / "some/results.json").read_text())["results"]
    assert [row["name"] for row in rows] == ["maps", "colour_walk", "walk_walk", "walk"]
    stamp = made.path(source.ids[0]).stat().st_mtime_ns
    assert plan.make(tmp_path / "out").path(source.ids[0]).stat().st_mtime_ns == stamp
