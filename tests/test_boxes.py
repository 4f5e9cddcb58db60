"""Boxes of VOC and COCO files and of masks, on grids, and what a combiner makes of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import toy_world
from PIL import Image

from wsss_jax.combiner import boxes as boxed
from wsss_jax.combiner import record
from wsss_jax.combiner.boxes import Boxed
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.provenance import sources_of
from wsss_jax.datasets import boxes, synthetic, views
from wsss_jax.datasets.boxes import Boxes
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError, UserError

XML = """<annotation><size><width>{width}</width><height>20</height></size>
<object><name>cat</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object>
<object><name>dog</name></object></annotation>"""


def photograph(path, exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(path, **({"exif": exif} if exif else {}))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: what is left as stored is on top
    return exif


@pytest.mark.parametrize("exif", [None, turned()])
def test_boxes_of_voc_lie_in_shares_of_the_upright_photograph(tmp_path, exif):
    photograph(tmp_path / "JPEGImages" / "a.jpg", exif)
    photograph(tmp_path / "JPEGImages" / "b.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(XML.format(width=40))
    source = open_dataset(tmp_path, split="all")
    read = boxes.reader_of(views.only(source, ("cat",)))
    found = read("a")
    # Pixels 10 to 19 of 40 across and 5 to 9 of 20 down; upright, down has become leftwards.
    wanted = [0.25, 0.25, 0.5, 0.5] if exif is None else [0.25, 0.5, 0.5, 0.75]
    assert found is not None and found.names == ("cat",) and read("b") is None
    np.testing.assert_allclose(found.corners, [wanted])


def test_boxes_of_another_picture_are_refused(tmp_path):
    photograph(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(XML.format(width=50))
    with pytest.raises(BadFileError, match="50×20 pixels, the photograph has 40×20"):
        boxes.reader_of(open_dataset(tmp_path, split="all"))("a")


def test_boxes_of_coco_by_hand(tmp_path):
    photograph(tmp_path / "val" / "a.jpg")
    things = [
        {"image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 10]},
        {"image_id": 1, "category_id": 7, "bbox": [1, 1, 0, 4]},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 20}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": things,
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    found = boxes.reader_of(open_dataset(tmp_path, split="val"))("a")
    assert found is not None and found.names == ("cat",)
    np.testing.assert_allclose(found.corners, [[0.25, 0.25, 0.75, 0.75]])


def test_boxes_around_masks_hold_every_pixel_of_their_class(tmp_path):
    source = open_dataset(synthetic.write(tmp_path, 3, 0), split="all")
    first, second = source.ids[:2]
    read = boxes.around_masks(source, (first,))
    assert read(second) is None
    mask, names = source.mask(first), source.classes.names
    drawn = read(first)
    assert mask is not None and drawn is not None
    cells = boxed.on_grid(drawn, names, mask.shape)
    assert cells is not None
    found = cells.allowed(len(names))
    for label in np.flatnonzero(source.labels(first)):
        assert found[(mask == label + 1).ravel(), label].all() and not found[:, label].all()
    with pytest.raises(UserError, match="has no boxes"):
        boxes.reader_of(source)


def test_cells_of_boxes_by_hand():
    given = Boxes(
        ("cat", "cow", "cat"), np.array([[0, 0, 0.5, 0.26], [0, 0, 1, 1], [0.9, 0.9, 1, 1]])
    )
    found = boxed.on_grid(given, ("dog", "cat"), (2, 4))
    assert found is not None and found.rows.tolist() == [1, 1]
    np.testing.assert_array_equal(found.inside, [[1, 1, 0, 0, 0, 0, 0, 0], [0] * 7 + [1]])
    np.testing.assert_array_equal(found.allowed(2), [[1, c] for c in (1, 1, 0, 0, 0, 0, 0, 1)])
    assert boxed.on_grid(given, ("dog",), (2, 4)) is None


def test_the_highest_share_of_a_box_is_lifted_and_no_more():
    one = Boxed(np.array([0]), np.array([[True, True, True, True, False]]))
    maps = np.array([[0.1], [0.3], [0.2], [0.0], [0.9]], np.float32)
    found = boxed.lifted(maps, one, share=0.5, thresholds=np.array([0.25]))
    np.testing.assert_allclose(found[:, 0], [0.1, 0.3, 0.2525, 0.0, 0.9], rtol=1e-5)


def test_a_combiner_respects_boxes_and_tells_of_them(tmp_path):
    inputs = toy_world.written(tmp_path / "world")
    source, ids = inputs.source, inputs.source.ids
    settings = Combining(cells=24, walk_steps=8, rounds=1, boxes=0.3)
    read = boxes.around_masks(source, ids[:-1])
    given = replace(inputs, boxes=read)
    run = learn(given, tmp_path / "run", settings, ids=ids)
    thresholds = record.load(run, given)[1].thresholds
    made = fuse(run, given, tmp_path / "fused", ids=ids).maps
    for id in ids[:-1]:
        maps = made.get_scores(id)
        names = [source.classes.names[label] for label in maps.classes]
        drawn = read(id)
        assert drawn is not None
        found = boxed.on_grid(drawn, names, maps.scores.shape[:2])
        assert found is not None
        rows = maps.scores.reshape(-1, len(names))
        assert (thresholds > 0).all() and (rows[~found.allowed(len(names))] < 0.5).all()
        ground = 1 - rows.sum(axis=1)
        for inside in found.inside:
            assert (rows[inside].max(axis=1) > ground[inside]).mean() >= 0.3
    assert "boxes" in {one.supervision for one in sources_of(made)}
    with pytest.raises(UserError, match="has no boxes"):
        fuse(run, inputs, tmp_path / "other", ids=ids)
