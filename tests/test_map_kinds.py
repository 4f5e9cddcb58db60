"""Maps of other tools in forms that are nearly the known ones: read right, or refused in words."""

import json

import numpy as np
import pytest
import toy_priors
from PIL import Image

from wsss_jax.data.classes import VOC
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError
from wsss_jax.formats.run_lengths import runs
from wsss_jax.stages.import_maps import Import, import_priors

COW, PERSON, DOG = 9, 14, 11
SIZE = (8, 12)
IDS = {"2007_000001": (COW, PERSON), "2007_000002": (DOG, PERSON)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    for id in IDS:
        Image.new("RGB", SIZE[::-1]).save(root / f"{id}.jpg")
    labels = {id: [VOC.names[n] for n in classes] for id, classes in IDS.items()}
    table = {"classes": list(VOC.names), "image_labels": labels}
    (root / "labels.json").write_text(json.dumps(table))
    return open_dataset(root, split="all")


def maps():
    """The first class left, the second right; (2,8,12)."""
    found = np.zeros((2, *SIZE), np.float32)
    found[0, 2:6, 1:5], found[1, 2:6, 7:11] = 1, 0.5
    return found


def planes(classes, *, last=False, first=0.0):
    """All planes of VOC, background first or last."""
    found = np.full((21, *SIZE), first, np.float32)
    for n, one in zip(classes, maps(), strict=True):
        found[n + (not last)] = one
    found[-1 if last else 0] = 1 - maps().max(0)
    return found


def save(write):
    """A function that writes one file a photograph."""

    def files(folder):
        folder.mkdir()
        for id, classes in IDS.items():
            write(folder, id, classes)

    return files


def array(content, first_only=False):
    def write(folder, id, classes):
        value = content(classes) if not first_only or id.endswith("1") else {}
        toy_priors.save(folder / f"{id}.npy", value)

    return save(write)


def picture(content, name="{id}.png"):
    return save(lambda folder, id, classes: content(classes).save(folder / name.format(id=id)))


def run(tmp_path, source, files, **settings):
    files(tmp_path / "maps")
    settings = Import(stride=1, **settings)
    return import_priors(settings, tmp_path / "maps", source, tmp_path / "store", ids=source.ids)


def numbers(classes):
    found = np.zeros(SIZE, np.uint8)
    for n, one in zip(classes, maps(), strict=True):
        found[one > 0] = n + 1
    return found


def with_background(classes):
    numbers = np.array([0, *(n + 1 for n in classes)])
    return {"keys": numbers, "high_res": np.concatenate([1 - maps().max(0, keepdims=True), maps()])}


@pytest.mark.parametrize(
    "files, settings",
    [
        (array(lambda c: {str(n): one for n, one in zip(c, maps(), strict=True)}), {}),
        (array(with_background), {"first_class": 1}),
        (save(lambda folder, id, c: [Image.fromarray((one * 255).astype(np.uint8)).save(
            folder / f"{id}_{n:02d}.png") for n, one in zip(c, maps(), strict=True)]), {}),
        (picture(lambda c: Image.fromarray(numbers(c).astype(np.uint16))), {}),
        (picture(lambda c: Image.fromarray(numbers(c)).convert("RGBA")), {}),
        (picture(lambda c: Image.fromarray(numbers(c) - 1)), {"first_class": 0}),
    ],
    ids=["texts", "background", "zeros", "16 bits", "alpha", "first 0"],
)  # fmt: skip
def test_maps_are_read(tmp_path, source, files, settings):
    store = run(tmp_path, source, files, **settings)
    for id, classes in IDS.items():
        found = store.get_scores(id)
        assert sorted(found.classes.tolist()) == sorted(classes)
        for n, one in zip(classes, maps(), strict=True):
            scores = found.scores[..., found.classes.tolist().index(n)]
            np.testing.assert_array_equal(scores > 0.4, one > 0)


def test_probabilities_are_not_softened_again(tmp_path, source):
    def shares(classes):
        found = planes(classes)
        return {"msc_seg": (found / found.sum(0))[np.newaxis]}

    found = run(tmp_path, source, array(shares)).get_scores("2007_000001")
    np.testing.assert_allclose(found.scores[3, 2], [1, 0], atol=1e-3)


def test_a_bad_plane_of_logits_costs_its_class_alone(tmp_path, source):
    def logits(classes):
        found = np.log(planes(classes) + 1e-3)
        found[PERSON + 1, 0, 0] = np.nan
        return {"msc_seg": found}

    store = run(tmp_path, source, array(logits))
    assert store.get_scores("2007_000002").classes.tolist() == [DOG]
    told = json.loads((tmp_path / "store/dropped.json").read_text())
    assert set(told["2007_000001"]) == {"person"}


def test_a_damaged_picture_of_one_class_costs_it_alone(tmp_path, source):
    def write(folder, id, classes):
        for n in classes:
            Image.fromarray(np.full(SIZE, 200, np.uint8)).save(folder / f"{id}_{n}.png")
        (folder / f"{id}_{PERSON}.png").write_bytes(b"damaged")

    store = run(tmp_path, source, save(write))
    assert store.get_scores("2007_000001").classes.tolist() == [COW]


def test_an_empty_dictionary_does_not_decide_about_the_folder(tmp_path, source):
    irn = array(lambda c: {"keys": np.array(c), "high_res": maps()}, first_only=True)
    assert run(tmp_path, source, irn).ids() == ("2007_000001",)


def softened(values):
    """No plane is empty, as after a softmax."""
    return (values + 0.01) / (values + 0.01).sum(axis=0)


@pytest.mark.parametrize(
    "files, message",
    [
        (array(lambda c: planes(c, last=True)), "background seems to be the last plane"),
        (array(lambda c: softened(planes(c, last=True))), "background seems to be the last plane"),
        (array(lambda c: planes(c).astype(complex)), "type complex128"),
        (array(lambda c: {n: maps()[:1] for n in c}), r"an array of shape \(1, .*wanted a map"),
        (array(lambda c: planes(c).astype(object)), "objects, wanted numbers"),
        (array(lambda c: np.zeros(SIZE)), "save masks and saliency as PNG"),
        (array(with_background), "add --first-class 1"),
        (picture(lambda c: Image.fromarray(numbers(c)), "{id}.jpg"), "JPEG changes them"),
        (picture(lambda c: Image.fromarray(numbers(c) > 0)), "may be mask_png or saliency_png"),
    ],
)
def test_maps_that_would_be_read_wrong_are_refused(tmp_path, source, files, message):
    with pytest.raises(BadFileError, match=message):
        run(tmp_path, source, files)


def regions(**changes):
    """Detections of all photographs."""
    return [
        {"image_id": id, "category_id": n + 1, "score": 0.9,
         "segmentation": {"size": list(SIZE), "counts": runs((one > 0).T.ravel()).tolist()}}
        | {name: change(id, n) for name, change in changes.items()}
        for id, classes in IDS.items()
        for n, one in zip(classes, maps(), strict=True)
    ]  # fmt: skip


def detections(tmp_path, source, value):
    (tmp_path / "found.json").write_text(json.dumps(value))
    settings = Import(stride=1)
    ids = source.ids
    return import_priors(settings, tmp_path / "found.json", source, tmp_path / "store", ids=ids)


@pytest.mark.parametrize(
    "value",
    [
        regions(image_id=lambda id, n: int(id.replace("_", ""))),
        regions(image_id=lambda id, n: f"train/{id}.jpg"),
        [{k: v for k, v in one.items() if k != "image_id"} for one in
         regions(file_name=lambda id, n: f"{id}.jpg")],
        regions(category_id=lambda id, n: str(n + 1), score=lambda id, n: "0.9"),
        {"predictions": regions()},
        {id: [one for one in regions() if one["image_id"] == id] for id in IDS},
    ],
    ids=["numbers", "suffixes", "file names", "texts", "in a field", "by id"],
)  # fmt: skip
def test_detections_are_read(tmp_path, source, value):
    store = detections(tmp_path, source, value)
    for id, classes in IDS.items():
        assert sorted(store.get_scores(id).classes.tolist()) == sorted(classes)


@pytest.mark.parametrize(
    "value, message",
    [
        (regions(category_id=lambda id, n: n), "off by one. --first-class 0 would fit"),
        (regions(category_id=lambda id, n: f"a photo of {VOC.names[n]}"), "wanted names or numb"),
    ],
)
def test_detections_of_other_classes_are_refused(tmp_path, source, value, message):
    with pytest.raises(BadFileError, match=message):
        detections(tmp_path, source, value)


def test_a_photograph_without_detections_does_not_decide_about_the_folder(tmp_path, source):
    def write(folder, id, classes):
        found = [one for one in regions() if one["image_id"] == id and id.endswith("1")]
        (folder / f"{id}.json").write_text(json.dumps(found))

    store = run(tmp_path, source, save(write))
    assert store.get_scores("2007_000002").classes.tolist() == []
