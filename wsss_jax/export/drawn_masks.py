"""Masks of many photographs in one file, as annotation tools give them back: COCO JSON, CVAT XML.

Such a file holds every photograph of the task, those too that nobody touched; ``stated`` tells
which masks count. COCO files of Label Studio hold annotated photographs alone. Not here: Label
Studio's own JSON (``brush_tasks``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data import coco_regions
from wsss_jax.data.classes import ClassList, to_mask_index
from wsss_jax.data.files import MAX_PIXELS
from wsss_jax.data.texts import MISTAKES
from wsss_jax.datasets.coco_entries import (
    Annotation,
    Photograph,
    painted,
    read_entries,
)
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.export.exported import APPROVED
from wsss_jax.formats.bounded import read_bytes

MAX_XML = 2**30
"""Larger files are refused."""

_AREAS = ("mask", "polygon")
_TAG = "tag"
_BY_PEOPLE = ("manual", "semi-auto")
_OTHERS = ("box", "polyline", "points", "ellipse", "cuboid", "skeleton")


class Drawn(NamedTuple):
    """One photograph of such a file.

    name: as the file tells. read: draws its mask (H,W); BadFileError where it cannot be drawn. why:
    what the file tells of a person who edited or approved it; empty where it tells nothing.
    """

    name: PurePosixPath
    read: Callable[[], np.ndarray]
    why: str = ""


class _Shape(NamedTuple):
    kind: str
    told: Mapping[str, str]


def of_coco(path: Path, content: Any, classes: ClassList) -> list[Drawn]:
    """The photographs of a COCO file; its categories go by their names. Raises BadFileError."""
    own, images, things = read_entries(path, content, path.parent)
    known = {
        n: name
        for n, name in enumerate(own.names)
        if name.casefold() != APPROVED or name in classes.names  # CVAT lists tags, too
    }
    try:
        label = {n: classes.index(name) for n, name in known.items()}
    except UserError as problem:
        raise BadFileError(f"{path}: {problem}") from problem
    objects: dict[Any, list[Annotation]] = {}
    for number, thing in things or ():
        objects.setdefault(number, []).append(thing)
    maker = content.get("info")
    by_studio = isinstance(maker, dict) and maker.get("contributor") == "Label Studio"
    why = "annotated in Label Studio" if by_studio else ""
    drawn = []
    for image in images:
        held = [one for one in objects.get(image.number, ()) if one.label in label]
        held = [replace(one, label=label[one.label]) for one in held]
        drawn.append(Drawn(PurePosixPath(image.name), partial(_of_objects, path, image, held), why))
    return drawn


def of_cvat(path: Path, classes: ClassList) -> list[Drawn]:
    """The photographs of CVAT's "CVAT for images 1.1". Raises BadFileError."""
    try:
        found = list(_images(read_bytes(path, MAX_XML)))
    except (expat.ExpatError, *MISTAKES) as problem:
        raise BadFileError(f"{path}: not CVAT for images 1.1 ({problem})") from problem
    sources = {shape.told.get("source") for _, shapes in found for shape in shapes}
    # Versions that call every uploaded shape manual tell nothing by it.
    telling = not sources.isdisjoint({"file", "auto"})
    return [
        Drawn(
            PurePosixPath(about["name"].replace("\\", "/")),
            partial(_of_shapes, path, about, [one for one in shapes if one.kind != _TAG], classes),
            _told_of(shapes, telling=telling),
        )
        for about, shapes in found
    ]


def _told_of(shapes: Sequence[_Shape], *, telling: bool) -> str:
    """Why a photograph counts, by its tags and by where CVAT tells that its shapes are from."""
    tags = {shape.told.get("label", "").casefold() for shape in shapes if shape.kind == _TAG}
    if APPROVED in tags:
        return f'tagged "{APPROVED}"'
    drawn = {shape.told.get("source") for shape in shapes if shape.kind != _TAG}
    return "edited in CVAT" if telling and not drawn.isdisjoint(_BY_PEOPLE) else ""


def _of_objects(
    path: Path, image: Photograph, things: Sequence[Annotation]
) -> UInt8[np.ndarray, "H W"]:
    try:
        if image.size is None or not 0 < image.size[0] * image.size[1] <= MAX_PIXELS:
            raise UserError(f"(height, width) {image.size}")
        if any(thing.region is None for thing in things):
            raise UserError("an object without a region, as a box has none")
        return painted(things, image.size)
    except UserError as problem:
        raise BadFileError(f"{path}: {image.name}: {problem}") from problem


def _of_shapes(
    path: Path, about: Mapping[str, str], shapes: Sequence[_Shape], classes: ClassList
) -> UInt8[np.ndarray, "H W"]:
    """Shapes over one another in CVAT's order: by z_order, then as they stand."""
    try:
        size = (int(about["height"]), int(about["width"]))
        if not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise UserError(f"a photograph of {size[1]}×{size[0]} pixels")
        mask = np.zeros(size, np.uint8)
        for shape in sorted(shapes, key=lambda shape: int(shape.told.get("z_order", 0))):
            value = to_mask_index(np.array([classes.index(shape.told["label"])]))
            _draw(shape, int(value[0]), mask)
        return mask
    except MISTAKES as problem:
        raise BadFileError(f"{path}: {about.get('name')}: {problem}") from problem


def _draw(shape: _Shape, value: int, mask: UInt8[np.ndarray, "H W"]) -> None:
    told = shape.told
    if shape.kind in _OTHERS:
        raise UserError(f"a {shape.kind} of {told['label']}, wanted masks or polygons")
    if shape.kind == "polygon":
        corners = [float(n) for point in told["points"].split(";") for n in point.split(",")]
        mask[coco_regions.draw([corners], mask.shape)] = value
        return
    left, top, width, height = (int(told[name]) for name in ("left", "top", "width", "height"))
    counts = np.array([int(count) for count in told["rle"].split(",")])
    part = mask[top : top + height, left : left + width]
    if min(left, top) < 0 or part.shape != (height, width) or counts.min(initial=0) < 0:
        raise UserError(f"a mask of {told['label']} that is not within the photograph")
    if counts.sum() != width * height:
        raise UserError(f"a mask of {counts.sum()} pixels in a box of {width}×{height}")
    part[np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)] = value


def _images(content: bytes) -> Iterator[tuple[dict[str, str], list[_Shape]]]:
    """The attributes of every image element, and the shapes in it."""
    parser = expat.ParserCreate()
    found: list[tuple[dict[str, str], list[_Shape]]] = []
    opened: list[str] = []

    def refuse(*_: Any) -> None:
        raise UserError("a DOCTYPE, wanted the file as CVAT writes it")

    def start(tag: str, told: dict[str, str]) -> None:
        opened.append(tag)
        if opened == ["annotations", "track"]:
            raise UserError("tracks of a video, wanted images")
        if opened == ["annotations", "image"]:
            found.append((told, []))
        elif opened == ["annotations", "image", tag] and tag in (*_AREAS, *_OTHERS, _TAG):
            found[-1][1].append(_Shape(tag, told))

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: opened.pop() and None
    parser.Parse(content, True)
    if not found or not all("name" in about for about, _ in found):
        raise UserError("no images with names in it")
    yield from found
