"""Tables of boxes as people write them: what is read, and the one line for what cannot be."""

import numpy as np
import pytest
from PIL import Image

from wsss_jax.datasets import boxes
from wsss_jax.datasets.check import survey
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError

HALF = [[0.25, 0.25, 0.5, 0.75]]  # top, left, bottom, right of 10, 5, 30, 10 in 40×20 pixels


def written(folder, text, name="boxes.csv"):
    """Two photographs of 40×20 pixels, the second lying on its side, and a table."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "images").mkdir()
    picture = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    picture.save(folder / "images" / "a.jpg")
    picture.save(folder / "images" / "b.jpg", exif=exif)
    (folder / name).write_text(text)
    if name != "labels.csv":
        (folder / "labels.csv").write_text("file,label\na.jpg,cat\nb.jpg,dog\n")
    return open_dataset(folder, split="all")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("file,label,x1,y1,x2,y2\na.jpg,cat,10,5,30,10\n", HALF),
        ("file,label,x1,y1,x2,y2\na.jpg,Cat,30,10,10,5\n", HALF),  # corners swapped
        ("image;xmin;ymin;xmax;ymax;class\na;10,0;5;30;10;cat\nb;;;;;dog\n", HALF),
        ("file,label,left,top,right,bottom\na.jpg,cat,.25,.25,.75,.5\n", HALF),  # shares
        ("file,label,x1,y1,x2,y2\na.jpg,cat,-0.5,0,40.8,20\n", [[0, 0, 1, 1]]),
        ("file,label,x1,y1,x2,y2\nb.jpg,dog,0,0,20,40\na.jpg,cat,10,5,30,10\n", HALF),
    ],
)
def test_boxes_of_a_table_are_read_in_any_usual_form(tmp_path, text, wanted):
    read = boxes.reader_of(written(tmp_path, text))
    found = read("a")
    assert found is not None and found.names == ("cat",)
    np.testing.assert_allclose(found.corners, wanted)
    upright = read("b")  # 20×40 as people see it
    assert (upright is not None) == ("b.jpg" in text)
    if upright is not None:
        np.testing.assert_allclose(upright.corners, [[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ("cat,10,5,50,10", "the box of cat is 10, 5, 50, 10 in a photograph of 40×20 pixels"),
        ("cat,10,5,10,10", "the box of cat is 10, 5, 10, 10"),
        ("cat,.25,.25,.75,.5", "all boxes of the table in shares"),  # others are in pixels
        ("cat,10,x,30,10", "wanted four numbers"),
        ("cat,10,,30,10", "wanted four numbers"),
        ("cow,10,5,30,10", "'cow', which is no class"),
    ],
)
def test_a_box_that_cannot_be_is_an_error_of_its_photograph_alone(tmp_path, box, told):
    text = f"file,label,x1,y1,x2,y2\na.jpg,{box}\nb.jpg,dog,2,2,8,8\n"
    read = boxes.reader_of(written(tmp_path, text))
    with pytest.raises(BadFileError, match=told):
        read("a")
    assert read("b") is not None
    assert [one.where for one in survey(tmp_path).problems if one.kind == "boxes"] == ["a"]


def test_a_table_of_labels_may_have_the_boxes_too(tmp_path):
    text = "file,label,x1,y1,x2,y2\na.jpg,cat,10,5,30,10\na.jpg,dog,0,0,9,9\nb.jpg,dog,,,,\n"
    source = written(tmp_path, text, "labels.csv")
    read = boxes.reader_of(source)
    found = read("a")
    assert found is not None and found.names == ("cat", "dog") and read("b") is None
    assert source.labels("a").all()
    assert not [one for one in survey(tmp_path).notices if "x1" in str(one)]


@pytest.mark.parametrize("text", ["file,label,x,y,w,h\na.jpg,cat,1,1,8,8\n", "no,table\n1,2\n"])
def test_a_file_of_boxes_without_their_columns_is_never_passed_over(tmp_path, text):
    source = written(tmp_path, text)
    with pytest.raises(BadFileError, match=r"boxes\.csv"):
        boxes.reader_of(source)
    assert [one.kind for one in survey(tmp_path).problems] == ["boxes"]


def test_boxes_of_no_photograph_are_told_of(tmp_path, capsys):
    written(tmp_path, "file,label,x1,y1,x2,y2\na.jpg,cat,10,5,30,10\nz.jpg,cat,1,1,9,9\n")
    found = [one for one in survey(tmp_path).problems if one.kind == "boxes"]
    assert [one.where for one in found] == ["z.jpg"]
    assert "boxes of no photograph" in found[0].message
    boxes.reader_of(open_dataset(tmp_path, split="all"))
    told = "boxes of 1 photograph(s) that are not there count for nothing: z.jpg"
    assert told in capsys.readouterr().out
