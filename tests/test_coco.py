"""COCO: polygons and run lengths by hand and against slow obvious versions."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data import coco_regions
from wsss_jax.datasets import table as datasets
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.types import IGNORE

SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]


def instances(root: Path, annotations: list | None, split: str = "val2017", **changes) -> Path:
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    Image.new("RGB", (6, 5), 90).save(root / split / "000000000009.jpg")
    content = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 5, "width": 6}],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "annotations": annotations,
    } | changes
    if annotations is None:
        del content["annotations"]
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def filled(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return coco_regions.draw([corners.ravel().tolist()], size)


def thing(category: int, region, *, area: float = 1.0, crowd: int = 0) -> dict:
    return {"id": 1, "image_id": 9, "category_id": category, "segmentation": region,
            "area": area, "iscrowd": crowd}  # fmt: skip


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, the first of zeros: the slow obvious way."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def compress(counts: list[int]) -> str:
    """The writer of COCO's compressed run lengths, after its published C code."""
    text = ""
    for place, count in enumerate(counts):
        x = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits = x & 0x1F
            x >>= 5
            more = x != -1 if bits & 0x10 else x != 0
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


def test_a_square_covers_the_pixels_whose_centres_it_holds():
    wanted = np.zeros((5, 6), bool)
    wanted[1:3, 1:4] = True
    corners = np.array(SQUARE, np.float64).reshape(-1, 2)
    assert (filled(corners, (5, 6)) == wanted).all()
    assert (filled(corners + 0.4, (5, 6)) == wanted).all()
    assert (filled(corners[::-1], (5, 6)) == wanted).all()


def test_polygons_agree_with_testing_every_pixel_away_from_their_outline():
    random = np.random.default_rng(0)
    size = (17, 23)
    for _ in range(20):
        corners = random.uniform(-5, 28, (random.integers(3, 9), 2))
        slow, near = np.zeros(size, bool), np.zeros(size, bool)
        for row, column in np.ndindex(size):
            x, y = column + 0.5, row + 0.5
            for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                if (a[1] > y) != (b[1] > y) and a[0] + (y - a[1]) / (b - a)[1] * (b - a)[0] < x:
                    slow[row, column] ^= True
                along = np.clip(((x, y) - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
                near[row, column] |= np.hypot(*(a + along * (b - a) - (x, y))) < 0.4
        assert (filled(corners, size) == slow)[~near].all() and near.mean() < 0.6


@pytest.mark.parametrize(
    ("polygon", "reference"),
    (([2.3, 1.1, 9.7, 3.2, 8.4, 10.6, 4.0, 8.8], "g01:4M2M0010O000KS1"),
     ([-3.0, 4.5, 7.25, -2.0, 14.5, 9.5, 6.1, 3.3, 1.0, 12.75], "2920O01N1O2O1O10011O001N10I"),
     ([1, 1, 11, 9, 11, 1, 1, 9], "<84N2N2Ng00YO2N2N2d0")),
)  # fmt: skip
def test_polygons_equal_the_reference_code_bit_for_bit(polygon, reference):
    # The strings are what pycocotools 2.0 makes of the polygons on 11×13 pixels.
    region = {"size": [11, 13], "counts": reference}
    assert (coco_regions.draw([polygon], (11, 13)) == coco_regions.draw(region, (11, 13))).all()


def test_both_forms_of_run_lengths_come_back():
    random = np.random.default_rng(1)
    for density in (0.0, 0.1, 0.5, 0.99, 1.0):
        mask = random.random((40, 70)) < density
        counts = runs(mask)
        assert coco_regions.run_lengths(compress(counts)).tolist() == counts
        for form in (counts, compress(counts)):
            region = {"size": [40, 70], "counts": form}
            assert (coco_regions.draw(region, (40, 70)) == mask).all()


def test_compressed_runs_by_hand():
    # 6 -> '6'; 1 -> '1'; 40 = 8 + 1*32 -> 'X' (8 | 32) then '1'; the fourth is 3 - 1 = 2 -> '2'.
    assert coco_regions.run_lengths("61X12").tolist() == [6, 1, 40, 3]
    # A negative difference: 1 - 6 = -5 is 27 in five bits with the sign bit set.
    assert coco_regions.run_lengths("060K").tolist() == [0, 6, 0, 1]


@pytest.mark.parametrize(
    "region",
    ([[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[float("nan")] * 6], [[1e30] * 6], [["a"] * 6],
     [[0, 0, 9e6, 0, 9e6, 9e6]],
     {"size": [5, 6], "counts": [31]}, {"size": [6, 5], "counts": [30]}, {"size": [5, 6]},
     {"size": [5, 6], "counts": [-1, 31]}, {"size": [5, 6], "counts": "\u00e9"},
     {"size": [5, 6], "counts": "X"}, {"size": [5, 6], "counts": "oooooooooo0"}, "text", 7,
     {"size": 5, "counts": [30]}),
)  # fmt: skip
def test_damaged_regions_are_errors_of_their_image(tmp_path, region):
    root = instances(tmp_path, [thing(1, region)])
    source = datasets.open_dataset(root, split="val2017")
    with pytest.raises(BadFileError, match="000000000009"):
        source.mask("000000000009")


def test_masks_lie_small_over_large_and_crowds_below(tmp_path):
    whole = [[0, 0, 6, 0, 6, 5, 0, 5]]
    crowd = np.zeros((5, 6), bool)
    crowd[:, 5] = crowd[1, 1] = True
    root = instances(
        tmp_path,
        [
            thing(1, [SQUARE], area=6),
            thing(3, [[0, 0, 5, 0, 5, 3, 0, 3]], area=15),
            thing(3, {"size": [5, 6], "counts": runs(crowd)}, area=30, crowd=1),
        ],
    )
    source = datasets.open_dataset(root, split="val")
    assert source.classes.names == ("person", "car") and source.ids == ("000000000009",)
    assert source.labels("000000000009").tolist() == [True, True]
    wanted = np.array([[2, 2, 2, 2, 2, IGNORE], [2, 1, 1, 1, 2, IGNORE], [2, 1, 1, 1, 2, IGNORE],
                       [0, 0, 0, 0, 0, IGNORE], [0, 0, 0, 0, 0, IGNORE]])  # fmt: skip
    assert (source.mask("000000000009") == wanted).all()
    assert source.size("000000000009") == (5, 6) and source.image("000000000009").shape == (5, 6, 3)
    other = instances(tmp_path / "b", [thing(3, whole, area=30), thing(1, [SQUARE], area=6)])
    mask = datasets.open_dataset(other, split="val").mask("000000000009")
    assert (mask == 1).sum() == 6 and (mask == 2).sum() == 24


def test_polygons_of_one_object_are_joined(tmp_path):
    region = [[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]]
    assert coco_regions.draw(region, (5, 6)).sum() == 7


def test_test_sets_have_neither_masks_nor_labels(tmp_path):
    source = datasets.open_dataset(instances(tmp_path, None), split="val")
    assert source.mask("000000000009") is None
    with pytest.raises(MissingFileError):
        source.labels("000000000009")


@pytest.mark.parametrize(
    "changes",
    ({"images": [{"id": 9}]}, {"images": []}, {"categories": 3}, {"annotations": [{}]},
     {"images": [{"id": n, "file_name": "a/x.jpg", "height": 1, "width": 1} for n in (1, 2)]},
     {"images": [{"id": 1, "file_name": f"{n}.jpg", "height": 1, "width": 1} for n in "ab"]},
     {"images": [{"id": 1, "file_name": "b.jpg", "height": 1, "width": 1}]},
     {"annotations": [thing(7, [SQUARE])]}),
)  # fmt: skip
def test_damaged_files_are_refused_by_name(tmp_path, changes):
    root = instances(tmp_path, **{"annotations": [thing(1, [SQUARE])]} | changes)
    with pytest.raises(BadFileError, match=r"instances_val2017\.json"):
        datasets.open_dataset(root, split="val")


@pytest.mark.parametrize("name", ("../../secret.jpg", "/etc/secret.jpg"))
def test_file_names_do_not_leave_the_folder(tmp_path, name):
    images = [{"id": 9, "file_name": name, "height": 5, "width": 6}]
    root = instances(tmp_path, [], images=images)
    with pytest.raises(BadFileError, match="leaves"):
        datasets.open_dataset(root, split="val").image("secret")


def test_claimed_sizes_are_capped(tmp_path):
    images = [{"id": 9, "file_name": "a.jpg", "height": 10**6, "width": 10**6}]
    root = instances(tmp_path, [], images=images)
    with pytest.raises(BadFileError, match="pixels"):
        datasets.open_dataset(root, split="val").mask("a")


def test_splits_are_named_after_their_files(tmp_path):
    instances(tmp_path, [], split="train2017")
    instances(tmp_path, [])
    assert datasets.splits(tmp_path) == ("train2017", "val2017")
    with pytest.raises(BadFileError, match="train2017, val2017"):
        datasets.open_dataset(tmp_path, split="test")


def test_boxes_are_all_that_labels_need(tmp_path):
    boxes = [{k: v for k, v in thing(3, []).items() if k != "segmentation"}]
    source = datasets.open_dataset(instances(tmp_path, boxes), split="val")
    assert source.labels("000000000009").tolist() == [False, True]
    assert source.mask("000000000009") is None
    for empty in ([], None, [[]]):
        source = datasets.open_dataset(instances(tmp_path, [thing(3, empty)]), split="val")
        assert source.mask("000000000009") is None
    both = [thing(3, []), thing(1, [SQUARE])]
    source = datasets.open_dataset(instances(tmp_path, both), split="val")
    assert source.mask("000000000009") is None


def test_areas_are_counted_where_the_file_tells_none(tmp_path):
    large = [[0, 0, 6, 0, 6, 5, 0, 5]]
    for area in (None, 0, "many", float("nan")):
        things = [thing(1, [SQUARE]) | {"area": area}, thing(3, large) | {"area": area}]
        source = datasets.open_dataset(instances(tmp_path, things), split="val")
        assert (source.mask("000000000009") == 1).sum() == 6


def test_flat_polygons_and_missing_sizes_are_read(tmp_path):
    images = [{"id": 9, "file_name": "000000000009.jpg"}]
    root = instances(tmp_path, [thing(1, SQUARE)], images=images)
    mask = datasets.open_dataset(root, split="val").mask("000000000009")
    assert mask.shape == (5, 6) and (mask == 1).sum() == 6


def test_one_name_in_two_folders_is_two_photographs(tmp_path):
    size = {"height": 5, "width": 6}
    images = [{"id": n, "file_name": f"{f}/x.jpg"} | size for n, f in enumerate("ab", 1)]
    things = [thing(1, [SQUARE]) | {"image_id": 2}]
    source = datasets.open_dataset(instances(tmp_path, things, images=images), split="val")
    assert source.ids == ("a/x", "b/x") and source.labels("b/x").any()
    assert not source.labels("a/x").any() and not source.mask("a/x").any()


def test_exports_of_roboflow_are_read(tmp_path):
    categories = [{"id": 0, "name": "pets", "supercategory": "none"},
                  {"id": 1, "name": "pets", "supercategory": "pets"},
                  {"id": 5, "name": "dog", "supercategory": "pets"}]  # fmt: skip
    for split, category in (("train", 1), ("valid", 5)):
        (tmp_path / split).mkdir()
        Image.new("RGB", (6, 5)).save(tmp_path / split / "x.jpg")
        content = {"images": [{"id": 0, "file_name": "x.jpg", "height": 5, "width": 6}],
                   "categories": categories,
                   "annotations": [thing(category, [SQUARE]) | {"image_id": 0}]}  # fmt: skip
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    assert datasets.splits(tmp_path) == ("train", "valid")
    source = datasets.open_dataset(tmp_path, split="val")
    assert source.classes.names == ("pets", "dog") and source.labels("x").tolist() == [False, True]
    source = datasets.open_dataset(tmp_path, split="all")
    assert source.ids == ("train/x", "valid/x") and source.image("valid/x").shape == (5, 6, 3)


@pytest.mark.parametrize("name", ["result.json", "_annotations.coco.json"])
def test_one_file_of_annotations_is_read(tmp_path, name):
    root = instances(tmp_path, [thing(3, [SQUARE])])
    (root / "val2017").rename(root / "images")
    (root / "annotations/instances_val2017.json").rename(root / name)
    source = datasets.open_dataset(root, split="all")
    assert datasets.splits(root) == ("train",)
    assert source.labels("000000000009").tolist() == [False, True]
    (root / name).write_text("{}")
    (root / "labels.csv").write_text("000000000009,cat\n")
    os.utime(root / name, (1, 1))
    assert datasets.layout_of(root) == "folder"


def test_many_polygons_take_seconds():
    random = np.random.default_rng(0)
    centres = random.uniform(0, 600, (20_000, 1, 2))
    polygons = (centres + random.uniform(-6, 6, (20_000, 5, 2))).reshape(20_000, 10).tolist()
    whole = coco_regions.draw(polygons, (640, 640))
    few = np.any([coco_regions.draw([p], (640, 640)) for p in polygons[:30]], axis=0)
    assert (coco_regions.draw(polygons[:30], (640, 640)) == few).all() and whole.mean() > 0.5


@pytest.mark.parametrize(
    "change",
    ({"height": float("inf")}, {"height": [5]}, {"width": "x"}, {"file_name": None, "id": [1]}),
)
def test_hostile_values_are_one_error_of_the_file(tmp_path, change):
    images = [{"id": 9, "file_name": "a.jpg", "height": 5, "width": 6} | change]
    with pytest.raises(BadFileError, match=r"instances_val2017\.json"):
        datasets.open_dataset(instances(tmp_path, [], images=images), split="val")
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text("[" * 100_000)
    with pytest.raises(BadFileError, match=r"instances_val2017\.json"):
        datasets.open_dataset(tmp_path, split="val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": {}}, "annotations is {}, wanted a list of objects"),
        ({"annotations": {"1": {}}}, "annotations is .* wanted a list"),
        ({"images": {"9": {}}}, "images is .* wanted a list"),
        ({"categories": None}, "categories is None, wanted a list"),
        ({"images": [{"id": 9, "file_name": None}]}, "image 9 has the file name None"),
    ],
)
def test_a_file_of_another_form_is_told_in_words(tmp_path, changes, message):
    with pytest.raises(BadFileError, match=message):
        datasets.open_dataset(instances(tmp_path, **{"annotations": []} | changes), split="all")
