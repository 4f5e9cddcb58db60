"""Corrected masks as programs save them: erased pixels, palettes, tags, sizes and folders."""

import json

import numpy as np
import pytest
import toy_exports as toy
from PIL import Image
from test_corrected import exported, saved

from wsss_jax.data.classes import palette
from wsss_jax.errors import UserError
from wsss_jax.export.corrected import read_corrected, with_corrected
from wsss_jax.stages.export import Export, export

two = toy.masks()["two"]


@pytest.fixture
def source(tmp_path):
    return toy.data_set(tmp_path / "data")


def test_erased_pixels_are_background_and_half_transparent_ones_are_refused(source, tmp_path):
    alpha = np.where(two > 0, 255, 0).astype(np.uint8)
    hidden = np.where(two[..., None] > 0, palette()[two], palette()[1])  # a class below it
    saved(tmp_path / "back", "two.png", Image.fromarray(np.dstack([hidden, alpha])))
    view = with_corrected(source, read_corrected(tmp_path / "back", source))
    np.testing.assert_array_equal(view.mask("two"), two)
    (tmp_path / "back/labelmap.txt").write_text("")  # which names no colour at all
    with pytest.raises(UserError, match="colours of no class"):
        read_corrected(tmp_path / "back", source)
    (tmp_path / "back/labelmap.txt").unlink()
    with_key = Image.fromarray(two + np.where(two, 0, 3).astype(np.uint8))  # 3 is see-through
    with_key.putpalette(palette().ravel().tobytes())
    with_key.info["transparency"] = 3
    saved(tmp_path / "back", "two.png", with_key)
    view = with_corrected(source, read_corrected(tmp_path / "back", source))
    np.testing.assert_array_equal(view.mask("two"), two)
    alpha[0, 0] = 100
    saved(tmp_path / "back", "two.png", Image.fromarray(np.dstack([hidden, alpha])))
    with pytest.raises(UserError, match="1 pixels are partly transparent"):
        read_corrected(tmp_path / "back", source)


def test_a_palette_with_colours_of_classes_is_not_read_by_its_numbers(source, tmp_path):
    """White background, then the classes in another order."""
    table = np.array([[255, 255, 255], palette()[2], palette()[1]], np.uint8)
    wrong = Image.fromarray(np.where(two == 2, np.uint8(1), np.uint8(0)))
    wrong.putpalette(table.tobytes())
    saved(tmp_path / "back", "two.png", wrong)
    with pytest.raises(UserError, match=r"1 colours of no class, such as \(255, 255, 255\)"):
        read_corrected(tmp_path / "back", source)


def test_the_tag_approved_is_no_class(source, tmp_path):
    back = exported(toy.decided_store(tmp_path / "run"), source, tmp_path, "coco")
    content = json.loads(back.read_text())
    content["categories"].append({"id": 9, "name": "approved", "supercategory": ""})
    back.write_text(json.dumps(content))
    assert read_corrected(back.parent, source).files
    saved(tmp_path / "own", "two.png", Image.fromarray(palette()[two]))
    lines = ["approved:9,9,9::", "background:0,0,0::"]
    lines += [f"{name}:{','.join(map(str, palette()[n + 1]))}::"
              for n, name in enumerate(source.classes.names)]  # fmt: skip
    (tmp_path / "own/labelmap.txt").write_text("\n".join(lines))
    assert list(read_corrected(tmp_path / "own", source).files) == ["two"]


def test_strokes_of_another_size_are_refused(source, tmp_path):
    store = toy.mask_store(tmp_path / "store")
    export(store, source, tmp_path / "ls", Export("label-studio"))
    tasks = json.loads((tmp_path / "ls/tasks.json").read_text())
    for task in tasks:
        strokes = task["predictions"][0]["result"]
        for one in strokes:  # of as many pixels, but turned
            sides = one["original_width"], one["original_height"]
            one["original_height"], one["original_width"] = sides
        task["annotations"] = [{"result": strokes}]
    (tmp_path / "back").mkdir()
    (tmp_path / "back/project.json").write_text(json.dumps(tasks))
    with pytest.raises(UserError, match=r"was painted at \(height, width\) \(17, 30\)"):
        read_corrected(tmp_path / "back", source)


def test_masks_of_cvat_count_alike_in_a_folder_of_their_own(source, tmp_path):
    store = toy.decided_store(tmp_path / "run")
    folder = tmp_path / "back/task_12"
    for id in store.ids():
        saved(
            folder / "SegmentationClass",
            f"{id}.png",
            Image.fromarray(palette()[store.get_mask(id)]),
        )
    names = ("background", *source.classes.names)
    lines = [f"{name}:{','.join(map(str, palette()[n]))}::" for n, name in enumerate(names)]
    (folder / "labelmap.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="all of its 3 masks are as the run made them"):
        read_corrected(tmp_path / "back", source, [store])
