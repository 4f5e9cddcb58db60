"""Masks as objects: COCO instances with run lengths, and polygons of YOLO.

An image label does not count objects, so an object is a connected region of one class (corners
touch), or all of the class. Pixels that are not decided (255) are in no object.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from wsss_jax.data.classes import ClassList, to_class_index, to_mask_index
from wsss_jax.errors import UserError
from wsss_jax.export.exported import Options, Picture, Written
from wsss_jax.formats.run_lengths import coco_counts
from wsss_jax.ops import outlines
from wsss_jax.ops.components import box_around

COCO_FILE = "annotations/instances_default.json"
"""Where COCO, CVAT and this program look for instances."""


def coco(picture: Picture, options: Options) -> Written:
    """The entry of an image and its objects.

    ``iscrowd`` is 0 for all: 1 would tell trainers and COCO's own evaluation to pass the region
    over. Run lengths are allowed for either (pycocotools), area and box are those of the pixels.
    """
    height, width = picture.size
    objects, small = _objects(picture, options)
    entries = [
        {
            "image_id": picture.number,
            "category_id": thing.value,
            "segmentation": {
                "size": [height, width],
                "counts": coco_counts(thing.region, at=(thing.top, thing.left), size=picture.size),
            },
            "area": float(thing.region.sum()),
            "bbox": [float(n) for n in (thing.left, thing.top, *thing.region.shape[::-1])],
            "iscrowd": 0,
        }
        for thing in objects
    ]
    image = {"id": picture.number, "file_name": str(picture.name), "width": width, "height": height}
    return Written({}, {"image": image, "objects": entries}, small)


def coco_file(notes: Sequence[Any], classes: ClassList) -> Mapping[str, bytes]:
    """The instances file. Categories are numbered like mask values, from 1."""
    objects = [thing for note in notes for thing in note["objects"]]
    values = to_mask_index(np.arange(len(classes))).tolist()
    content = {
        "info": {"description": "masks from image labels, wsss_jax"},
        "licenses": [],
        "images": [note["image"] for note in notes],
        "annotations": [{"id": number, **thing} for number, thing in enumerate(objects, start=1)],
        "categories": [
            {"id": value, "name": name, "supercategory": ""}
            for value, name in zip(values, classes.names, strict=True)
        ],
    }
    return {COCO_FILE: json.dumps(content, ensure_ascii=False).encode()}


def yolo(picture: Picture, options: Options) -> Written:
    """The photograph below images/ and its polygons below labels/, where Ultralytics finds them.

    A line is a class from 0 and corners x y in shares of the width and height. Polygons run along
    pixel edges and have no holes, so a hole is joined to the outside by a cut of no width.
    """
    if options.objects != "region":
        raise UserError("a polygon is one region; leave --objects at region")
    height, width = picture.size
    lines = []
    objects, small = _objects(picture, options)
    labels = to_class_index(np.array([thing.value for thing in objects], np.int64)).tolist()
    for thing, label in zip(objects, labels, strict=True):
        line = outlines.bridged(outlines.outline(thing.region))
        corner, whole = np.array([thing.left, thing.top]), np.array([width, height])
        corners = (line + corner) / whole
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in corners.ravel())]))
    files = {
        f"images/{picture.stem}{picture.name.suffix}": picture.source.encoded(picture.id),
        f"labels/{picture.stem}.txt": "".join(f"{line}\n" for line in lines).encode(),
    }
    return Written(files, left_out=small)


def yolo_file(notes: Sequence[Any], classes: ClassList) -> Mapping[str, bytes]:
    """data.yaml, whose paths start where it lies."""
    # JSON's quoted strings are YAML's, whatever a class is called.
    names = "".join(
        f"  {label}: {json.dumps(name, ensure_ascii=False)}\n"
        for label, name in enumerate(classes.names)
    )
    warning = "# Nothing is held out: split the images before a number on val means anything.\n"
    return {"data.yaml": f"{warning}train: images\nval: images\nnames:\n{names}".encode()}


class _Thing(NamedTuple):
    """One object: its mask value, its pixels in the box around it, and where that box lies."""

    value: int
    region: Bool[np.ndarray, "h w"]
    top: int
    left: int


def _objects(picture: Picture, options: Options) -> tuple[list[_Thing], int]:
    """The objects of an image, in the order of the classes, and how many were too small."""
    found: list[_Thing] = []
    small = 0
    for value in to_mask_index(np.arange(len(picture.classes))).tolist():
        mask = picture.pixels == value
        for region, rows, columns in _parts(mask, options):
            if region.sum() < options.smallest:
                small += 1
            else:
                found.append(_Thing(value, region, rows.start, columns.start))
    return found, small


def _parts(mask: np.ndarray, options: Options) -> Iterator[tuple[np.ndarray, slice, slice]]:
    if not mask.any():
        return
    if options.objects == "region":
        for region, (rows, columns) in outlines.regions(mask):
            yield region, rows, columns
        return
    box = box_around(mask)
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    yield mask[rows, columns], rows, columns
