"""Exports are read back as their own programs read them, and give the same masks and maps."""

import json
import pickletools
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import toy_exports as toy
from PIL import Image

from wsss_jax.data.coco_regions import draw
from wsss_jax.datasets.coco import open_coco
from wsss_jax.export.writers import WRITERS
from wsss_jax.formats import run_lengths
from wsss_jax.formats.pickled_arrays import read_dictionary
from wsss_jax.stages.export import Export, export
from wsss_jax.stages.import_maps import Import, import_priors

MASKS = toy.masks()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return toy.data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {
        "masks": toy.mask_store(folder / "masks"),
        "scores": toy.score_store(folder / "scores"),
        "full": toy.score_store(folder / "full", stride=1),
        "odd": toy.score_store(folder / "odd", stride=3),
        "probability": toy.score_store(folder / "probability", stride=1, kind="probability"),
    }


def without_ignore(mask):
    return np.where(mask == 255, 0, mask)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_writes_every_image_and_the_same_again(name, source, stores, tmp_path):
    holds = "probability" if WRITERS[name].holds == "scores" else "masks"
    tally = export(stores[holds], source, tmp_path / name, Export(name))
    assert tally.done == 3 and not tally.skipped
    made = {p: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
    assert len(made) >= 2
    assert export(stores[holds], source, tmp_path / name, Export(name)).done == 3
    for path, content in made.items():
        if path.suffix != ".npz":  # an archive knows its time
            assert path.read_bytes() == content, path
    other = Export("png-grey" if name == "png" else "png")
    with pytest.raises(ValueError, match="holds another export"):
        export(stores["masks"], source, tmp_path / name, other)


def test_png_are_values_in_a_palette_or_in_grey(source, stores, tmp_path):
    for name, mode in (("png", "P"), ("png-grey", "L")):
        export(stores["masks"], source, tmp_path / name, Export(name))
        for id, mask in MASKS.items():
            with Image.open(tmp_path / name / f"{id}.png") as picture:
                assert picture.mode == mode
                np.testing.assert_array_equal(np.asarray(picture), mask)


def test_score_maps_become_masks_at_a_threshold(source, stores, tmp_path):
    export(stores["full"], source, tmp_path, Export("png", threshold=0.5))
    maps = stores["full"].get_scores("two")
    with Image.open(tmp_path / "two.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture) == 2, maps.scores[..., 0] > 0.5)


def test_coco_gives_back_the_masks_and_objects_are_no_crowds(source, stores, tmp_path):
    export(stores["masks"], source, tmp_path, Export("coco"))
    shutil.copytree(source.root / "images", tmp_path / "images")
    back = open_coco(tmp_path, "default")
    assert back.classes.names == toy.CLASSES and set(back.ids) == set(MASKS)
    for id, mask in MASKS.items():
        np.testing.assert_array_equal(back.mask(id), without_ignore(mask))
        assert back.image(id).shape[:2] == mask.shape
    content = json.loads((tmp_path / "annotations/instances_default.json").read_text())
    things = content["annotations"]
    assert [thing["id"] for thing in things] == list(range(1, len(things) + 1))
    assert all(thing["iscrowd"] == 0 for thing in things)
    assert sum(thing["area"] for thing in things) == sum(
        (without_ignore(mask) > 0).sum() for mask in MASKS.values()
    )
    number = next(i["id"] for i in content["images"] if i["file_name"] == "two.png")
    boxes = sorted(thing["bbox"] for thing in things if thing["image_id"] == number)
    assert boxes == [[0, 0, 1, 1], [0, 5, 17, 25]]


def test_small_regions_are_counted_and_a_class_may_be_one_object(source, stores, tmp_path, capsys):
    export(stores["masks"], source, tmp_path / "a", Export("coco", objects="class"))
    export(stores["masks"], source, tmp_path / "b", Export("coco", smallest=20))
    path = "annotations/instances_default.json"
    whole, large = (json.loads((tmp_path / part / path).read_text()) for part in "ab")
    assert len(whole["annotations"]) == 3
    assert all(thing["area"] >= 20 for thing in large["annotations"])
    assert "regions below 20 pixels are no objects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("region", "counts"),
    [  # as pycocotools.mask.encode gives them
        (np.array([[0, 1], [1, 1]], bool), "13"),
        (np.zeros((3, 4), bool), "<"),
        (np.ones((100, 100), bool), "0`h9"),
        (np.arange(300).reshape(20, 15) % 7 < 3, None),
    ],
)
def test_compressed_counts_are_those_of_coco(region, counts):
    found = run_lengths.coco_counts(region, at=(0, 0), size=region.shape)
    if counts is not None:
        assert found == counts
    whole = np.zeros((region.shape[0] + 5, region.shape[1] + 3), bool)
    whole[2:-3, 1:-2] = region
    assert run_lengths.coco_counts(region, at=(2, 1), size=whole.shape) == (
        run_lengths.coco_counts(whole, at=(0, 0), size=whole.shape)
    )


def test_yolo_polygons_fill_back_to_the_masks(source, stores, tmp_path):
    export(stores["masks"], source, tmp_path, Export("yolo"))
    names = (tmp_path / "data.yaml").read_text()
    assert '  1: "große Katze"\n  2: "a \\"b\\" & <c>"\n' in names
    assert (tmp_path / "images/one.JPG").read_bytes() == source.encoded("one")
    for id, mask in MASKS.items():
        found = np.zeros_like(mask)
        for line in (tmp_path / f"labels/{id}.txt").read_text().splitlines():
            label, *shares = line.split()
            corners = np.array(shares, np.float64).reshape(-1, 2)
            assert corners.min() >= 0 and corners.max() <= 1 and len(corners) >= 4
            pixels = draw([(corners * mask.shape[::-1]).ravel()], mask.shape)
            found[pixels] = int(label) + 1
        np.testing.assert_array_equal(found, without_ignore(mask))


def brush_pixels(content, size):
    """What Label Studio's reader does, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in content)
    place = 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, width = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    start = 0
    while start < total:
        run = read(1)
        stop = start + 1 + read(lengths[read(2)])
        values[start:stop] = read(width) if run else [read(width) for _ in range(stop - start)]
        start = stop
    return values.reshape(*size, 4)


def test_label_studio_reads_the_brush_masks(source, stores, tmp_path):
    export(stores["masks"], source, tmp_path, Export("label-studio"))
    view = ElementTree.fromstring((tmp_path / "label_config.xml").read_text())
    assert [label.get("value") for label in view.iter("Label")] == list(toy.CLASSES)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    names = {brush.get("name") for brush in view.iter("BrushLabels")}
    for task in tasks:
        mask = MASKS[task["data"]["id"]]
        found = np.zeros_like(mask)
        for result in task["predictions"][0]["result"]:
            assert result["from_name"] in names
            assert (result["original_height"], result["original_width"]) == mask.shape
            pixels = brush_pixels(result["value"]["rle"], mask.shape)
            assert set(np.unique(pixels)) <= {0, 255}
            (name,) = result["value"]["brushlabels"]
            found[pixels[..., 3] == 255] = toy.CLASSES.index(name) + 1
        np.testing.assert_array_equal(found, without_ignore(mask))
    assert {task["data"]["image"] for task in tasks} == {
        f"/data/local-files/?d={name}" for name in ("one.JPG", "two.png", "none.png")
    }


def test_long_runs_of_a_brush_are_cut(tmp_path):
    region = np.ones((200, 400), bool)
    region[0, 0] = False
    pixels = brush_pixels(run_lengths.brush_bytes(region), region.shape)
    np.testing.assert_array_equal(pixels[..., 3] == 255, region)


def test_brush_bytes_of_other_writers_are_read():
    """Label Studio also writes values one by one: a 0, the choice of length, length - 1, values."""
    head = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    bits = head + "0" + "00" + "111" + "00000000" * 4 + "11111111" * 4
    bits += "0" * (-len(bits) % 8)
    content = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    np.testing.assert_array_equal(run_lengths.brush_region(content, (1, 2)), [[False, True]])
    region = np.random.default_rng(0).random((9, 70)) < 0.3
    packed = run_lengths.brush_bytes(region)
    np.testing.assert_array_equal(run_lengths.brush_region(packed, region.shape), region)


def test_cvat_reads_masks_along_the_rows_of_their_boxes(source, stores, tmp_path):
    export(stores["masks"], source, tmp_path, Export("cvat"))
    tree = ElementTree.parse(tmp_path / "annotations.xml")
    images = {image.get("name"): image for image in tree.iter("image")}
    assert [image.get("id") for image in tree.iter("image")] == ["0", "1", "2"]
    assert list(images) == sorted(images)
    raw = json.loads((tmp_path / "labels.json").read_text())
    assert [label["name"] for label in raw] == [*toy.CLASSES, "approved"]
    assert [label.get("type") for label in raw] == [None, None, None, "tag"]
    for id, mask in MASKS.items():
        image = next(part for name, part in images.items() if name.startswith(id))
        assert (int(image.get("height")), int(image.get("width"))) == mask.shape
        found = np.zeros_like(mask)
        for part in image.iter("mask"):
            left, top, width, height = (
                int(part.get(name)) for name in ("left", "top", "width", "height")
            )
            counts = [int(count) for count in part.get("rle").split(",")]
            inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
            value = toy.CLASSES.index(part.get("label")) + 1
            found[top : top + height, left : left + width][inside] = value
        np.testing.assert_array_equal(found, without_ignore(mask))


@pytest.mark.parametrize(
    ("name", "store", "settings"),
    [
        ("irn", "scores", Import()),
        ("irn", "full", Import()),
        ("irn", "odd", Import()),
        ("irn", "probability", Import()),
        ("npz", "scores", Import()),
        ("npz", "probability", Import()),
        ("irn", "scores", Import(stride=4, field="cam")),
        ("psa", "full", Import("psa_cam", stride=1)),
        ("psa-crf", "probability", Import("psa_crf", stride=1)),
    ],
)
def test_score_maps_come_back_bit_for_bit(name, store, settings, source, stores, tmp_path):
    export(stores[store], source, tmp_path / "out", Export(name))
    back = import_priors(settings, tmp_path / "out", source, tmp_path / "back", ids=source.ids)
    for id in source.ids:
        was, now = stores[store].get_scores(id), back.get_scores(id)
        assert now.kind == was.kind and now.size == was.size
        np.testing.assert_array_equal(now.classes, was.classes)
        np.testing.assert_array_equal(now.scores, was.scores)
        if settings == Import():
            np.testing.assert_array_equal(now.peak, was.peak)


def test_maps_that_were_changed_after_the_export_are_read_as_they_are(source, stores, tmp_path):
    export(stores["full"], source, tmp_path / "out", Export("npz"))
    with np.load(tmp_path / "out/one.npz") as archive:
        content = dict(archive)
    content["high_res"] = content["high_res"] / 2
    np.savez(tmp_path / "out/one.npz", **content)
    back = import_priors(
        Import(stride=1), tmp_path / "out", source, tmp_path / "back", ids=source.ids
    )
    was, now = stores["full"].get_scores("one"), back.get_scores("one")
    np.testing.assert_allclose(now.scores, was.scores / 2, atol=1e-3)


def test_irn_files_hold_what_its_stages_read_and_name_nothing_else(source, stores, tmp_path):
    export(stores["scores"], source, tmp_path / "irn", Export("irn"))
    export(stores["scores"], source, tmp_path / "npz", Export("npz"))
    content = read_dictionary(tmp_path / "irn/one.npy")
    assert {name: part.shape for name, part in content.items()} == {
        "keys": (2,),
        "cam": (2, 6, 9),
        "high_res": (2, 21, 34),
        "peak": (2,),
        "activation": (2, 6, 9),
    }
    np.testing.assert_array_equal(content["keys"], [0, 2])
    assert read_dictionary(tmp_path / "irn/none.npy")["high_res"].shape == (0, 16, 16)
    with np.load(tmp_path / "npz/one.npz") as archive:
        for name, part in content.items():
            np.testing.assert_array_equal(archive[name], part)
    pickled = (tmp_path / "irn/one.npy").read_bytes()[128:]
    named = {argument for step, argument, _ in pickletools.genops(pickled) if step.name == "GLOBAL"}
    assert named == {
        "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype",
        "torch._utils _rebuild_tensor_v2", "torch.storage _load_from_bytes",
        "collections OrderedDict",
    }  # fmt: skip


def test_an_overlay_shows_the_photograph_and_a_legend(source, stores, tmp_path):
    export(stores["masks"], source, tmp_path, Export("overlay"))
    with Image.open(tmp_path / "none.jpg") as picture:
        assert picture.height == 16
    with Image.open(tmp_path / "two.jpg") as picture:
        assert picture.width >= 160 and picture.height > 30 + 12


def test_what_cannot_be_exported_is_refused_with_what_can(source, stores, tmp_path):
    with pytest.raises(ValueError, match=r"holds masks; irn wants score maps.*png, png-grey"):
        export(stores["masks"], source, tmp_path / "a", Export("irn"))
    with pytest.raises(ValueError, match="unknown export format 'coca'; did you mean 'coco'"):
        Export("coca")
    with pytest.raises(ValueError, match="activation scores, which leave no share for background"):
        export(stores["scores"], source, tmp_path / "b", Export("psa-crf"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"c holds mine\.txt; choose an empty folder"):
        export(stores["masks"], source, tmp_path / "c", Export("png"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_mask_of_another_photograph_is_left_out_and_listed(source, stores, tmp_path):
    other = toy.mask_store(tmp_path / "masks")
    other.put_mask("two", np.zeros((17, 30), np.uint8))
    tally = export(other, source, tmp_path / "out", Export("png"))
    assert tally.done == 2 and "for a photograph of (17, 30), this has (30, 17)" in str(
        tally.skipped["two"]
    )
    assert "two" in json.loads((tmp_path / "out/skipped.json").read_text())
