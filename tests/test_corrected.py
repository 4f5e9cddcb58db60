"""Corrected masks are found by name, read in every form that programs give, and checked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import toy_exports as toy
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.classes import palette
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.export.corrected import describe, read_corrected, with_corrected
from wsss_jax.export.exported import photograph_names
from wsss_jax.export.stated import beyond_outlines, masks_of_run
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
        ("one.png", Image.fromarray(MASKS["one"].astype(np.uint16))),
        ("one.png", Image.fromarray(MASKS["one"]).convert("LA")),
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
    (folder / "labelmap.txt").write_text("\n".join(lines), encoding="utf-16")
    view = with_corrected(source, read_corrected(folder, source))
    np.testing.assert_array_equal(view.mask("two"), MASKS["two"])
    (folder / "labelmap.txt").write_text("grosse Katze:200,1,1::")
    with pytest.raises(BadFileError, match=r"labelmap\.txt: line .*unknown class 'grosse Katze'"):
        read_corrected(folder, source)
    (folder / "labelmap.txt").write_text("große Katze:900,1,1::")
    with pytest.raises(BadFileError, match="three numbers from 0 to 255"):
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


@pytest.fixture
def made(tmp_path):
    """Masks that a run has made, without pixels that are not decided, which no program has."""
    return toy.decided_store(tmp_path / "run/pseudo_masks")


def exported(store, source, folder, name):
    """What comes back from a program: the one file of its export, in a folder of its own."""
    export(store, source, folder / name, Export(name))
    back = folder / f"{name}_back"
    back.mkdir()
    file = next((folder / name).rglob("*annotations.xml" if name == "cvat" else "inst*.json"))
    return Path(shutil.copy(file, back))


@pytest.mark.parametrize("name", ["coco", "cvat"])
def test_of_a_file_with_all_photographs_those_count_that_a_person_changed(
    name, source, made, tmp_path
):
    back = exported(made, source, tmp_path, name).parent
    whole = read_corrected(back, source)
    assert {*whole.reasons.values()} == {"not compared, as no run is there"}
    for id in whole.files:
        np.testing.assert_array_equal(whole.mask(id), made.get_mask(id))
    with pytest.raises(UserError, match=r"all of its .* masks are as the run made them; where one"):
        read_corrected(back, source, [made])
    one_pixel = made.get_mask("one").copy()
    one_pixel[8, 7] = 3  # a hole's corner is filled
    made.put_mask("one", one_pixel)
    found = read_corrected(back, source, [made])
    assert found.reasons == {"one": "changed"} and len(found.passed) == len(whole.files) - 1
    first, second = describe(found, back, source)
    assert first == f"1 corrected mask in {back} (1 changed): one.JPG"
    assert "as the run made" in second and str(back / "approved.txt") in second


def test_outlines_that_a_program_redraws_are_no_corrections(source, made, tmp_path):
    back = exported(made, source, tmp_path, "coco").parent
    for id in ("one", "two"):
        mask = made.get_mask(id).copy()
        mask[:, 1:] = np.where(mask[:, 1:] != mask[:, :-1], mask[:, :-1], mask[:, 1:])
        made.put_mask(id, mask)  # all outlines lie a pixel further right
    with pytest.raises(UserError, match="all of its 3 masks"):
        read_corrected(back, source, [made])
    mask = np.zeros_like(made.get_mask("two"))
    mask[20:, :] = 2
    made.put_mask("two", mask)
    assert read_corrected(back, source, [made]).reasons == {"two": "changed"}


def test_a_pixel_far_from_outlines_is_more_than_another_outline():
    was = np.zeros((20, 20), np.uint8)
    was[5:15, 5:15] = 1
    wider, row, hole = was.copy(), was.copy(), was.copy()
    wider[3:17, 3:17] = 1
    row[2, 7] = 1
    hole[9, 9] = 0
    assert not beyond_outlines(was, was) and not beyond_outlines(wider, was)
    assert beyond_outlines(row, was) and beyond_outlines(hole, was)


def test_what_was_edited_or_tagged_in_cvat_counts(source, made, tmp_path):
    file = exported(made, source, tmp_path, "cvat")
    text = file.read_text().replace('source="auto"', 'source="file"')
    images = text.split("<image ")
    place = next(n for n, image in enumerate(images) if 'name="one.JPG"' in image)
    images[place] = images[place].replace('source="file"', 'source="manual"', 1)
    tag = '<tag label="approved" source="manual">\n    </tag>\n  </image>'
    tagged = [image if n == place else image.replace("</image>", tag)
              for n, image in enumerate(images)]  # fmt: skip
    file.write_text("<image ".join(images))
    assert read_corrected(file.parent, source, [made]).reasons == {"one": "edited in CVAT"}
    file.write_text("<image ".join(tagged))
    found = read_corrected(file.parent, source, [made]).reasons
    assert found == {"one": "edited in CVAT", "two": 'tagged "approved"',
                     "none": 'tagged "approved"'}  # fmt: skip
    file.write_text(text.replace('source="file"', 'source="manual"'))
    with pytest.raises(UserError, match="all of its 3 masks are as"):
        read_corrected(file.parent, source, [made])  # this version tells nothing by it


def test_files_of_label_studio_have_annotated_photographs_alone(source, made, tmp_path):
    file = exported(made, source, tmp_path, "coco")
    content = json.loads(file.read_text())
    content["info"] = {"contributor": "Label Studio"}
    file.write_text(json.dumps(content))
    found = read_corrected(file.parent, source, [made])
    assert {*found.reasons.values()} == {"annotated in Label Studio"} and not found.passed


def test_a_list_tells_which_masks_are_right_as_they_are(source, made, tmp_path):
    back = exported(made, source, tmp_path, "cvat").parent
    (back / "approved.txt").write_text("one.JPG\n\n two \n")
    found = read_corrected(back, source, [made])
    assert found.reasons == dict.fromkeys(("one", "two"), "named in approved.txt")
    assert list(map(str, found.passed)) == ["none.png"]
    (back / "approved.txt").write_text("one.JPG\nthree.jpg")
    with pytest.raises(UserError, match=r"of no photograph, or of several \(1\): three\.jpg in"):
        read_corrected(back, source, [made])
    (back / "annotations.xml").unlink()
    saved(back, "two.png", Image.fromarray(two))
    (back / "approved.txt").write_text("one.JPG")
    with pytest.raises(UserError, match=r"without a mask \(1\): one\.JPG in approved\.txt has no"):
        read_corrected(back, source, [made])


def test_files_of_their_own_count_but_where_cvat_wrote_all(source, made, tmp_path):
    back = tmp_path / "back"
    for id, mask in MASKS.items():
        decided = np.where(mask == 255, 0, mask)
        saved(back, f"SegmentationClass/{id}.png", Image.fromarray(palette()[decided]))
    assert {*read_corrected(back, source, [made]).reasons.values()} == {"files of their own"}
    names = zip(("background", *toy.CLASSES), palette().tolist(), strict=False)
    lines = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in names]
    (back / "labelmap.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="all of its 3 masks are as the run made them"):
        read_corrected(back, source, [made])
    (back / "SegmentationClass/none.png").unlink()
    assert list(read_corrected(back, source, [made]).files) == ["one", "two"]


def test_masks_of_the_run_are_those_from_labels_and_those_from_corrected_masks(
    source, made, tmp_path
):
    """The second round: what comes back was made with corrected masks, of which one counts."""
    again = stores.create(
        tmp_path / "run/corrected_1_abc/pseudo_masks",
        holds="masks", classes=toy.CLASSES, made_by={"labelled": ["one"]},
    )  # fmt: skip
    for id in MASKS:
        again.put_mask(id, np.roll(made.get_mask(id), 4, axis=0))
    back = exported(again, source, tmp_path, "cvat").parent
    held = masks_of_run(tmp_path / "run")
    assert [store.folder for store in held] == [made.folder, again.folder]
    found = read_corrected(back, source, held)
    assert found.reasons == {"one": "corrected before"} and len(found.passed) == 2


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
