"""Each kind of damage is found by name, and what is read all the same is only a notice."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data import photographs
from wsss_jax.datasets import check
from wsss_jax.datasets.check import survey
from wsss_jax.datasets.table import open_dataset

IDS = ("a", "b", "c")
SOUND = {"a": ["cat"], "b": ["cat"], "c": ["dog"]}


@pytest.fixture
def root(tmp_path) -> Path:
    """A sound folder of three images with masks; every test damages it in one way."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "splits").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    for value, id in zip((1, 1, 2), IDS, strict=True):
        Image.fromarray(np.roll(noise, ord(id), axis=0)).save(tmp_path / f"images/{id}.jpg")
        Image.fromarray(np.full((12, 16), value, np.uint8)).save(tmp_path / f"masks/{id}.png")
    labels(tmp_path, SOUND)
    (tmp_path / "splits/train.txt").write_text("a\nb\nc\n")
    return tmp_path


def labels(root: Path, entries: dict) -> None:
    text = json.dumps({"classes": ["cat", "dog"], "image_labels": entries})
    (root / "labels.json").write_text(text)


def kinds(root: Path) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in survey(root).problems]


def bomb(path: Path) -> None:
    """A PNG whose header claims 20000×20000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
        + struct.pack(">I", zlib.crc32(chunk)) + end
    )  # fmt: skip


def test_a_sound_data_set_has_nothing_to_report(root):
    ticks = []
    findings = survey(root, progress=lambda done, total: ticks.append((done, total)))
    assert findings.problems == findings.notices == () and findings.images == 3
    assert ticks == [(1, 3), (2, 3), (3, 3)]


def test_missing_image(root):
    (root / "images/b.jpg").unlink()
    assert kinds(root) == [("missing image", "b")]


def test_truncated_image(root):
    path = root / "images/b.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert kinds(root) == [("bad image", "b")]


@pytest.mark.parametrize("content", (b"", b"no picture"))
def test_what_is_no_image(root, content):
    (root / "images/b.jpg").write_bytes(content)
    assert kinds(root) == [("bad image", "b")]


def test_decoders_that_run_programs_stay_shut(root):
    Image.new("RGB", (16, 12)).save(root / "images/b.jpg", "EPS")
    assert kinds(root) == [("bad image", "b")]


def test_png_named_jpg_is_read(root):
    Image.new("RGB", (16, 12)).save(root / "images/b.jpg", "PNG")
    assert kinds(root) == []


def test_decompression_bomb(root):
    (root / "images/b.jpg").unlink()
    bomb(root / "images/b.png")
    assert kinds(root) == [("bad image", "b")]


def test_two_files_of_one_id(root):
    Image.new("RGB", (16, 12)).save(root / "images/b.png")
    assert kinds(root) == [("bad image", "b")]


def test_missing_labels(root):
    labels(root, {"a": ["cat"], "b": ["cat"]})
    assert kinds(root) == [("missing labels", "c")]


def test_unknown_class(root):
    labels(root, {"a": ["cat"], "b": ["dgo"], "c": ["dog"]})
    (found,) = survey(root).problems
    assert found.kind == "bad labels" and "did you mean 'dog'" in str(found)


def test_labels_twice(root):
    text = '{"classes": ["cat", "dog"], "image_labels": {"a": [0], "b": [], "c": [1], "b": [0]}}'
    (root / "labels.json").write_text(text)
    assert kinds(root) == [("duplicate id", "b")]


def test_mask_of_another_size(root):
    Image.new("L", (12, 16)).save(root / "masks/c.png")
    assert kinds(root) == [("mask size", "c")]


def test_rgb_mask(root):
    Image.new("RGB", (16, 12), (9, 200, 31)).save(root / "masks/c.png")
    (found,) = survey(root).problems
    assert found.kind == "bad mask" and "(9, 200, 31)" in found.message


def test_mask_values_outside_the_classes(root):
    Image.fromarray(np.full((12, 16), 7, np.uint8)).save(root / "masks/c.png")
    (found,) = survey(root).problems
    assert found.kind == "mask values" and "7" in found.message


def test_lists_are_searched_for_duplicates_strangers_and_ways_out(root):
    (root / "splits/train.txt").write_text("a\nb\na\n../../etc/passwd\nnobody\n")
    (root / "splits/val.txt").write_text("\n")
    found = kinds(root)
    train, val = str(root / "splits/train.txt"), str(root / "splits/val.txt")
    assert found[:3] == [("duplicate id", train), ("unsafe id", train), ("empty list", val)]
    assert found[3:] == [("missing image", "nobody"), ("missing labels", "nobody")]


def test_a_list_that_is_no_text(root):
    (root / "splits/val.txt").write_bytes(b"\xff\xfe\x00")
    assert kinds(root) == [("bad list", str(root / "splits/val.txt"))]


def test_ids_of_files_and_labels_are_checked_without_lists(root):
    (root / "splits/train.txt").unlink()
    labels(root, {**SOUND, "../x": ["cat"]})
    assert kinds(root) == [("unsafe id", str(root))]


def test_list_forms_are_notices(root):
    (root / "splits/train.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\nb\r\nc\r\n")
    findings = survey(root)
    assert findings.problems == () and findings.images == 3
    assert [notice.kind for notice in findings.notices] == ["list form"] * 3
    (root / "splits/train.txt").write_bytes("a\nb\nc\n".encode("utf-16"))
    assert "utf-16" in survey(root).notices[0].message


@pytest.mark.parametrize("mode", ("L", "CMYK", "RGBA", "P"))
def test_colour_modes_are_notices(root, mode):
    (root / "images/a.jpg").unlink()
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (16, 12)).save(root / f"images/a.{suffix}")
    findings = survey(root)
    assert findings.problems == ()
    assert [(n.kind, n.where) for n in findings.notices] == [("colour mode", "a")]


def test_turned_images_are_notices_and_come_upright(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(root / "images/a.jpg", exif=exif)
    findings = survey(root)
    assert findings.problems == ()
    assert [notice.kind for notice in findings.notices] == ["orientation"]
    assert photographs.read_image(root / "images/a.jpg").shape == (16, 12, 3)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_masks_of_the_stored_size_are_turned_with_their_photograph(root, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[8:16, 8:24] = 255
    (root / "images/a.jpg").unlink()
    Image.fromarray(pixels).save(root / f"images/a.{suffix}", exif=exif)
    Image.fromarray(pixels[..., 0] // 255).save(root / "masks/a.png")
    source = open_dataset(root, split="all", ids=("a",))
    mask = source.mask("a")
    assert source.size("a") == mask.shape == ((24, 32) if orientation < 5 else (32, 24))
    assert ((source.image("a")[..., 0] > 127) == mask).all()


def test_images_without_truth_or_class_are_notices(root):
    (root / "masks/a.png").unlink()
    Image.new("L", (16, 12)).save(root / "masks/b.png")
    labels(root, {"a": ["cat"], "b": [], "c": ["dog"]})
    findings = survey(root)
    assert findings.problems == () and findings.none == 1 and findings.shown == (1, 1)
    assert [notice.kind for notice in findings.notices] == ["no class", "no mask"]


def test_every_problem_is_listed_at_once(root):
    (root / "images/a.jpg").unlink()
    Image.new("RGB", (16, 12), (9, 200, 31)).save(root / "masks/b.png")
    labels(root, {"a": ["cat"], "b": ["horse"]})
    assert [kind for kind, _ in kinds(root)] == [
        "missing image", "bad labels", "bad mask", "missing labels"]  # fmt: skip


def test_what_cannot_be_opened_is_one_problem(tmp_path):
    assert [p.kind for p in survey(tmp_path).problems] == ["data set"]
    assert [p.kind for p in survey(tmp_path / "nowhere").problems] == ["data set"]
    (tmp_path / "images").mkdir()
    assert "labels.json" in survey(tmp_path).problems[0].message


def test_coco_is_checked_too(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    Image.new("RGB", (6, 5)).save(tmp_path / "val/x.jpg")
    images = [{"id": n, "file_name": f"{id}.jpg", "height": 9, "width": 6} for n, id in
              enumerate("xy")]  # fmt: skip
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(content))
    assert kinds(tmp_path) == [("mask size", "x"), ("missing image", "y")]


def test_problems_read_as_one_line():
    assert str(check.Problem("bad image", "a", "cut off")) == "bad image: a: cut off"


@pytest.mark.parametrize("name", ("voc12_animals", "msrc21"))
def test_real_photographs_are_sound(shared, name, tmp_path):
    # A tenth of the set through a list of its own: the whole takes seconds, and says no more.
    source = shared / "data" / name
    folder = source / ("JPEGImages" if name.startswith("voc") else "images")
    ids = sorted(path.stem for path in folder.glob("*.jpg"))[::20]
    (tmp_path / "some.txt").write_text("\n".join(ids))
    findings = survey(source, lists=tmp_path)
    assert findings.problems == () and findings.images == len(ids)


def test_the_same_file_twice_is_told(root):
    (root / "images/c.jpg").write_bytes((root / "images/a.jpg").read_bytes())
    (found,) = survey(root).notices
    assert found.kind == "same photograph"
    assert found.message == "a and c are the same file, with other labels: cat and dog; keep one"


def test_masks_that_are_not_read_are_told(root):
    (root / "masks/b.png").rename(root / "masks/B.PNG")
    assert survey(root).problems == survey(root).notices == ()
    (root / "masks/B.PNG").unlink()
    np.save(root / "masks/b.npy", np.zeros((12, 16), np.uint8))
    assert [found.message for found in survey(root).problems] == [
        ".npy is not read; save masks as PNG"
    ]
    (root / "masks/b.npy").unlink()
    Image.fromarray(np.full((12, 16), 255, np.uint8)).save(root / "masks/b.png")
    (found,) = survey(root).notices
    assert found.kind == "labels without mask" and "labels have cat" in found.message


def test_what_of_a_photograph_is_not_read_is_told(root):
    first, second = Image.new("RGB", (16, 12), "red"), Image.new("RGB", (16, 12), "blue")
    (root / "images/a.jpg").unlink()
    (root / "images/b.jpg").unlink()
    first.save(root / "images/a.tif", save_all=True, append_images=[second])
    Image.fromarray(np.full((12, 16), 4095, np.uint16)).save(root / "images/b.png")
    forms = [found.message for found in survey(root).notices if found.kind == "photograph form"]
    assert forms[0] == "holds several pictures, of which the first is read"
    assert forms[1].startswith("its 16-bit values reach 15 of 255 only")


def test_boxes_of_a_class_that_the_labels_do_not_have_are_a_problem(root):
    (root / "boxes.csv").write_text(
        "file,label,x1,y1,x2,y2\na.jpg,cat,1,1,9,9\nb.jpg,dog,1,1,9,9\n"
    )
    (found,) = survey(root).problems
    assert (found.where, found.message) == ("b", "has boxes of dog, its labels do not")
