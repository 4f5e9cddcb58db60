"""Boxes of objects by photograph: of a table, VOC's Annotations, COCO's JSON, or around masks.

A reader gives the boxes of one photograph, or None where nobody drew any. Boxes lie in shares of
the upright photograph's height and width, so that every grid can be asked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.ids import Index
from wsss_jax.data.mask_files import upright
from wsss_jax.data.photographs import header
from wsss_jax.data.provenance import NOT_STATED
from wsss_jax.datasets import box_tables, labels
from wsss_jax.datasets.coco import CocoSource
from wsss_jax.datasets.source import PictureFolder, Source
from wsss_jax.datasets.views import View
from wsss_jax.errors import BadFileError, UserError, first_few
from wsss_jax.ops.components import box_around
from wsss_jax.types import Provenance, Size


class Boxes(NamedTuple):
    """The boxes of one photograph.

    names: classes, one for each box. corners: top, left, bottom, right, in [0, 1].
    """

    names: tuple[str, ...]
    corners: Float[np.ndarray, "n 4"]


def largest(found: Boxes | None, classes: Sequence[str]) -> Float[np.ndarray, "c 4"]:
    """The corners of the largest box of each class, zeros for a class without one."""
    corners, area = np.zeros((len(classes), 4), np.float32), np.zeros(len(classes))
    for name, box in zip(*(found or ((), ())), strict=True):
        row = classes.index(name) if name in classes else None
        size = (box[2] - box[0]) * (box[3] - box[1])
        if row is not None and size > area[row]:
            corners[row], area[row] = box, size
    return corners


BOXES = Provenance("boxes of objects", NOT_STATED, "boxes")
"""What people provided where boxes are used, for tables of results."""

Reader: TypeAlias = Callable[[str], Boxes | None]
"""From the id of a photograph to its boxes, None where it has none. Raises BadFileError."""


_Corners: TypeAlias = Sequence[int | float]  # top, left, bottom, right in pixels


def reader_of(source: Source) -> Reader:
    """The boxes that a data set comes with. UserError where it has none."""
    read = reader_if_any(source)
    if read is None:
        raise UserError(
            f"{source.name} has no boxes; wanted {box_tables.NAME} with the columns file,label,"
            f"{','.join(box_tables.COLUMNS)} in pixels, Annotations/ with one XML file a "
            "photograph (VOC) or the JSON of COCO"
        )
    if isinstance(read, TableReader) and read.table.strangers:
        names = read.table.strangers
        few = first_few(names)
        print(f"boxes of {len(names)} photograph(s) that are not there count for nothing: {few}")
    return read


def reader_if_any(source: Source) -> Reader | None:
    """The boxes that a data set comes with, None where it has none. BadFileError."""
    if isinstance(source, View):
        return reader_if_any(source.whole)
    if isinstance(source, CocoSource):
        return partial(_of_coco, source)
    if not isinstance(source, PictureFolder):
        return None
    annotated = (source.root / labels.ANNOTATIONS).is_dir()
    return of_table(source) or (partial(_of_xml, source) if annotated else None)


@dataclass(frozen=True)
class TableReader:
    """The boxes that a table gives to the photographs of a folder; a ``Reader``."""

    source: PictureFolder
    table: box_tables.BoxTable

    def __call__(self, id: str) -> Boxes | None:
        """The boxes of one photograph."""
        size = self.source.size(id)
        found = self.table.of(id, size)
        return _shares([row.name for row in found], [row.corners for row in found], size)


def of_table(source: PictureFolder) -> TableReader | None:
    """The boxes of boxes.csv or of the table of labels, None where neither has any.

    BadFileError for a boxes.csv without their columns.
    """
    own = source.root / box_tables.NAME
    for path in (own, source.table.path):
        table = box_tables.box_table(path, Index(source.images), source.classes)
        if table is not None:
            return TableReader(source, table)
        if path == own and own.is_file():
            raise BadFileError(
                f"{own}: no columns of boxes; wanted file,label,{','.join(box_tables.COLUMNS)}"
            )
    return None


def around_masks(source: Source, ids: Sequence[str]) -> Reader:
    """Boxes around the true regions of these images: what people would have drawn, for studies.

    Each 8-connected region of a class has a box. Reads true masks, which whoever reports a result
    of it has to tell.
    """
    return partial(_around, source, frozenset(ids))


def _around(source: Source, ids: frozenset[str], id: str) -> Boxes | None:
    from scipy import ndimage  # a quarter of a second, which most commands do without

    mask = source.mask(id) if id in ids else None
    if mask is None:
        return None
    names, boxes = [], []
    shown = np.flatnonzero(source.labels(id))
    for label, value in zip(shown, to_mask_index(shown), strict=True):
        regions = np.zeros(mask.shape, np.int32)
        ndimage.label(mask == value, structure=np.ones((3, 3)), output=regions)
        own = [tuple(box_around(regions == number)) for number in range(1, regions.max() + 1)]
        names += [source.classes.names[label]] * len(own)
        boxes += own
    return _shares(names, boxes, mask.shape)


def _of_coco(source: CocoSource, id: str) -> Boxes | None:
    names, boxes = [], []
    for thing in (source.objects or {}).get(id, ()):
        if thing.box is not None:
            left, top, width, height = thing.box
            names.append(source.classes.names[thing.label])
            boxes.append((top, left, top + height, left + width))
    return _turned(source.path(id), names, boxes, source.sizes[id])


def _of_xml(source: PictureFolder, id: str) -> Boxes | None:
    """VOC counts pixels from 1, and a box holds its last pixel."""
    path = source.root / labels.ANNOTATIONS / f"{id}.xml"
    if not path.is_file():
        return None
    objects, told = labels.xml_objects(path)
    found = [one for one in objects if "bndbox/xmin" in one]
    try:
        sides = [[float(one[f"bndbox/{side}"]) for side in _SIDES] for one in found]
        if not np.isfinite(sides).all():
            raise ValueError("numbers that are not finite")
        size = (int(told["height"]), int(told["width"])) if told else None
        names = [one["name"] for one in found]
    except (KeyError, ValueError) as problem:
        raise BadFileError(f"{path}: a box without its four numbers ({problem!r})") from problem
    boxes = [(top - 1, left - 1, bottom, right) for top, left, bottom, right in sides]
    return _turned(source.path(id), names, boxes, size)


_SIDES = ("ymin", "xmin", "ymax", "xmax")


def _turned(
    path: Path, names: Sequence[str], boxes: Sequence[_Corners], told: Size | None
) -> Boxes | None:
    """Boxes in pixels of a picture of this size, turned upright with the photograph."""
    if not boxes:
        return None
    photograph = header(path, str(path))
    size = told if told and min(told) > 0 else photograph.size
    if size not in (photograph.raw, photograph.size):
        raise BadFileError(
            f"{path}: its boxes are of a picture of {size[1]}×{size[0]} pixels, the photograph "
            f"has {photograph.size[1]}×{photograph.size[0]}"
        )
    if photograph.orientation == 1 or size != photograph.raw:
        return _shares(names, boxes, size)
    turned = []
    for top, left, bottom, right in boxes:
        mask = np.zeros(size, np.uint8)
        rows = slice(max(math.floor(top), 0), math.ceil(bottom))
        mask[rows, max(math.floor(left), 0) : math.ceil(right)] = 1
        turned.append(tuple(box_around(upright(mask, photograph) == 1)))
    return _shares(names, turned, photograph.size)


def _shares(names: Sequence[str], boxes: Sequence[_Corners], size: Size) -> Boxes | None:
    if not boxes:
        return None
    scale = np.array([size[0], size[1], size[0], size[1]], np.float64)
    return Boxes(tuple(names), np.clip(np.asarray(boxes, np.float64) / scale, 0, 1))
