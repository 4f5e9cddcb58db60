"""Photographs that are worked on reduced: every stage takes them, and masks have the full size."""

import json

import numpy as np
import pytest
from PIL import Image

from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import inference_groups, training_batches
from wsss_jax.data import photographs, stores
from wsss_jax.datasets import table as datasets
from wsss_jax.errors import BadFileError
from wsss_jax.run.thresholds import foreground
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.stages.masks import Masking, mask_of
from wsss_jax.stages.parts.walks import Walk, walked
from wsss_jax.stages.refine import Crf, crf_refined
from wsss_jax.types import ScoreMaps

FULL, SMALL = (40, 60), (20, 30)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "WORKING_PIXELS", 600)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n, id in enumerate(("IMG 1", "IMG 2")):
        pixels = np.full((*FULL, 3), 40, np.uint8)
        mask = np.zeros(FULL, np.uint8)
        pixels[10:30, 20:40] = (200, 90, 10)
        mask[10:30, 20:40] = n + 1
        Image.fromarray(pixels).save(tmp_path / f"images/{id}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{id}.png")
    (tmp_path / "labels.csv").write_text("IMG 1,cat\nIMG 2,dog\n")
    return tmp_path


def maps(label: int) -> ScoreMaps:
    """Scores of the square on a grid of the working size at stride 2."""
    scores = np.zeros((10, 15, 1), np.float32)
    scores[2:8, 5:10] = 1
    peak = np.ones(1, np.float32)
    return ScoreMaps(scores, np.array([label], np.int32), FULL, peak)


def test_a_source_tells_both_sizes(root):
    source = datasets.open_dataset(root, split="all")
    assert source.size("IMG 1") == FULL == source.mask("IMG 1").shape
    assert source.image("IMG 1").shape[:2] == SMALL == photographs.working_size(FULL)


def test_groups_and_batches_have_the_working_size(root):
    source = datasets.open_dataset(root, split="all")
    (group,) = inference_groups(source, source.ids, scales=(1.0,), batch_size=2, skip=print)
    assert (group.sizes == SMALL).all() and (group.full == FULL).all()
    crop = Augmentation(crop=16, long_side=(30, 30))
    batches = training_batches(source, crop, seed=0, batch_size=2, masks=source.mask)
    assert np.asarray(next(batches).masks).shape == (2, 16, 16) and not batches.skipped


@pytest.mark.parametrize("refine", [lambda m, p: walked(m, p, Walk(radius=2, steps=4)),
                                    lambda m, p: crf_refined(m, p, Crf(stride=1))])  # fmt: skip
def test_refined_maps_keep_the_full_size_and_decide_full_masks(root, refine):
    source = datasets.open_dataset(root, split="all")
    refined = refine(maps(0), source.image("IMG 1"))
    assert refined.size == FULL and refined.scores.shape[0] <= SMALL[0]
    mask = mask_of(refined, Masking(0.5))
    truth = source.mask("IMG 1")
    assert mask.shape == FULL and ((mask > 0) & (truth > 0)).sum() > 0.8 * (truth > 0).sum()


def test_strips_of_rows_give_what_the_whole_gives(root, monkeypatch):
    whole = foreground(maps(1))
    monkeypatch.setattr("wsss_jax.run.thresholds.STRIP", 7 * FULL[1])
    for ours, theirs in zip(foreground(maps(1)), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_evaluation_is_at_full_size_and_refuses_what_means_nothing(root):
    source = datasets.open_dataset(root, split="all")
    kept = stores.create(root / "maps", holds="scores", classes=("cat", "dog"), made_by={})
    for label, id in enumerate(source.ids):
        kept.put_scores(id, maps(label))
    result = evaluate(kept, source, Scoring(), split="all")
    assert result.counts.sum() == 2 * FULL[0] * FULL[1] and result.miou(tuned=True) > 0.7
    entries = {"IMG 1": ["dog"], "IMG 2": ["cat"]}
    content = {"classes": ["cat", "dog"], "image_labels": entries}
    (root / "labels.csv").unlink()
    (root / "labels.json").write_text(json.dumps(content))
    swapped = datasets.open_dataset(root, split="all")
    with pytest.raises(BadFileError, match="no number would mean anything"):
        evaluate(kept, swapped, Scoring(), split="all")
