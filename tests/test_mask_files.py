"""Masks in palette, grey, colour, 16 bits and one, and whether their numbers are the labels'."""

import json

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data.classes import ClassList, palette
from wsss_jax.data.mask_files import colour_table, read_truth
from wsss_jax.datasets import check, numbering
from wsss_jax.datasets import table as datasets
from wsss_jax.errors import BadFileError
from wsss_jax.stages.check import lines
from wsss_jax.types import IGNORE

VALUES = np.array([[0, 1, 2], [IGNORE, 0, 1]], np.uint8)
CLASSES = ClassList(("cat", "dog"))


def saved(path, pixels: np.ndarray, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_indices_come_as_they_stand(tmp_path):
    assert (read_truth(saved(tmp_path / "l.png", VALUES)) == VALUES).all()
    wide = np.where(VALUES == IGNORE, np.uint16(65535), VALUES)
    assert (read_truth(saved(tmp_path / "i.png", wide)) == VALUES).all()
    picture = Image.fromarray(VALUES)
    picture.putpalette([7 * n % 256 for n in range(768)])
    picture.save(tmp_path / "p.png")
    assert (read_truth(tmp_path / "p.png") == VALUES).all()
    assert (read_truth(saved(tmp_path / "b.png", VALUES == 1)) == (VALUES == 1)).all()
    assert (read_truth(saved(tmp_path / "rgb.png", palette()[VALUES])) == VALUES).all()
    picture.putpalette(palette().tobytes())
    picture.save(tmp_path / "p.gif")  # whose writer numbers colours anew
    assert (read_truth(tmp_path / "p.gif") == VALUES).all()
    grey = np.repeat(VALUES[..., None], 3, axis=-1)
    assert (read_truth(saved(tmp_path / "grey.png", grey)) == VALUES).all()


def test_colours_have_the_meaning_of_their_table(tmp_path):
    colours = np.array([[9, 9, 9], [250, 0, 0], [0, 0, 250], [1, 2, 3]], np.uint8)
    path = saved(tmp_path / "a.png", colours[np.where(VALUES == IGNORE, 3, VALUES)])
    text = "background:9,9,9::\ncat:250,0,0::\ndog:0,0,250::\nvoid:1,2,3::\n"
    (tmp_path / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{text}")
    table = colour_table((tmp_path,), CLASSES)
    assert (read_truth(path, table) == VALUES).all()
    (tmp_path / "labelmap.txt").unlink()
    assert colour_table((tmp_path,), CLASSES) is None
    rows = text.replace("::", "").replace(":", ";").replace(",", ";")
    (tmp_path / "colours.csv").write_text(f"name;r;g;b\n{rows}")
    assert colour_table((tmp_path,), CLASSES) == table
    with pytest.raises(BadFileError, match="colours of an RGB mask"):
        read_truth(path)
    (tmp_path / "colours.csv").write_text("cow,1,2,3\n")
    with pytest.raises(BadFileError, match="cow"):
        colour_table((tmp_path,), CLASSES)


def test_what_is_no_mask_is_refused_by_name(tmp_path):
    with pytest.raises(BadFileError, match="JPEG"):
        read_truth(saved(tmp_path / "a.jpg", VALUES))
    with pytest.raises(BadFileError, match="JPEG"):
        read_truth(saved(tmp_path / "a.png", VALUES, format="JPEG"))
    with pytest.raises(BadFileError, match="16-bit values up to 7000"):
        read_truth(saved(tmp_path / "b.png", np.full((2, 3), 7000, np.uint16)))


def folder(root, masks: dict[str, np.ndarray], labels: dict, classes=("cat", "dog")):
    for name in ("images", "masks"):
        (root / name).mkdir(exist_ok=True)
    for id in labels:
        Image.new("RGB", (6, 4)).save(root / f"images/{id}.png")
    for id, mask in masks.items():
        saved(root / f"masks/{id}.png", mask)
    content = {"classes": list(classes), "image_labels": labels}
    (root / "labels.json").write_text(json.dumps(content))
    return root


LABELS = {"a": ["cat"], "b": ["dog"], "c": ["cat", "dog"], "d": ["dog"], "e": []}


def masks(values: dict[str, int], background: int = 0) -> dict[str, np.ndarray]:
    """Masks of LABELS whose classes carry these values."""
    found = {}
    for id, names in LABELS.items():
        found[id] = np.full((4, 6), background, np.uint8)
        for row, name in enumerate(names):
            found[id][row] = values[name]
    return found


@pytest.mark.parametrize(
    ("drawn", "cause"),
    [(masks({"cat": 1, "dog": 2}), None),
     (masks({"cat": 0, "dog": 1}, IGNORE), "numbered from 0"),
     (masks({"cat": 2, "dog": 3}, 1), "shifted by one"),
     (masks({"cat": 2, "dog": 1}), "another order"),
     (masks({"cat": IGNORE, "dog": IGNORE}), "only 0 and 255"),
     (masks({"cat": 0, "dog": 0}), "all is background")],
)  # fmt: skip
def test_the_cause_of_wrong_numbers_is_named(tmp_path, drawn, cause):
    root = folder(tmp_path, drawn, LABELS)
    found = [p for p in check.survey(root).problems if p.kind == "masks and labels"]
    assert [cause in problem.message for problem in found] == ([] if cause is None else [True])


def test_single_contradictions_are_named_alone():
    classes = ClassList(tuple("abcdefgh"))
    labels = np.tile(np.eye(8, dtype=bool), (3, 1))
    values = np.concatenate([np.ones((24, 1), bool), labels], axis=1)
    values[0, [1, 4]] = False, True
    assert numbering.mistake(values, labels, classes) is None
    assert np.flatnonzero(numbering.contradicted(values, labels)).tolist() == [0]


def test_255_is_the_class_where_there_is_one_class_and_nothing_else(tmp_path):
    white = {"a": np.full((4, 6), IGNORE, np.uint8), "b": np.zeros((4, 6), np.uint8)}
    white["a"][0] = 0
    labels = {"a": ["cat"], "b": []}
    source = datasets.open_dataset(folder(tmp_path, white, labels, ("cat",)), split="all")
    assert np.unique(source.mask("a")).tolist() == [0, 1] and not source.mask("b").any()
    assert source.assumed == "masks hold 0 and 255 alone, so 255 is read as cat"
    white["a"][1] = 1
    source = datasets.open_dataset(folder(tmp_path, white, labels, ("cat",)), split="all")
    assert np.unique(source.mask("a")).tolist() == [0, 1, IGNORE]


def test_check_prints_one_line_for_each_kind_and_what_to_do(tmp_path):
    root = folder(tmp_path, masks({"cat": 1, "dog": 2}), LABELS | {"f": ["cow"], "g": [7]})
    for id in "abcd":
        (root / f"images/{id}.png").write_bytes(b"nonsense")
    saved(root / "masks/x_mask.png", VALUES)
    (root / "images/h.heic").write_bytes(b"")
    found = check.survey(root)
    told = list(lines(found))
    assert told[0].startswith(
        "folder: 7 photographs, 5 true masks; classes: cat 2, dog 3; no class"
    )
    assert [line.split(":")[0] for line in told if line.startswith("problem")] == [
        "problem unread picture", "problem stray mask", "problem bad image (4)",
        "problem bad labels (2)"]  # fmt: skip
    assert told[-1] == "  then run this check again" and "to do:" in told
    image = next(line for line in told if "bad image" in line)
    assert image.count("not a picture") == 3 and image.endswith(" …")
