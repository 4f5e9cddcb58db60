"""Boxes of objects by photograph: of VOC's Annotations, of COCO's JSON, or around true masks.

A reader gives the boxes of one photograph, or None where nobody drew any. Boxes lie in shares of
the upright photograph's height and width, so that every grid can be asked.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.mask_files import upright
from wsss_jax.data.photographs import header
from wsss_jax.datasets import labels
from wsss_jax.datasets.coco import CocoSource
from wsss_jax.datasets.source import PictureFolder, Source
from wsss_jax.datasets.views import View
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops.components import box_around
from wsss_jax.types import Size


class Boxes(NamedTuple):
    """The boxes of one photograph.

    names: classes, one for each box. corners: top, left, bottom, right, in [0, 1].
    """

    names: tuple[str, ...]
    corners: Float[np.ndarray, "n 4"]


Reader: TypeAlias = Callable[[str], Boxes | None]
"""From the id of a photograph to its boxes, None where it has none. Raises BadFileError."""


_Corners: TypeAlias = Sequence[int | float]  # top, left, bottom, right in pixels


def reader_of(source: Source) -> Reader:
    """The boxes that a data set comes with. UserError where its layout has none."""
    if isinstance(source, View):
        return reader_of(source.whole)
    if isinstance(source, CocoSource):
        return partial(_of_coco, source)
    if isinstance(source, PictureFolder) and (source.root / labels.ANNOTATIONS).is_dir():
        return partial(_of_xml, source)
    raise UserError(
        f"{source.name} has no boxes; wanted Annotations/ with one XML file a photograph (VOC) or "
        "the JSON of COCO, or leave out the setting boxes"
    )


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
        count = ndimage.label(mask == value, structure=np.ones((3, 3)), output=regions)
        names += [source.classes.names[label]] * int(count)
        boxes += [tuple(box_around(regions == number)) for number in range(1, int(count) + 1)]
    return _shares(names, boxes, mask.shape)


def _of_coco(source: CocoSource, id: str) -> Boxes | None:
    things = [thing for thing in (source.objects or {}).get(id, ()) if thing.box is not None]
    boxes = [(y, x, y + h, x + w) for x, y, w, h in (thing.box or () for thing in things)]
    names = [source.classes.names[thing.label] for thing in things]
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
