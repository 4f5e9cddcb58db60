"""Corrected masks are found by name, read in every form that programs give, and checked."""

import json
import shutil

import numpy as np
import pytest
import toy_exports as toy
from PIL import Image

from wsss_jax.data.classes import palette
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.export.corrected import read_corrected, with_corrected
from wsss_jax.export.exported import photograph_names
from wsss_jax.stages.export import Export, export

MASKS = toy.masks()


@pytest.fixture
def source(tmp_path):
    return toy.data_set(tmp_path / "data")


def test_names_are_those_of_the_files(source):
    names = photograph_names(source, source.ids)
    assert {id: str(name) for id, name in names.items()} == {
        "none": "none.png",
        "one": "one.JPG",
        "two": "two.png",
    }


def test_an_export_comes_back_as_the_truth_of_its_photographs(source, tmp_path):
    export(toy.mask_store(tmp_path / "store"), source, tmp_path / "out", Export("png"))
    with pytest.raises(UserError, match="copy those that were into a folder of their own"):
        read_corrected(tmp_path / "out", source)
    (tmp_path / "out/export.json").unlink()
    (tmp_path / "out/none.png").unlink()
    found = read_corrected(tmp_path / "out", source)
    assert list(found.files) == ["one", "two"]
    view = with_corrected(source, found)
    for id in found.files:
        np.testing.assert_array_equal(view.mask(id), MASKS[id])
        np.testing.assert_array_equal(view.labels(id), source.labels(id))
    assert view.mask("none") is None


def saved(folder, name, picture):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def sorted_palette(mask):
    """A palette that a painting program sorted anew: the numbers change, the colours do not."""
    colours = palette()[mask]
    return Image.fromarray(colours).quantize(8, dither=Image.Dither.NONE)


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("one.png", Image.fromarray(MASKS["one"])),
        ("one.JPG.png", Image.fromarray(palette()[MASKS["one"]])),
        ("SegmentationClass/one.png", sorted_palette(MASKS["one"])),
    ],
)
def test_grey_colours_and_sorted_palettes_are_read(name, picture, source, tmp_path):
    saved(tmp_path / "back", name, picture)
    saved(tmp_path / "back", "SegmentationObject/one.png", Image.new("RGB", (34, 21), (1, 2, 3)))
    view = with_corrected(source, read_corrected(tmp_path / "back", source))
    np.testing.assert_array_equal(view.mask("one"), MASKS["one"])


def test_a_labelmap_tells_the_colours(source, tmp_path):
    table = np.array([[0, 0, 0], [9, 9, 9], [200, 1, 1], [5, 6, 7]], np.uint8)
    folder = tmp_path / "back"
    saved(folder, "two.png", Image.fromarray(table[MASKS["two"]]))
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "große Katze:200,1,1::"]
    (folder / "labelmap.txt").write_text("\n".join(lines))
    view = with_corrected(source, read_corrected(folder, source))
    np.testing.assert_array_equal(view.mask("two"), MASKS["two"])
    (folder / "labelmap.txt").write_text("grosse Katze:200,1,1::")
    with pytest.raises(BadFileError, match=r"labelmap\.txt: line .*unknown class 'grosse Katze'"):
        read_corrected(folder, source)


two = MASKS["two"]


@pytest.mark.parametrize(
    ("name", "picture", "message"),
    [
        ("two.png", Image.fromarray(two.T.copy()), r"another size \(1\): two\.png 30×17, .*17×30"),
        ("three.png", Image.fromarray(two), r"of no photograph, or of several \(1\): three\.png"),
        ("two.jpg", Image.fromarray(two), r"no PNG \(1\): two\.jpg other formats change"),
        ("two.png", Image.fromarray(two * 2), r"values of no class \(1\): two\.png \[4\], wan"),
        ("two.png", Image.fromarray(two // 2), "shows dog; add that to the labels, or take"),
        ("two.png", Image.fromarray(two * 0), "none of its labels .*is all background, wanted gro"),
        ("two.png", Image.fromarray((two > 0) * np.uint8(255)), r"holds only 0 and 255 \(not dec"),
        ("two.png", Image.new("RGB", (17, 30), (1, 2, 3)), r"1 colours of no class, such as \(1"),
        ("two.png", None, "not readable .*not a picture"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(name, picture, message, source, tmp_path):
    folder = tmp_path / "back"
    folder.mkdir()
    if picture is None:
        (folder / name).write_bytes(b"no picture")
    else:
        saved(folder, name, picture)
    with pytest.raises(UserError, match=message) as raised:
        read_corrected(folder, source)
    assert "1 of 1 corrected masks cannot be used" in str(raised.value)


@pytest.fixture
def tasks(source, tmp_path):
    """An export for Label Studio as it comes back: one.JPG painted, two.png still a prediction."""
    export(toy.mask_store(tmp_path / "store"), source, tmp_path / "ls", Export("label-studio"))
    made = json.loads((tmp_path / "ls/tasks.json").read_text())
    for task in made:
        result = task["predictions"][0]["result"]
        old = {"result": [], "updated_at": "2026-01-01"}
        painted = {"result": result, "updated_at": "2026-02-01", "was_cancelled": False}
        cancelled = {"result": [], "updated_at": "2026-03-01", "was_cancelled": True}
        task["annotations"] = [painted, old, cancelled] if task["data"]["id"] == "one" else []
    return made


def written(folder, tasks):
    folder.mkdir()
    (folder / "project.json").write_text(json.dumps(tasks))
    return folder


def test_what_was_painted_in_label_studio_comes_back(source, tasks, tmp_path):
    found = read_corrected(written(tmp_path / "back", tasks), source)
    assert list(found.files) == ["one"]
    mask = with_corrected(source, found).mask("one")
    np.testing.assert_array_equal(mask, np.where(MASKS["one"] == 255, 0, MASKS["one"]))
    for task in tasks:
        del task["data"]["id"]  # a project that was not made from our tasks
    assert list(read_corrected(written(tmp_path / "other", tasks), source).files) == ["one"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(rle=value["rle"][:-40]), "brush bytes that are cut off"),
        (lambda value: value.update(rle=[255] * 60), "4294967295 values of 32 bits, wanted 4 of"),
        (lambda value: value.update(brushlabels=["cow"]), "one shows unknown class 'cow'"),
        (lambda value: value.pop("rle"), r"task \d cannot be read \(KeyError\('rle'\)\)"),
    ],
)
def test_damaged_tasks_are_errors_that_name_the_photograph(
    change, message, source, tasks, tmp_path
):
    task = next(task for task in tasks if task["annotations"])
    change(task["annotations"][0]["result"][0]["value"])
    with pytest.raises(UserError, match=message):
        read_corrected(written(tmp_path / "back", tasks), source)


def test_many_problems_of_one_kind_are_one_line(source, tmp_path):
    for number in range(9):
        saved(tmp_path / "back", f"x{number}.png", Image.fromarray(two))
    saved(tmp_path / "back", "a/two.png", Image.fromarray(two))
    saved(tmp_path / "back", "b/two.png", Image.fromarray(two))
    with pytest.raises(UserError) as raised:
        read_corrected(tmp_path / "back", source)
    first, *lines = str(raised.value).split("\n")
    assert first.endswith("10 of 11 corrected masks cannot be used") and len(lines) == 2
    assert lines[0].startswith("  twice (1): b/two.png is of two")
    assert "(9): x0.png" in lines[1] and lines[1].endswith("…")


def test_no_folder_and_no_mask_are_errors(source, tmp_path):
    with pytest.raises(MissingFileError, match="no such folder of corrected masks"):
        read_corrected(tmp_path / "none", source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no mask in it; wanted a PNG called like"):
        read_corrected(tmp_path / "empty", source)


def test_one_coco_file_or_xml_of_cvat_gives_back_the_masks_that_were_changed(source, tmp_path):
    masks = toy.mask_store(tmp_path / "masks")
    for name in ("coco", "cvat"):
        export(masks, source, tmp_path / name, Export(name))
        back = tmp_path / f"{name}_back"
        back.mkdir()
        file = next((tmp_path / name).rglob("*annotations.xml" if name == "cvat" else "inst*.json"))
        shutil.copy(file, back / file.name)
        whole = read_corrected(back, source)
        for id in whole.files:
            expected = masks.get_mask(id)
            np.testing.assert_array_equal(whole.mask(id), np.where(expected == 255, 0, expected))
        with pytest.raises(UserError, match=r"all of its .* masks are as they were exported"):
            read_corrected(back, source, masks)
        other = masks.get_mask("one").copy()
        other[:5] = other.max()
        changed = toy.mask_store(tmp_path / f"{name}_changed")
        changed.put_mask("one", other)
        found = read_corrected(back, source, changed)
        assert list(found.files) == ["one"] and found.untouched == len(whole.files) - 1


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ('<box label="dog" xtl="1" ytl="1" xbr="2" ybr="2"/>', "a box of dog, wanted masks"),
        ('<mask label="dog" rle="4" left="90" top="0" width="2" height="2"/>', "not within"),
        ('<mask label="dog" rle="3" left="0" top="0" width="2" height="2"/>', "3 pixels in a box"),
        ('<mask label="emu" rle="4" left="0" top="0" width="2" height="2"/>', "emu"),
    ],
)
def test_shapes_of_cvat_that_are_no_masks_are_named(inner, message, source, tmp_path):
    name = source.path("one").name
    height, width = source.size("one")
    back = tmp_path / "back"
    back.mkdir()
    (back / "annotations.xml").write_text(
        f'<annotations><image name="{name}" width="{width}" height="{height}">{inner}</image>'
        "</annotations>"
    )
    with pytest.raises(UserError, match=message):
        read_corrected(back, source)
