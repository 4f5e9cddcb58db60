"""Labels, lists and annotations in the forms that people and programs really write."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from wsss_jax.data.photographs import read_image
from wsss_jax.datasets.check import survey
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError

KAETZCHEN = "K\u00e4tzchen"
PLAIN = "file,label\nim0.jpg,cat\nim1.jpg,cat;dog\nim2.jpg,\n"
SHOWN = {"im0": "cat", "im1": "cat+dog", "im2": ""}


def photograph(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path)


def data(root, files, **tables):
    """A data set of these photographs and these tables by name."""
    for name in files:
        photograph(root / name)
    for name, content in tables.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def labels(root, split="all"):
    source = open_dataset(root, split=split)
    return {
        id: "+".join(source.classes.names[n] for n in np.flatnonzero(source.labels(id)))
        for id in source.ids
    }


def three(root, text):
    files = [f"images/im{n}.jpg" for n in range(3)]
    return data(root, files, labels_dot_csv=text)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(",", "\t").encode("utf-16"),
        PLAIN.replace("\n", "\r"),
        "sep=;\n" + PLAIN.replace(";", ",").replace("label", "l").replace("file,l", "file;l")
        .replace(".jpg,", ".jpg;"),
        'file,note,label\nim0.jpg,"a\nb",cat\nim1.jpg,c,cat;dog\nim2.jpg,d,\n',
        PLAIN.replace("im", "https://a.org/b/im").replace(".jpg", ".jpg?size=large&n=1"),
        PLAIN.replace("im", "C:\\photos\\im"),
        PLAIN + "im0.jpg,cat\n",
        PLAIN + "images/im0,cat\n",
        "file,cat,dog\nim0.jpg,1,0\nim0.jpg,1,0\nim1.jpg,1,1\nim2.jpg,0,0\n",
        "file;cat;dog\nim0.jpg;1,0;0,0\nim1.jpg;1,0;1,0\nim2.jpg;0,0;0,0\n",
        "image,source,class,confidence\nim0,a,cat,1\nim0,a,dog,0\nim1,a,cat,1\nim1,a,dog,1\n"
        "im2,a,dog,0\n",
        "Nr;Bilddatei;Bezeichnung;Bemerkung\n1;im0.jpg;cat;x\n2;im1.jpg;cat,dog;\n3;im2.jpg;;\n",
    ],
)  # fmt: skip
def test_tables_of_other_programs(tmp_path, text):
    assert labels(three(tmp_path, text)) == SHOWN


@pytest.mark.parametrize(
    "text",
    [
        "nr,file,label\n1,3.jpg,cat\n2,1.jpg,dog\n3,2.jpg,\n",
        "nr,file,label\n1,3,cat\n2,1,dog\n3,2,\n",
        ",name,label\n1,3,cat\n2,1,dog\n3,2,\n",
    ],
)
def test_numbers_of_rows_are_no_names_of_photographs(tmp_path, text):
    root = data(tmp_path, ["images/1.jpg", "images/2.jpg", "images/3.jpg"], labels_dot_csv=text)
    assert labels(root) == {"1": "dog", "2": "", "3": "cat"}


def test_zeros_that_a_spreadsheet_took_away(tmp_path):
    files = [f"images/{n:04d}.jpg" for n in (1, 2, 10)]
    root = data(tmp_path, files, labels_dot_csv="id,label\n1,cat\n2,dog\n10,cat\n")
    assert labels(root) == {"0001": "cat", "0002": "dog", "0010": "cat"}


def test_a_class_may_have_a_comma_where_others_are_parted_by_a_semicolon(tmp_path):
    text = 'file,label\nim0.jpg,"cat, tame"\nim1.jpg,"cat, tame;dog"\nim2.jpg,\n'
    assert labels(three(tmp_path, text))["im1"] == "cat, tame+dog"
    three(tmp_path, 'file,label\nim0.jpg,"cat, tame"\nim1.jpg,dog\nim2.jpg,\n')
    told = [notice.message for notice in survey(tmp_path).notices]
    assert any("is read as cat and tame; where it is one class" in text for text in told)


@pytest.mark.parametrize(
    "text, message",
    [
        ('file,label\nim0.jpg,"cat\nim1.jpg,cat;dog\nim2.jpg,\n', r"a quote .* not closed"),
        ("file,cat,dog\nim0.jpg,2,0\nim1.jpg,1,3\n", r"which of the columns cat, dog has"),
    ],
)
def test_tables_that_would_be_read_wrong_are_refused(tmp_path, text, message):
    with pytest.raises(BadFileError, match=message):
        open_dataset(three(tmp_path, text), split="all")


def test_rows_that_contradict_cost_their_photograph_alone(tmp_path):
    rows = "file,cat,dog\nim0.jpg,1,0\nim0.jpg,0,1\nim1.jpg,1,1\nim2.jpg,0,0\n"
    source = open_dataset(three(tmp_path, rows), split="all")
    with pytest.raises(BadFileError, match="im0 has several rows"):
        source.labels("im0")
    assert source.labels("im1").all()


@pytest.mark.parametrize(
    "table",
    [
        {"classes": ["cat", "dog"], "image_labels": {"im0": [1, 0], "im1": [1, 1], "im2": [0, 0]}},
        {"classes": ["cat", "dog"],
         "image_labels": {"im0": [True, False], "im1": [True, True], "im2": [False, False]}},
        {"classes": ["cat", "dog"], "image_labels": {"im0": ["Cat"], "im1": ["cat", "DOG"],
                                                     "im2": []}},
        {"images/im0.jpg": "cat", "x\\im1.jpg": "cat,dog", "./im2.jpg": []},
    ],
)  # fmt: skip
def test_json_in_other_forms(tmp_path, table):
    files = [f"images/im{n}.jpg" for n in range(3)]
    assert labels(data(tmp_path, files, Labels_dot_JSON=json.dumps(table))) == SHOWN


def test_one_bad_entry_of_json_costs_its_photograph_alone(tmp_path):
    table = json.dumps({"im0": ["cat"], "im1": None, "im2": []})
    source = open_dataset(
        data(tmp_path, [f"im{n}.jpg" for n in range(3)], labels_dot_json=table), split="all"
    )
    assert source.labels("im0").tolist() == [True] and not source.labels("im2").any()
    with pytest.raises(BadFileError, match="labels of im1 are None, wanted"):
        source.labels("im1")


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), (KAETZCHEN, unicodedata.normalize("NFD", KAETZCHEN))]
)
def test_one_class_in_two_spellings_is_one(tmp_path, names):
    root = data(tmp_path, [f"{names[0]}/a.jpg", f"{names[1]}/b.jpg", "dog/c.jpg", "none/d.jpg"])
    assert labels(root) == {"a": names[0], "b": names[0], "c": "dog", "d": ""}
    for n, name in enumerate((*names, "dog")):
        photograph(tmp_path / f"voc/JPEGImages/{n}.jpg")
        xml = f"<annotation><object><name>{name}</name></object></annotation>"
        data(tmp_path / "voc", [], **{f"Annotations__{n}.xml": xml})
    assert len(open_dataset(tmp_path / "voc", split="all").classes) == 2


@pytest.mark.parametrize("place", ["train/images/a.jpg", "images/train/a.jpg"])
def test_boxes_of_yolo_are_no_folders_of_classes(tmp_path, place):
    text = place.replace("images", "labels").replace(".jpg", ".txt")
    data(tmp_path, [place], **{text.replace("/", "__"): "0 0.5 0.5 1 1\n"})
    with pytest.raises(BadFileError, match=r"YOLO.*write labels\.csv"):
        open_dataset(tmp_path, split="all")


def test_saliency_beside_photographs_and_their_table_is_no_photograph(tmp_path):
    files = [*(f"im{n}.jpg" for n in range(3)), "saliency/im0.png"]
    assert labels(data(tmp_path, files, labels_dot_csv=PLAIN)) == SHOWN
    found = survey(tmp_path)
    assert found.images == 3 and not found.problems


def test_lists_of_other_suffixes_comments_and_headers(tmp_path):
    root = three(tmp_path, PLAIN)
    data(root, [], splits__train_dot_csv="filename,split\nim0.jpg,train\n# two\nim2,train\n",
         splits__val_dot_lst="im1\n", splits___dot__train_dot_txt=b"\0\1",
         more_dot_json='{"val": []}')  # fmt: skip
    assert open_dataset(root, split="train").ids == ("im0", "im2")
    assert open_dataset(root, split="val").ids == ("im1",)
    notices = {notice.kind: notice.where for notice in survey(root).notices}
    assert notices["unread file"] == "more.json"
    (root / "splits/val.lst").write_text("im1\nim2\n")
    kinds = {notice.kind: notice.message for notice in survey(root).notices}
    assert kinds["list overlap"].startswith("1 photographs stand in train and in val")


def test_of_two_tables_the_one_called_labels_counts(tmp_path):
    root = data(three(tmp_path, PLAIN), [], labels_old_dot_csv="x", **{"~$labels.csv": b"\0"})
    assert labels(root) == SHOWN
    assert [n.where for n in survey(root).notices if n.kind == "unread file"] == ["labels_old.csv"]


def test_flags_of_class_lists_with_0_and_1_alone(tmp_path):
    root = data(tmp_path, ["JPEGImages/a.jpg", "JPEGImages/b.jpg"],
                ImageSets__Main__cat_train_dot_txt="a 1\nb 0\n",
                ImageSets__Main__dog_train_dot_txt="a 0\nb 1\n")  # fmt: skip
    assert labels(root) == {"a": "cat", "b": "dog"}


@pytest.mark.parametrize(
    "change, label",
    [
        (lambda xml: f"<!DOCTYPE annotation>{xml}", "cat"),
        (
            lambda xml: "<!DOCTYPE a SYSTEM 'a'>" + xml.replace("cat", "&ouml;"),
            "an entity",
        ),
        (lambda xml: f"<!DOCTYPE a [<!ENTITY b 'c'>]>{xml}", "a DOCTYPE with declarations"),
        (lambda xml: xml.replace("<name>cat</name>", "<name> </name>"), "without a name"),
        (lambda xml: xml.replace("annotation>", "html>"), "a document <html>"),
    ],
)
def test_xml_with_doctype_without_names_or_of_another_kind(tmp_path, change, label):
    xml = "<annotation><object><name>cat</name></object></annotation>"
    root = data(tmp_path, ["JPEGImages/a.jpg", "JPEGImages/b.jpg"],
                Annotations__a_dot_xml=change(xml), Annotations__b_dot_xml=xml)  # fmt: skip
    source = open_dataset(root, split="all")
    assert source.labels("b").all()
    if label == "cat":
        assert source.labels("a").all()
    else:
        with pytest.raises(BadFileError, match=label):
            source.labels("a")


def coco(root, *, file="annotations/instances_val.json", **changes):
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    thing = {"id": 1, "image_id": 7, "category_id": 2, "segmentation": square, "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}],
        "categories": [{"id": 2, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [thing | changes.pop("thing", {})],
    }
    photograph(root / "val/a.jpg")
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(json.dumps(content | changes))
    return root


@pytest.mark.parametrize(
    "changes",
    [
        {"thing": {"image_id": "7", "category_id": 2.0}},
        {"thing": {"iscrowd": "0"}},
        {"thing": {"segmentation": [[1, 1, 2, 2], [1, 1, 4, 1, 4, 3, 1, 3]]}},
        {"thing": {"segmentation": [[[1, 1], [4, 1], [4, 3], [1, 3]]]}},
        {"thing": {"segmentation": [[1, 1], [4, 1], [4, 3], [1, 3]]}},
        {"categories": [{"id": 0, "name": "background"}, {"id": 2, "name": "cat "},
                        {"id": "90", "name": "dog"}]},
        {"images": [{"id": 7, "file_name": "/mnt/data/val/A.JPG", "height": "4", "width": 6.0}]},
        {"file": "annotations/instances.json"},
        {"file": "annotations/val.json"},
        {"file": "my_export.json"},
    ],
)  # fmt: skip
def test_coco_of_other_programs(tmp_path, changes):
    source = open_dataset(coco(tmp_path, **changes), split="all")
    assert source.classes.names == ("cat", "dog")
    id = source.ids[0]
    assert source.labels(id).tolist() == [True, False]
    assert np.unique(source.mask(id)).tolist() == [0, 1]
    assert source.image(id).shape == (4, 6, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"categories": [{"id": 2, "name": "cat"}, {"id": 2, "name": "dog"}]}, "cat and dog; keep"),
        ({"categories": [{"id": 2, "name": None}]}, "category 2 has the name None"),
        ({"thing": {"category_id": 5}}, "category 5, which is not among"),
        ({"thing": {"segmentation": [[0, 0, 0.5, 0, 0.5, 1]]}}, "fractions of the photograph"),
    ],
)
def test_coco_that_contradicts_itself(tmp_path, changes, message):
    with pytest.raises(BadFileError, match=message):
        open_dataset(coco(tmp_path, **changes), split="all").mask("a")


def test_grey_of_8_bits_in_16_is_not_black(tmp_path):
    Image.fromarray(np.full((4, 6), 200, np.uint16)).save(tmp_path / "a.png")
    assert np.unique(read_image(tmp_path / "a.png")).tolist() == [200]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"<html>404", "a web page"),
        (b"abc", "not a picture that is read"),
    ],
)
def test_what_is_no_photograph_is_called_by_its_name(tmp_path, content, message):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadFileError, match=rf"a\.jpg: .*{message}"):
        read_image(tmp_path / "a.jpg")


def json_labels(root, content):
    photograph(root / "images/im0.jpg")
    photograph(root / "images/im1.jpg")
    (root / "labels.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": ["a", "b"], "image_labels": {"im0": [1], "im1": [2]}}, "count from 0"),
        ({"cat": ["im0.jpg"], "dog": ["im1.jpg"]}, "classes are called like photographs"),
        ({"cat": ["im0", "im1"]}, "wanted the classes of each photograph"),
    ],
)
def test_a_json_that_can_be_read_wrongly_is_refused(tmp_path, content, message):
    with pytest.raises(BadFileError, match=message):
        open_dataset(json_labels(tmp_path, content), split="all")


def test_rows_of_flags_are_told_and_one_of_another_length_is_no_list_of_numbers(tmp_path):
    names = ["a", "b", "c"]
    rows = {"im0": [1, 0, 0], "im1": [0, 1]}
    root = json_labels(tmp_path, {"classes": names, "image_labels": rows})
    with pytest.raises(BadFileError, match="with 0 twice; wanted"):
        open_dataset(root, split="all").labels("im0")
    rows["im1"] = [0, 1, 1]
    root = json_labels(tmp_path, {"classes": names, "image_labels": rows})
    assert labels(root) == {"im0": "a", "im1": "b+c"}
    assert any("rows of 0 and 1" in problem.message for problem in survey(root).notices)


def test_a_name_alone_is_a_list_of_one(tmp_path):
    content = {"classes": ["cat", "dog"], "image_labels": {"im0": "cat", "im1": ""}}
    assert labels(json_labels(tmp_path, content)) == {"im0": "cat", "im1": ""}


@pytest.mark.parametrize(
    ("objects", "wanted"),
    [
        ("<object><name>traffic\n light</name></object>", "traffic light"),
        ("<object><name>cat</name><name>dog</name></object>", "two names"),
        ("<object><name>cat</name><part><name>head</name></part></object>", "cat"),
    ],
)
def test_names_of_objects(tmp_path, objects, wanted):
    photograph(tmp_path / "JPEGImages/a.jpg")
    photograph(tmp_path / "JPEGImages/b.jpg")
    (tmp_path / "Annotations").mkdir()
    cow = "<annotation><object><name>cow</name></object></annotation>"
    (tmp_path / "Annotations/b.xml").write_text(cow)
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{objects}</annotation>")
    if wanted == "two names":
        with pytest.raises(BadFileError, match=wanted):
            open_dataset(tmp_path, split="all").labels("a")
    else:
        assert labels(tmp_path)["a"] == wanted


@pytest.mark.parametrize(("strange", "told"), [(np.nan, "nan"), (0.7, "0.7"), (2, "2.0")])
def test_a_vector_of_other_numbers_costs_its_photograph(tmp_path, strange, told):
    vectors = {f"2007_00000{n}": np.eye(20)[n] for n in range(3)}
    vectors["2007_000001"][5] = strange
    for id in vectors:
        photograph(tmp_path / f"JPEGImages/{id}.jpg")
    ids, rows = np.array(list(vectors)), np.stack(list(vectors.values()))
    for write in (
        lambda: np.savez(tmp_path / "cls_labels.npz", ids=ids, labels=rows),
        lambda: np.save(tmp_path / "cls_labels.npy", np.array(vectors)),
    ):
        write()
        source = open_dataset(tmp_path, split="all")
        assert np.flatnonzero(source.labels("2007_000002")).tolist() == [2]
        with pytest.raises(BadFileError, match=f"has the values .*{told}, wanted 0 or 1"):
            source.labels("2007_000001")
        (tmp_path / "cls_labels.npz").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("\n<!DOCTYPE HTML><html>im0.jpg,cat</html>", "a web page instead of the file"),
    ],
)
def test_what_was_never_fetched_is_called_so(tmp_path, content, message):
    photograph(tmp_path / "images/im0.jpg")
    for name in ("labels.csv", "labels.json"):
        (tmp_path / name).write_text(content)
        with pytest.raises(BadFileError, match=message):
            open_dataset(tmp_path, split="all")
        (tmp_path / name).unlink()


def test_labels_of_yolo_are_called_so(tmp_path):
    photograph(tmp_path / "images/im0.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/im0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(BadFileError, match=r"labels/im0\.txt is a list of boxes \(YOLO\)"):
        open_dataset(tmp_path, split="all")
