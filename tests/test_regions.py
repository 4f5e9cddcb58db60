"""Regions of detectors and segment-anything tools come with their pixels, scores and classes."""

import json

import numpy as np
import pytest
import toy_priors

from wsss_jax.data import stores
from wsss_jax.data.classes import COCO, VOC
from wsss_jax.errors import BadFileError
from wsss_jax.priors import layouts, regions
from wsss_jax.priors.external import Wanted, read_file, read_maps
from wsss_jax.priors.prior_readers import READERS
from wsss_jax.stages.import_maps import Import, import_priors

SIZE = (6, 8)
MASKS = np.zeros((2, *SIZE), bool)
MASKS[0, 1:4, 2:5] = True
MASKS[1, :, 0] = True


def packed(counts):
    """Compressed as maskApi.c of the COCO API does."""
    text = ""
    for n, count in enumerate(counts):
        value = int(count) - (int(counts[n - 2]) if n > 2 else 0)
        while True:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
            if not more:
                break
    return text


def run(mask, compressed=False):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts
    return {"size": list(mask.shape), "counts": packed(counts) if compressed else counts}


def sam(compressed=True):
    return [
        {"segmentation": run(mask, compressed), "area": int(mask.sum()), "bbox": [0, 0, 2, 2],
         "predicted_iou": score}
        for mask, score in zip(MASKS, (0.9, 1.01), strict=True)
    ]  # fmt: skip


def written(path, value):
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("form", ["list", "annotations", "plain runs"])
def test_masks_of_sam_are_read_with_their_scores(tmp_path, form):
    value = sam(form != "plain runs")
    if form == "annotations":
        value = {"image": {"height": 6, "width": 8, "image_id": 1}, "annotations": value}
    found = regions.read_regions(written(tmp_path / "a.json", value))
    np.testing.assert_array_equal(found.masks, MASKS)
    np.testing.assert_allclose(found.scores, [0.9, 1])
    assert found.size == SIZE and found.classes == (None, None) and len(found) == 2


def test_a_store_gives_back_regions_and_their_share_of_cells(tmp_path):
    found = regions.read_regions(written(tmp_path / "a.json", sam()))
    store = stores.create(tmp_path / "s", holds="regions", classes=VOC.names, made_by={})
    regions.put_regions(store, "a", found)
    back = regions.get_regions(store, "a")
    np.testing.assert_array_equal(back.masks, MASKS)
    np.testing.assert_allclose(back.scores, found.scores, atol=1e-3)
    np.testing.assert_allclose(back.on_grid((3, 4)), MASKS.reshape(2, 3, 2, 4, 2).mean((2, 4)))
    assert regions.read_regions(store.path("a")).size == SIZE


def wanted(classes, names=VOC):
    return Wanted(names, np.isin(np.arange(len(names)), classes), SIZE, SIZE)


def test_detections_become_maps_of_their_classes(tmp_path):
    """A class's map is the largest score of its regions, 0 outside of them."""
    value = [
        {"category_id": 5, "score": 0.5, "segmentation": run(MASKS[0])},
        {"category_id": 5, "score": 0.25, "segmentation": run(MASKS[0] | MASKS[1], True)},
        {"category_id": 3, "score": 0.9, "segmentation": run(MASKS[1])},
        {"category_id": 99, "score": 0.9, "segmentation": run(MASKS[1])},
        {"category_id": 5, "score": 7, "segmentation": run(MASKS[1])},
    ]
    prior = read_file("instances", written(tmp_path / "a.json", value), wanted((4, 7)))
    assert prior.maps.classes.tolist() == [4] and prior.maps.kind == "probability"
    expected = np.maximum(MASKS[0] * 0.5, MASKS[1] * 0.25)
    np.testing.assert_allclose(prior.maps.scores[..., 0], expected)
    assert "region 4 left out: a score of 7" in prior.notes[0]
    assert any("other classes left out: 99" in note for note in prior.notes)


@pytest.mark.parametrize("form", ["grounded", "arrays", "columns"])
def test_text_prompts_are_matched_to_class_names(tmp_path, form):
    names, scores = ["TV monitor", "dining_table"], [0.75, 0.5]
    path = tmp_path / "a.json"
    if form == "grounded":
        entries = [
            {"class_name": n, "score": [s], "segmentation": run(m), "bbox": [0, 0, 1, 1]}
            for n, s, m in zip(names, scores, MASKS, strict=True)
        ]
        written(path, {"annotations": entries, "img_height": 6, "img_width": 8})
    elif form == "columns":
        written(path, {"masks": [run(m) for m in MASKS], "scores": scores, "labels": names})
    else:
        path = tmp_path / "a.npz"
        np.savez(path, masks=MASKS[:, None], scores=scores, labels=np.array(names))
    maps = read_file("instances", path, wanted((19, 10))).maps
    by_class = dict(zip(maps.classes.tolist(), maps.scores.transpose(2, 0, 1), strict=True))
    np.testing.assert_allclose(by_class[19], MASKS[0] * 0.75)
    np.testing.assert_allclose(by_class[10], MASKS[1] * 0.5)
    assert read_maps(path, VOC).classes.tolist() == [10, 19]


def test_numbers_of_coco_are_its_official_ones():
    assert regions.labels_of((1, 13, 90, 12, "Dining Table"), COCO) == [0, 11, 79, None, 60]
    assert regions.labels_of((1, 20, 21), VOC) == [0, 19, None]
    assert regions.labels_of((0, 79), COCO, first=0) == [0, 79]


def test_one_file_of_results_is_imported_for_all_images(tmp_path):
    """Images are found by number, whatever zeros stand before it."""
    value = [
        {"image_id": 9, "category_id": 5, "score": 0.5, "segmentation": run(MASKS[0])},
        {"image_id": 12, "category_id": 8, "score": 0.5, "segmentation": run(MASKS[1])},
    ]
    source = toy_priors.Labelled({"COCO_val_000000000009": (4,), "000000000012": (7,)}, SIZE)
    path = written(tmp_path / "results.json", value)
    store = import_priors(Import(), path, source, tmp_path / "out", ids=source.ids)
    assert store.made_by["layout"] == "instances" and store.made_by["stride"] == 1
    np.testing.assert_allclose(
        store.get_scores("000000000012").scores[..., 0], MASKS[1] * 0.5, atol=1e-3
    )
    other = toy_priors.Labelled({"17": (4,)}, SIZE)
    with pytest.raises(BadFileError, match="no regions of any of the 1 images"):
        layouts.survey(path, other, other.ids)


def test_regions_without_classes_become_a_store_of_regions(tmp_path):
    source = toy_priors.Labelled({"a": (4,), "b": (7,)}, SIZE)
    (tmp_path / "in").mkdir()
    for id in source.ids:
        written(tmp_path / f"in/{id}.json", sam())
    store = import_priors(Import(), tmp_path / "in", source, tmp_path / "out", ids=source.ids)
    assert store.holds == "regions" and not store.missing(source.ids)
    np.testing.assert_array_equal(regions.get_regions(store, "b").masks, MASKS)
    with pytest.raises(BadFileError, match="read them by read_regions"):
        read_maps(tmp_path / "in/a.json")


@pytest.mark.parametrize(
    "value, message",
    [
        (5, "wanted a list of regions"),
        ([], "no size of the photograph"),
        ([{"segmentation": {"size": [6, 8], "counts": [1]}}], "runs of 1 pixels"),
        ([{"segmentation": {"size": 6, "counts": [48]}}], "no region tells the size"),
        ([{"segmentation": {"size": [10**6, 10**6], "counts": [48]}}], "a photograph of"),
        ([{"segmentation": {"size": [6, 8], "counts": [48.0]}}], "whole numbers"),
        ([{"segmentation": run(MASKS[0]), "score": "x"}], "a score that is a str"),
        ([dict(image_id=n, segmentation=run(MASKS[0])) for n in (1, 2)], "several photographs"),
        ({"masks": [], "scores": [1]}, "0 masks, 1 scores"),
    ],
)
def test_files_of_no_regions_are_one_error(tmp_path, value, message):
    with pytest.raises(BadFileError, match=rf"a\.json.*{message}"):
        regions.read_regions(written(tmp_path / "a.json", value))


def test_nested_json_without_end_is_one_error(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(BadFileError, match=r"a\.json"):
        regions.read_regions(tmp_path / "a.json")
    assert READERS["instances"].stride == 1


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([0.1, 0.1, 0.5, 0.1, 0.5, 0.5], "fractions of the photograph, wanted pixels"),
        ([90, 90, 95, 90, 95, 95], "covers no pixel of the photograph"),
    ],
)
def test_a_region_beside_the_photograph_or_in_fractions_is_refused(polygon, message):
    entry = {"category_id": 1, "segmentation": [polygon], "score": 0.9}
    with pytest.raises(BadFileError, match=message):
        regions.parsed([entry], "a.json", size=SIZE)
