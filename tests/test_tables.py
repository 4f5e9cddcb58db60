"""Labels in the tables and folders that people have, with the photographs that go with them."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data import texts
from wsss_jax.datasets import table as datasets
from wsss_jax.datasets.check import survey
from wsss_jax.errors import BadFileError, MissingFileError

IDS = ("IMG 001", "im1", "größe", "im3")
WANTED = {"IMG 001": [1, 1], "im1": [1, 0], "größe": [0, 1], "im3": [0, 0]}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for n, id in enumerate(IDS):
        Image.new("RGB", (8, 6), (n, 0, 0)).save(tmp_path / f"images/{id}.jpg")
    return tmp_path


def shown(root: Path) -> dict[str, list[int]]:
    source = datasets.open_dataset(root, split="all")
    assert source.classes.names == ("cat", "dog")
    return {id: source.labels(id).astype(int).tolist() for id in source.ids}


@pytest.mark.parametrize(
    "text",
    [
        "file,label\nIMG 001.jpg,cat\nIMG 001.jpg,dog\nim1.jpg,cat\ngröße.jpg,dog\nim3.jpg,\n",
        "IMG 001.jpg,cat;dog\nim1.jpg,cat\ngröße.jpg,dog\nim3.jpg,\n",
        "im1;cat\nIMG 001;dog,cat\ngröße;dog\nim3;\n",
        "label\tpath\ncat|dog\timages/IMG 001.jpg\ncat\timages/im1.jpg\ndog\tgröße.JPG\n\tim3\n",
        "id,width,labels\nIMG 001,8,\"['cat', 'dog']\"\nim1,8,\"['cat']\"\ngröße,8,dog\nim3,8,[]\n",
        "cat,file,dog\n1,IMG 001.jpg,1\n1,im1.jpg,0\n0,größe.jpg,1\n0,im3.jpg,0\n",
        "file;cat;dog\nIMG 001;x;x\nim1;x;\ngröße;;x\nim3;;\n",
        "Dateiname|cat|dog\nIMG 001|1.0|1.0\nim1|1.0|0.0\ngröße|0.0|1.0\nim3|0.0|0.0\n",
        "im1,cat\nIMG 001,cat,dog\ngröße,dog\nim3,background\n",
        'file,label\n"=""IMG 001""","=""cat;dog"""\n="im1.jpg",cat\n="größe","dog"\nim3,""\n',
        "file,label\nIMG 001,Cat;dog\nim1,cat\nIMG 001,cat\ngröße,dog\nim3,none\n",
        'Datei;Klasse\n"IMG 001.jpg";"cat;dog"\n"im1.jpg";"cat"\n"größe.jpg";"dog"\n"im3.jpg";""\n',
        'file,label,\nIMG 001.jpg,"cat, dog",\n im1.jpg , cat ,\ngröße.jpg,dog,\nim3.jpg,nan,\n',
        "sep=;\nAufnahme;Inhalt\nIMG 001;cat+dog\nim1;cat\ngröße;dog\nim3;-\n",
        "My labels\n,species,split\nIMG 001,cat dog,a\nim1,cat,a\ngröße,dog,b\nim3,,b\n",
        "Nr;Bild;cat;dog\n0;IMG 001;wahr;WAHR\n1;im1;Ja;nein\n1;größe;-;✓\n0;im3;n;falsch\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "mac_roman"])
def test_tables_of_every_form_are_read(root, text, encoding):
    if encoding in ("latin-1", "mac_roman"):
        text = text.replace("✓", "x")
    (root / "labels.csv").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert shown(root) == WANTED


def test_what_was_decided_is_told(root):
    text = "file,label,width\nIMG 001,cat;dog,1\nim1,Cat,1\ngröße,dog,1\nim3,cat,1\n"
    (root / "labels.csv").write_bytes(text.encode("latin-1"))
    told = [notice.message for notice in survey(root).notices if notice.kind == "label form"]
    assert told == ["labels.csv is read as cp1252; where letters look wrong, save it as UTF-8",
                    "label Cat is read as cat",
                    "columns that are not read: width"]  # fmt: skip


@pytest.mark.parametrize("text, encoding", [("œuf", "cp1252"), ("5€, l’été", "cp1252"),
                                            ("Cat™, ‹dog›", "cp1252"),
                                            ("Kühe, bête", "mac_roman")])  # fmt: skip
def test_codes_of_letters_are_told_apart(tmp_path, text, encoding):
    (tmp_path / "x.csv").write_bytes(text.encode(encoding))
    assert texts.read_text(tmp_path / "x.csv") == (text, encoding)


def test_a_name_that_stands_twice_in_one_object_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [], "annotations": [], "images": [1]}')
    with pytest.raises(BadFileError, match="'images' stands twice"):
        texts.read_json(tmp_path / "x.json")


def test_no_entry_is_missing_and_an_empty_one_is_not(root):
    (root / "labels.csv").write_text("im1,cat\nIMG 001,dog\nim3,\n")
    source = datasets.open_dataset(root, split="all")
    assert not source.labels("im3").any()
    with pytest.raises(MissingFileError, match="größe"):
        source.labels("größe")
    (root / "labels.csv").write_text("file,cat,dog\nim1,1,0\nIMG 001,0,\n")
    source = datasets.open_dataset(root, split="all")
    with pytest.raises(BadFileError, match="dog is empty, wanted 0 or 1"):
        source.labels("IMG 001")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\nc,d\n", "no column of it names"), ("", "no column"), ("im1,\nim3,\n", "no class"),
     ("file,size,colour\nim1,3,red\nim3,4,blue\n", "which of the columns"),
     ("im1,0,1\nim3,1,1\n", "without a header"), ("im1,cat\x01\n", "control characters"),
     ('im1,"ca\nt"\n', "control characters"), ("im1,ca\u200bt\n", "invisible")],
)  # fmt: skip
def test_tables_that_say_nothing_are_refused_by_name(root, text, message):
    (root / "labels.csv").write_text(text, "utf-8")
    with pytest.raises(BadFileError, match=message):
        datasets.open_dataset(root, split="all")


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_mean_the_classes_of_a_list(root, first):
    (root / "classes.txt").write_text("cat\ndog\n")
    table = f"im1,{first}\nIMG 001,{first};{first + 1}\ngröße,{first + 1}\nim3,\n"
    (root / "labels.csv").write_text(table, "utf-8")
    assert shown(root) == WANTED


def test_a_spreadsheet_is_named_and_a_plain_json_is_read(root):
    (root / "labels.xlsx").write_bytes(b"PK")
    with pytest.raises(BadFileError, match="xlsx is not read: save it as CSV"):
        datasets.open_dataset(root, split="all")
    (root / "labels.xlsx").rename(root / "Liste.txt")
    with pytest.raises(BadFileError, match=r"if Liste\.txt has the labels, call it labels\.txt"):
        datasets.open_dataset(root, split="all")
    plain = '{"IMG 001.jpg": ["cat", "dog"], "im1": "cat", "größe.jpg": ["dog"], "im3": []}'
    (root / "labels.json").write_text(plain, "utf-8")
    assert shown(root) == WANTED


def test_classes_have_the_order_of_their_file(root):
    (root / "labels.csv").write_text("im1,cat\nIMG 001,dog\n")
    (root / "classes.txt").write_text("background\ndog\ncat\n")
    assert datasets.open_dataset(root, split="all").classes.names == ("dog", "cat")


def test_photographs_may_lie_beside_their_table(root):
    for path in (root / "images").iterdir():
        path.rename(root / path.name)
    (root / "images").rmdir()
    (root / "anything.csv").write_text("im1,cat\nIMG 001,cat;dog\ngröße,dog\nim3,\n")
    assert shown(root) == WANTED


def test_lists_may_lie_beside_the_photographs(root):
    (root / "labels.csv").write_text("im1,cat\nIMG 001,cat;dog\ngröße,dog\nim3,\n")
    (root / "Train.txt").write_text("images/im1.jpg masks/im1.png\nIMG 001.jpg\n")
    (root / "notes.txt").write_text("nothing\n")
    assert datasets.splits(root) == ("train", "all")
    assert datasets.open_dataset(root, split="Train").ids == ("im1", "IMG 001")


def test_labels_txt_may_be_a_table_or_a_list_of_classes(root):
    (root / "labels.txt").write_text("im1\tcat\nIMG 001\tcat|dog\ngröße\tdog\nim3\t\n")
    assert shown(root) == WANTED
    (root / "labels.txt").write_text("dog\ncat\n")
    (root / "table.csv").write_text("im1,cat\nIMG 001,dog\n")
    assert datasets.open_dataset(root, split="all").classes.names == ("dog", "cat")


def test_labels_json_takes_names_with_suffix(root):
    (root / "labels.json").write_text(
        '{"classes": ["cat", "dog"], "image_labels": {"im1.jpg": ["cat"], "IMG 001.JPG": [0, 1],'
        ' "größe": ["dog"], "im3": []}}'
    )
    assert shown(root) == WANTED


def picture(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(path)


def test_a_folder_per_class(tmp_path):
    picture(tmp_path / "cat/siamese/1.jpg", 1)
    picture(tmp_path / "dog/1.jpg", 2)
    picture(tmp_path / "dog/both.jpg", 3)
    picture(tmp_path / "cat/both.jpg", 3)
    picture(tmp_path / "background/none.jpg", 4)
    source = datasets.open_dataset(tmp_path, split="all")
    assert datasets.layout_of(tmp_path) == "class_folders"
    assert source.classes.names == ("cat", "dog")
    found = {id: source.labels(id).astype(int).tolist() for id in source.ids}
    assert found == {"cat/siamese/1": [1, 0], "dog/1": [0, 1], "both": [1, 1], "none": [0, 0]}
    assert [notice.kind for notice in survey(tmp_path).notices] == [
        "label form", "no class", "no mask"]  # fmt: skip


def test_folders_of_splits_with_folders_of_classes(tmp_path):
    for name in ("train/cat/1", "train/dog/2", "valid/cat/1"):
        picture(tmp_path / f"{name}.jpg", len(name))
    assert datasets.splits(tmp_path) == ("train", "val", "all")
    assert datasets.open_dataset(tmp_path, split="train").ids == ("train/cat/1", "2")
    source = datasets.open_dataset(tmp_path, split="val")
    assert source.ids == ("valid/cat/1",) and source.labels("valid/cat/1").tolist() == [True, False]
    assert len(datasets.open_dataset(tmp_path, split="all").ids) == 3


def voc(root: Path) -> Path:
    for n in range(3):
        picture(root / f"JPEGImages/2007_00000{n}.jpg", n)
    return root


def test_cls_labels_npy_is_read_without_unpickling(tmp_path):
    root = voc(tmp_path)
    vectors = {2007000000 + n: np.eye(20, dtype=np.float32)[n] for n in range(3)}
    np.save(root / "cls_labels.npy", np.array(vectors, dtype=object))
    source = datasets.open_dataset(root, split="all")
    assert [np.flatnonzero(source.labels(id)).tolist() for id in source.ids] == [[0], [1], [2]]
    (root / "class_names.txt").write_text("cat\ndog\n")
    with pytest.raises(BadFileError, match="class_names"):
        datasets.open_dataset(root, split="all")


def test_labels_from_the_class_lists_of_main(tmp_path):
    root = voc(tmp_path)
    main = root / "ImageSets/Main"
    main.mkdir(parents=True)
    (main / "Train.txt").write_text("2007_000000\n2007_000001\n")
    (main / "cat_train.txt").write_text("2007_000000  1\n2007_000001 -1\n")
    (main / "dog_train.txt").write_text("2007_000000 -1\n2007_000001  0\n")
    source = datasets.open_dataset(root, split="train")
    assert source.classes.names == ("cat", "dog") and len(source.ids) == 2
    assert source.labels("2007_000000").tolist() == [True, False]
    assert source.labels("2007_000001").tolist() == [False, True]
    with pytest.raises(MissingFileError):
        source.labels("2007_000002")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nim1,yes\nim3,no\n", "labels are no, yes; .* name of the class above"),
        ("file;label\nim1;x\nim3;\n", "labels are x; "),
        ("file,,dog\nim1,1,0\nim3,1,1\ngröße,0,1\n", "column 2 has 0, 1 below no name"),
        ("class,im1.jpg,im3.jpg,größe.jpg\ncat,1,0,0\ndog,0,1,1\n", "beside each other"),
    ],
)
def test_a_table_that_can_be_read_wrongly_is_refused(root, text, message):
    (root / "labels.csv").write_text(text)
    with pytest.raises(BadFileError, match=message):
        datasets.open_dataset(root, split="all")


@pytest.mark.parametrize("cell", ["?", "2", "0,7", "maybe"])
@pytest.mark.parametrize("other", ["0", ""])
def test_a_cell_that_is_neither_0_nor_1_costs_its_photograph_and_not_its_class(root, cell, other):
    rows = [f"im1;1;{other}", f"im3;{cell};1", f"größe;{other};1", "IMG 001;1;1", "no;1;1"]
    (root / "labels.csv").write_text("\n".join(["file;cat;dog", *rows, "Summe;3;3", ""]))
    source = datasets.open_dataset(root, split="all")
    assert source.classes.names == ("cat", "dog")
    assert source.labels("IMG 001").all() and source.labels("im1").tolist() == [True, False]
    with pytest.raises(BadFileError, match=f"cat has '{re.escape(cell)}', wanted 0 or 1"):
        source.labels("im3")


def test_sums_comments_and_numbers_with_a_point_are_no_labels(root):
    (root / "labels.csv").write_text(
        "# mine\nfile,cat,dog,total\nIMG 001,1,1,2\n# more\nim1,1,0,1\ngröße,0,1,1\nim3,0,0,0\n"
    )
    assert shown(root) == WANTED
    (root / "labels.csv").write_text("file,label\nIMG 001,3.0\nim1,7.0\ngröße,\nim3,7.0\n")
    source = datasets.open_dataset(root, split="all")
    assert source.classes.names == ("3", "7") and not source.labels("größe").any()


def test_a_name_that_ends_with_a_space_is_found(root):
    Image.new("RGB", (8, 6)).save(root / "images/a .jpg")
    (root / "labels.csv").write_text("file,label\na .jpg,cat\nim1.jpg,dog\n")
    assert datasets.open_dataset(root, split="all").labels("a ").tolist() == [True, False]


def test_class_folders_that_differ_in_a_space_are_one_class(tmp_path):
    for n, name in enumerate(("Cat", "cat ", "dog")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 6), (9, n, 0)).save(tmp_path / name / f"x{n}.jpg")
    assert datasets.open_dataset(tmp_path, split="all").classes.names == ("Cat", "dog")


def test_photographs_may_come_late_in_a_long_table(root):
    rows = "".join(f"lost{n}.jpg,cat\n" for n in range(400))
    (root / "labels.csv").write_text(f"file,label\n{rows}im1.jpg,dog\n")
    assert datasets.open_dataset(root, split="all").labels("im1").tolist() == [False, True]


@pytest.mark.parametrize(
    "text",
    ["# mine\ndog\ncat\n", "0 dog\n1 cat\n", "1: dog\n2: cat\n", '"dog"\n"cat"\n',
     "id,name\n0,background\n1,dog\n2,cat\n"],
)  # fmt: skip
def test_class_files_may_be_numbered_quoted_and_commented(root, text):
    (root / "labels.csv").write_text("file,label\nim1.jpg,dog\nim3.jpg,cat\n")
    (root / "class_names.txt").write_text(text)
    source = datasets.open_dataset(root, split="all")
    assert source.classes.names == ("dog", "cat") and source.labels("im1").tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [("dog,cat\n", "one class a line"), ("0 dog\n2 cat\n", "gaps or out of order")],
)
def test_class_files_that_tell_no_order_are_refused(root, text, message):
    (root / "labels.csv").write_text("file,label\nim1.jpg,dog\nim3.jpg,cat\n")
    (root / "class_names.txt").write_text(text)
    with pytest.raises(BadFileError, match=message):
        datasets.open_dataset(root, split="all")


def test_a_line_of_many_words_is_no_list_of_many_names(root):
    (root / "labels.csv").write_text("file,label\nim1.jpg,dog\nim3.jpg,cat\n")
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("im1.jpg " + "x " * 100_000)
    (root / "splits/val.json").write_text('["im3"]')
    assert datasets.open_dataset(root, split="train").ids == ("im1",)
    assert [p.where for p in survey(root).notices if p.kind == "unread file"] == ["splits/val.json"]
