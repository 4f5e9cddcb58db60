"""What a JSON file of COCO tells of its categories, photographs and objects, one entry at a time.

Annotation tools write the same numbers as 7, 7.0 and "7", leave fields out or fill them with null,
and write polygons flat or in pairs. Not here: drawing regions (``coco_regions``), and which entries
belong to which photograph (``coco``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data import coco_regions
from wsss_jax.data.classes import NO_CLASS, ClassList, to_mask_index
from wsss_jax.data.texts import MISTAKES
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.types import IGNORE, Size


@dataclass(frozen=True)
class Annotation:
    """One object or crowd: its class, and its region as polygons or run lengths, not yet drawn.

    area: in pixels, 0 where the file tells none. region: None where there is a box alone. box:
    left, top, width, height in pixels.
    """

    label: int
    crowd: bool
    area: float
    region: Any
    box: tuple[float, float, float, float] | None = None


class Photograph(NamedTuple):
    """One entry of a photograph: its name and number, its size where told, and its folder."""

    name: str
    number: Any
    size: Size | None
    folder: Path


class Entries(NamedTuple):
    """A whole file. things: objects with the numbers of their photographs; None without any."""

    classes: ClassList
    photographs: list[Photograph]
    things: list[tuple[Any, Annotation]] | None


def read_entries(path: Path, content: Any, folder: Path) -> Entries:
    """What the JSON ``content`` of a file tells of photographs in ``folder``. BadFileError."""
    try:
        _check_lists(content)
        given = content.get("annotations")
        classes, numbers = read_categories(content["categories"], given or ())
        photographs = [read_photograph(image, folder) for image in content["images"]]
        found = None if given is None else [read_annotation(thing, numbers) for thing in given]
        things = None if found is None else [thing for thing in found if thing is not None]
    except UserError as problem:
        raise BadFileError(f"{path}: {problem}") from problem
    except MISTAKES as problem:
        raise BadFileError(f"{path}: not an instances file of COCO ({problem!r})") from problem
    return Entries(classes, photographs, things)


def _check_lists(content: Any) -> None:
    """UserError where the file, or one of its three lists, has another form."""
    if not isinstance(content, dict):
        raise UserError(f"a {type(content).__name__}, wanted images, categories and annotations")
    for name in ("images", "categories", "annotations"):
        part = content.get(name, [] if name == "annotations" else None)
        if name == "annotations" and part is None:
            continue  # of a test set
        if not isinstance(part, list) or not all(isinstance(one, dict) for one in part):
            raise UserError(f"{name} is {str(part)[:40]}, wanted a list of objects: [{{…}}, …]")


def read_categories(
    categories: Sequence[Mapping[str, Any]], things: Sequence[Mapping[str, Any]]
) -> tuple[ClassList, dict[Any, int | None]]:
    """Classes in the order of their numbers, which may have gaps; one name twice is one class.

    Roboflow writes the name of the project as a category that all others belong to: it is no class,
    and neither is one that is called background.
    """
    names: dict[Any, str] = {}
    for category in categories:
        number, name = _number(category["id"]), category["name"]
        if not isinstance(name, str):
            raise UserError(f"category {number} has the name {name!r}, wanted a text")
        if names.setdefault(number, name) != name:
            raise UserError(f"category {number} is called {names[number]} and {name}; keep one")
    ordered = sorted(
        categories, key=lambda c: (isinstance(_number(c["id"]), str), _number(c["id"]))
    )
    used = {_number(thing["category_id"]) for thing in things}
    above = {category.get("supercategory") for category in ordered[1:]}
    if ordered and above == {ordered[0]["name"]} and _number(ordered[0]["id"]) not in used:
        ordered = ordered[1:]
    kept = [c for c in ordered if c["name"].strip().casefold() not in NO_CLASS]
    classes = ClassList(tuple(dict.fromkeys(category["name"].strip() for category in kept)))
    numbers: dict[Any, int | None] = {_number(c["id"]): None for c in ordered}
    return classes, numbers | {_number(c["id"]): classes.index(c["name"]) for c in kept}


def _number(number: Any) -> Any:
    """The number of an image or category: programs write 7, 7.0 and "7" for the same one."""
    if isinstance(number, str) and number.isdecimal() and number.isascii() and len(number) < 20:
        return int(number)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    hash(number)  # a list is no number
    return number


_LONGEST = 255
"""Bytes of a name that file systems take."""


def read_photograph(image: Mapping[str, Any], folder: Path) -> Photograph:
    """One entry of images, of photographs in ``folder``. Raises the errors of MISTAKES."""
    name = image["file_name"]
    if not isinstance(name, str):
        raise UserError(f"image {image.get('id')} has the file name {name!r}, wanted a text")
    name = name.replace("\\", "/")
    if any(len(part.encode(errors="replace")) > _LONGEST for part in name.split("/")):
        raise UserError(f"a file name of {len(name)} characters: {name[:40]!r} …")
    height, width = image.get("height"), image.get("width")
    size = None if height is None or width is None else (int(height), int(width))
    return Photograph(name, _number(image["id"]), size, folder)


def read_annotation(
    thing: Mapping[str, Any], numbers: Mapping[Any, int | None]
) -> tuple[Any, Annotation] | None:
    """The number of the image, and the object in it; None for background."""
    number = _number(thing["category_id"])
    if number not in numbers:
        raise UserError(
            f"annotation {thing.get('id')} has category {number}, which is not among the categories"
        )
    label = numbers[number]
    if label is None:
        return None
    region = thing.get("segmentation") or None
    if isinstance(region, list):
        parts = [polygon for polygon in _parts(region) if polygon or polygon == 0]
        # Slivers of two corners cover nothing; alone they are a mistake of the image.
        region = [_compact(p) for p in parts if not _is_sliver(p)] or parts or None
    return _number(thing["image_id"]), Annotation(
        label,
        str(thing.get("iscrowd") or 0).lower() in ("1", "1.0", "true"),
        _area(thing.get("area")),
        region,
        _box(thing.get("bbox")),
    )


def _area(area: Any) -> float:
    """The area that a file tells, 0 where it tells none that can be."""
    known = isinstance(area, (int, float)) and math.isfinite(area) and area > 0
    return float(area) if known else 0.0


def _box(box: Any) -> tuple[float, float, float, float] | None:
    """The box that a file tells; None where it tells none that can be."""
    if not isinstance(box, list) or not all(isinstance(n, (int, float)) for n in box):
        return None
    known = len(box) == 4 and all(map(math.isfinite, box)) and min(box[2:]) > 0
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3])) if known else None


def _parts(region: list) -> list:
    """The polygons of a region: several, one flat list of numbers, or one list of pairs."""
    flat = isinstance(region[0], (int, float))
    pairs = len(region) > 2 and all(
        isinstance(p, list) and len(p) == 2 and isinstance(p[0], (int, float)) for p in region
    )
    return [region] if flat or pairs else region


def _is_sliver(polygon: Any) -> bool:
    """Whether a polygon has fewer than three corners, and so covers nothing."""
    if not isinstance(polygon, list):
        return False
    pairs = [n for pair in polygon for n in (pair if isinstance(pair, list) else [pair])]
    return len(pairs) < 6 and all(isinstance(n, (int, float)) for n in pairs)


def _compact(polygon: Any) -> Any:
    """A polygon as numbers, a quarter of the memory; what is no polygon stays for later to name."""
    try:
        corners = np.asarray(polygon, np.float64)
    except MISTAKES:
        return polygon
    return corners.ravel() if corners.ndim == 2 and corners.shape[1] == 2 else corners


def painted(things: Sequence[Annotation], size: Size) -> UInt8[np.ndarray, "H W"]:
    """Crowds lie under everything, then large under small: no object hides another whole."""
    regions = [thing.region for thing in things]
    coco_regions.check_pixels(regions, size)
    runs = coco_regions.runs_of(regions, size)
    counted = coco_regions.areas(runs, len(things))
    area = [t.area or n for t, n in zip(things, counted.tolist(), strict=True)]
    order = sorted(range(len(things)), key=lambda n: (not things[n].crowd, -area[n]))
    values = to_mask_index(np.array([thing.label for thing in things], np.int64))
    values[np.array([thing.crowd for thing in things], bool)] = IGNORE
    return coco_regions.paint(runs, np.asarray(order, np.int64), values.astype(np.uint8), size)
