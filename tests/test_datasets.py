"""The folder layouts open as they lie, and one bad image is an error of that image only."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data.classes import COCO, VOC
from wsss_jax.data.ids import Index
from wsss_jax.datasets import labels
from wsss_jax.datasets import lists as list_module
from wsss_jax.datasets import table as datasets
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.types import IGNORE

SIZE = (6, 8)


def photo(path: Path, mode: str = "RGB", size: tuple[int, int] = SIZE, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size[1], size[0]), 100).save(path, **options)


def test_a_folder_of_lists_that_is_not_there_is_an_error(tmp_path):
    photo(tmp_path / "images/a.png")
    (tmp_path / "labels.csv").write_text("a.png,cat\n")
    with pytest.raises(MissingFileError, match="typo: no such folder of lists"):
        datasets.open_dataset(tmp_path, split="train", lists=tmp_path / "typo")


def mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette([7 * n % 256 for n in range(768)])
    picture.save(path)


def text(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def voc(root: Path) -> Path:
    for id in ("2007_1", "2007_2", "2007_3"):
        photo(root / f"JPEGImages/{id}.jpg")
        mask(root / f"SegmentationClassAug/{id}.png", np.full(SIZE, 8))
    text(root / "ImageSets/Segmentation/train.txt", b"\xef\xbb\xbf2007_2\r\n\r\n2007_1\r\n")
    text(root / "ImageSets/Segmentation/val.txt", "2007_3\n")
    entries = {"2007_1": ["cat"], "2007_2": ["cat", "dog"], "2007_3": []}
    text(
        root / "image_labels.json",
        json.dumps({"classes": list(VOC.names), "image_labels": entries}),
    )
    return root


def folder(root: Path, classes: list[str], entries: dict, **more) -> Path:
    for id in entries:
        photo(root / f"images/{id}.png")
    text(root / "labels.json", json.dumps({"classes": classes, "image_labels": entries, **more}))
    return root


def xml(names: list[str], head: str = "") -> str:
    things = "".join(
        f"<object><name>{n}</name><part><name>head</name></part></object>" for n in names
    )
    return f"{head}<annotation><filename>x.jpg</filename>{things}</annotation>"


def test_voc_opens_in_list_order_with_indexed_masks(tmp_path):
    root = voc(tmp_path)
    source = datasets.open_dataset(root, split="train")
    assert datasets.splits(root) == ("train", "val", "all")
    assert source.ids == ("2007_2", "2007_1")
    assert [VOC.names[c] for c in np.flatnonzero(source.labels("2007_2"))] == ["cat", "dog"]
    assert source.image("2007_1").shape == (*SIZE, 3) and source.size("2007_1") == SIZE
    assert (source.mask("2007_1") == 8).all()
    assert datasets.open_dataset(root, split="all").ids == ("2007_2", "2007_1", "2007_3")


def test_voc_without_train_aug_tells_where_it_comes_from(tmp_path):
    with pytest.raises(MissingFileError, match=r"10,582.*jiwoon-ahn/irn.*list train: 2 image"):
        datasets.open_dataset(voc(tmp_path), split="train_aug")


def test_voc_is_found_below_a_devkit(tmp_path):
    voc(tmp_path / "VOCdevkit/VOC2012")
    assert len(datasets.open_dataset(tmp_path, split="val").ids) == 1


def test_voc_labels_from_npz_equal_those_from_json(tmp_path):
    root = voc(tmp_path)
    from_json = datasets.open_dataset(root, split="all")
    (root / "image_labels.json").rename(tmp_path / "unused.json")
    vectors = np.stack([from_json.labels(id) for id in from_json.ids]).astype(np.uint8)
    lists = tmp_path / "lists"
    lists.mkdir()
    np.savez(lists / "cls_labels.npz", ids=np.array(from_json.ids), labels=vectors)
    text(lists / "train_aug.txt", "2007_3\n2007_2\n")
    text(lists / "LICENSE.txt", "this is no list of ids\n")
    source = datasets.open_dataset(root, split="train_aug", lists=lists)
    assert source.ids == ("2007_3", "2007_2")
    assert datasets.splits(root, lists=lists) == ("train_aug", "all")
    assert all((source.labels(id) == from_json.labels(id)).all() for id in from_json.ids)


def test_voc_labels_from_annotations_count_objects_not_parts(tmp_path):
    root = voc(tmp_path)
    (root / "image_labels.json").unlink()
    text(root / "Annotations/2007_1.xml", xml(["dog", "person", "dog"]))
    text(root / "Annotations/2007_2.xml", xml(["gryphon"]))
    bomb = '<!DOCTYPE x [<!ENTITY a "dog"><!ENTITY b "&a;&a;">]>'
    text(root / "Annotations/2007_3.xml", xml(["&b;"], bomb))
    source = datasets.open_dataset(root, split="all")
    assert source.labels("2007_1").tolist() == [True, False, True]
    assert source.classes.names == ("dog", "gryphon", "person")
    text(root / "class_names.txt", "_background_\nperson\ndog\n")
    source = datasets.open_dataset(root, split="all")
    assert source.classes.names == ("person", "dog")
    with pytest.raises(BadFileError, match="gryphon"):
        source.labels("2007_2")
    with pytest.raises(BadFileError, match="DOCTYPE"):
        source.labels("2007_3")
    text(root / "Annotations/2007_3.xml", "<annotation><object>")
    source = datasets.open_dataset(root, split="all")
    with pytest.raises(BadFileError, match=r"2007_3\.xml"):
        source.labels("2007_3")
    text(root / "Annotations/2007_3.xml", " " * (2**20 + 1))
    source = datasets.open_dataset(root, split="all")
    with pytest.raises(BadFileError, match="bytes"):
        source.labels("2007_3")
    text(root / "Annotations/2007_3.xml", '<?xml version="1.0" encoding="x"?><annotation/>')
    source = datasets.open_dataset(root, split="all")
    with pytest.raises(BadFileError, match="unknown encoding"):
        source.labels("2007_3")
    (root / "Annotations/2007_3.xml").unlink()
    source = datasets.open_dataset(root, split="all")
    with pytest.raises(MissingFileError):
        source.labels("2007_3")


def test_folder_labels_are_names_or_foreground_numbers(tmp_path):
    root = folder(tmp_path, ["cat", "dog"], {"a": ["dog"], "b": [0, 1], "c": []})
    source = datasets.open_dataset(root, split="all")
    assert source.ids == ("a", "b", "c") and source.has_background
    assert [source.labels(id).tolist() for id in "abc"] == [[0, 1], [1, 1], [0, 0]]
    assert source.mask("a") is None and source.image("a").dtype == np.uint8


@pytest.mark.parametrize("entry", (["cow"], [2], [-1], [True], [0.0], [0, 0], None, [None]))
def test_a_bad_label_is_an_error_of_its_image_only(tmp_path, entry):
    source = datasets.open_dataset(
        folder(tmp_path, ["cat", "dog"], {"a": entry, "b": [1], "c": [0]}), split="all"
    )
    assert source.labels("b").tolist() == [False, True]
    with pytest.raises(BadFileError, match="of a"):
        source.labels("a")


def test_void_first_means_mask_numbering_and_no_background(tmp_path):
    root = folder(tmp_path, ["void", "cat", "dog"], {"a": [2], "b": [0]})
    mask(root / "masks/a.png", np.arange(48).reshape(SIZE) % 3)
    source = datasets.open_dataset(root, split="all")
    assert source.classes.names == ("cat", "dog") and not source.has_background
    assert source.labels("a").tolist() == [False, True]
    assert source.mask("a")[0, :4].tolist() == [IGNORE, 1, 2, IGNORE]
    with pytest.raises(BadFileError, match="from 1 to 2"):
        source.labels("b")


def test_background_first_means_mask_numbering_with_background(tmp_path):
    root = folder(tmp_path, ["background", "cat"], {"a": [1]})
    mask(root / "masks/a.png", np.zeros(SIZE))
    source = datasets.open_dataset(root, split="all")
    assert source.classes.names == ("cat",) and source.has_background
    assert source.labels("a").tolist() == [True] and not source.mask("a").any()


def test_background_can_be_declared_absent(tmp_path):
    root = folder(tmp_path, ["cat"], {"a": [0]}, background=False)
    mask(root / "masks/a.png", np.zeros(SIZE))
    source = datasets.open_dataset(root, split="all")
    assert not source.has_background and (source.mask("a") == IGNORE).all()


def test_folder_without_lists_holds_out_a_fifth_for_good(tmp_path):
    root = folder(tmp_path, ["cat"], {f"i{n}": [0] for n in range(20)})
    train, val, everything = (
        datasets.open_dataset(root, split=s).ids for s in datasets.splits(root)
    )
    assert len(val) == 4 and sorted((*train, *val)) == sorted(everything)
    assert val == datasets.open_dataset(root, split="val").ids == tuple(sorted(val))
    text(root / "splits/odd.txt", "i1\ni3\n")
    assert datasets.splits(root) == ("odd", "all")
    assert datasets.open_dataset(root, split="odd").ids == ("i1", "i3")
    with pytest.raises(BadFileError, match="odd, all"):
        datasets.open_dataset(root, split="train")


@pytest.mark.parametrize(
    ("content", "message"),
    (("", "no ids"), ("a\nb\na\n", "twice"), ("../../etc/passwd\na\n", "file name"),
     (b"\x89PNG\x00\x1a", "text"), ("/etc/passwd\na\n", "file name"), ("x\ny", "none of its 2")),
)  # fmt: skip
def test_bad_lists_are_refused_on_opening(tmp_path, content, message):
    root = folder(tmp_path, ["cat"], {"a": [0]})
    text(root / "splits/train.txt", content)
    with pytest.raises(BadFileError, match=message):
        datasets.open_dataset(root, split="train")


@pytest.mark.parametrize(
    "content",
    (b"", b"{", b"[]", b'{"classes": 3, "image_labels": {}}', b'{"classes": ["a"]}', b"\xff\xfe",
     b'{"classes": ["a", "a"], "image_labels": {}}', b'{"classes": [], "image_labels": {"a": []}}',
     b"[" * 200_000, b'{"classes": ["a"], "image_labels": {"a": [0], "a": [0]}}'),
)  # fmt: skip
def test_bad_label_files_are_refused_by_name(tmp_path, content):
    photo(tmp_path / "images/a.jpg")
    text(tmp_path / "labels.json", content)
    with pytest.raises(BadFileError):
        datasets.open_dataset(tmp_path, split="all")


def test_missing_and_doubled_images_are_errors_of_one_image(tmp_path):
    root = folder(tmp_path, ["cat"], {"a": [0], "b": [0]})
    photo(root / "images/a.jpg")
    (root / "images/b.png").unlink()
    photo(root / "images/unlabelled.jpg")
    source = datasets.open_dataset(root, split="all")
    assert source.ids == ("a", "b", "unlabelled")
    with pytest.raises(BadFileError, match="share an id"):
        source.image("a")
    with pytest.raises(MissingFileError):
        source.size("b")
    with pytest.raises(MissingFileError):
        source.labels("unlabelled")


def test_links_out_of_the_data_set_are_not_followed(tmp_path):
    root = folder(tmp_path / "data", ["cat"], {"a": [0]})
    photo(tmp_path / "secret.png")
    (root / "images/b.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadFileError, match="leaves"):
        datasets.open_dataset(root, split="all").image("b")


def test_encoded_is_the_file_itself(tmp_path):
    source = datasets.open_dataset(folder(tmp_path, ["cat"], {"a": [0]}), split="all")
    with Image.open(io.BytesIO(source.encoded("a"))) as picture:
        assert (picture.height, picture.width) == SIZE


def test_unknown_layouts_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'voc'"):
        datasets.open_dataset(tmp_path, split="train", layout="vok")
    with pytest.raises(BadFileError, match="wanted photographs"):
        datasets.open_dataset(tmp_path, split="train")
    with pytest.raises(BadFileError, match="no such folder"):
        datasets.layout_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no lists"):
        datasets.open_dataset(tmp_path, split="train", layout="coco", lists=tmp_path)


def test_class_lists_have_their_known_ends():
    assert len(VOC) == 20 and len(COCO) == 80
    assert COCO.names[0] == "person" and COCO.names[79] == "toothbrush"
    assert COCO.names.index("hot dog") == 52


def test_voc_animals_open_as_they_lie(shared):
    root = shared / "data/voc12_animals"
    counts = [len(datasets.open_dataset(root, split=s).ids) for s in datasets.splits(root)]
    assert counts == [400, 200, 600]
    source = datasets.open_dataset(root, split="val")
    for id in source.ids[:20]:
        found = source.mask(id)
        present = {int(v) - 1 for v in np.unique(found)} - {-1, IGNORE - 1}
        assert found.shape == source.size(id) and present <= set(np.flatnonzero(source.labels(id)))


def test_official_lists_cover_the_animals(shared):
    lists = shared / "data/voc12_lists"
    root = shared / "data/voc12_animals"
    own = datasets.open_dataset(root, split="all")
    table = labels.npz_table(lists / "cls_labels.npz", VOC)
    index = Index({id: () for id in table.entries})
    assert all((table.of(id) == own.labels(id)).all() for id in own.ids)
    assert len(list_module.ids_of(lists / "train_aug.txt", index)) == 10_582
    assert len(datasets.open_dataset(root, split="val", lists=lists).ids) == 1449


def test_msrc_opens_without_background(shared):
    source = datasets.open_dataset(shared / "data/msrc21", split="all")
    assert len(source.ids) == 591 and len(source.classes) == 23 and not source.has_background
    id = "1_8_s"
    assert [source.classes.names[c] for c in np.flatnonzero(source.labels(id))] == [
        "grass", "tree", "cow"]  # fmt: skip
    values = set(np.unique(source.mask(id)).tolist())
    assert values <= {2, 3, 4, IGNORE} and 0 not in values
