"""COCO: instances JSON and photographs, as COCO itself, annotation tools and Roboflow write them.

Boxes are all that image labels need; masks are drawn where objects have regions
(``coco_regions``). Not here: keypoints, captions, and the panoptic files.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from wsss_jax.data import coco_regions
from wsss_jax.data.classes import ClassList, to_mask_index
from wsss_jax.data.files import MAX_PIXELS
from wsss_jax.data.ids import id_of_name
from wsss_jax.data.mask_files import upright
from wsss_jax.data.photographs import header, image_size, read_image
from wsss_jax.data.texts import MISTAKES, read_json
from wsss_jax.datasets.folders import ALL
from wsss_jax.datasets.lists import checked_ids, repeated, split_named
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.types import IGNORE, Size

MAX_JSON = 2**30
"""Larger annotation files are refused; that of train2017, the largest of COCO, has 448 MB."""

_PREFIX = "instances_"
_ROBOFLOW = "_annotations.coco.json"

ALONE = (_ROBOFLOW, "instances.json", "annotations.json", "coco.json", "result.json",
         "annotations/annotations.json", "annotations/coco.json")  # fmt: skip
"""Names that programs give to one file of annotations; result.json is Label Studio's."""


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


@dataclass(frozen=True)
class CocoSource:
    """A split of COCO. Ids are the names of the photographs without suffix.

    Where two photographs have one name, their folders come with it. files: (folder, name in it) by
    id. sizes: (H, W) by id, as the JSON tells, None where it does not. objects: by id; None where
    the JSON has no annotations (test sets). Crowds count as labels, and their pixels as IGNORE;
    where objects overlap, the smaller one lies on top.
    """

    name: str
    classes: ClassList
    ids: tuple[str, ...]
    files: Mapping[str, tuple[Path, str]]
    sizes: Mapping[str, Size | None]
    objects: Mapping[str, tuple[Annotation, ...]] | None

    @property
    def has_background(self) -> bool:
        """Pixels of no object are background."""
        return True

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Classes of all objects and crowds. MissingFileError where the JSON has no annotations."""
        found = np.zeros(len(self.classes), bool)
        if self.objects is None:
            raise MissingFileError(f"{self.name}: no annotations, so no labels of {id}")
        self._known(id)
        for thing in self.objects.get(id, ()):
            found[thing.label] = True
        return found

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph as RGB, upright, at its working size."""
        return read_image(self.path(id))

    def size(self, id: str) -> Size:
        """(height, width) of the upright photograph, from its header."""
        return image_size(self.path(id))

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """The drawn mask in mask numbering, of the size the JSON tells.

        None in test sets, where no object of the data set has a region, and where one of this
        image has none: then nobody knows which pixels are background.
        """
        if self.objects is None or not self._has_regions:
            return None
        things = self.objects.get(self._known(id), ())
        if any(thing.region is None for thing in things):
            return None
        size = self.sizes[id] or header(self.path(id), str(self.path(id))).raw
        if not 0 < size[0] * size[1] <= MAX_PIXELS or min(size) < 1:
            raise BadFileError(f"{self.name}: {id} is given {size[1]}×{size[0]} pixels")
        try:
            mask = _painted(things, size)
        except ValueError as problem:
            raise BadFileError(f"{self.name}: an object of {id}: {problem}") from problem
        with suppress(BadFileError):  # of the photograph, named when its turn comes
            mask = upright(mask, header(self.path(id), str(self.path(id))))
        return mask

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        return read_bytes(self.path(id))

    def path(self, id: str) -> Path:
        """The file of a photograph: where the JSON tells, else of that name in its folder."""
        folder, name = self.files[self._known(id)]
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BadFileError(f"{self.name}: file name {name!r} leaves {folder}")
        alone = folder / path.name
        return alone if not path.is_file() and alone.is_file() else path

    def _known(self, id: str) -> str:
        if id not in self.files:
            raise MissingFileError(f"{self.name}: no image {id}")
        return id

    @cached_property
    def _has_regions(self) -> bool:
        things = (self.objects or {}).values()
        return not things or any(t.region is not None for own in things for t in own)


def splits(root: Path) -> tuple[str, ...]:
    """Splits of a COCO folder: what stands after ``instances_``, or the folders of Roboflow.

    One file alone, of the names in ``ALONE``, is the split "train".
    """
    return tuple(_instances(root))


def _instances(root: Path) -> dict[str, Path]:
    """Files of annotations by split, sorted."""
    found = sorted((root / "annotations").glob(f"{_PREFIX}*.json"))
    if found:
        return {path.stem.removeprefix(_PREFIX): path for path in found}
    found = sorted(root.glob(f"*/{_ROBOFLOW}"))
    if found:
        return {path.parent.name: path for path in found}
    alone = (root / name for name in ALONE)
    first = next(
        (path for path in alone if path.is_file() and _is_instances(path, path.stat().st_mtime_ns)),
        None,
    )
    return {} if first is None else {"train": first}


@lru_cache
def _is_instances(path: Path, changed: int) -> bool:
    """Whether a file of a common name is one of COCO. A damaged one is: it is named when read."""
    try:
        content = read_json(path, MAX_JSON)
    except BadFileError:
        return True
    return isinstance(content, dict) and {"images", "categories"} <= set(content)


def open_coco(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> CocoSource:
    """A split of COCO: ``annotations/instances_<split>.json`` and the photographs.

    split: "val2017", or "val" where only one split starts so, or "all" for all that there are. The
    photographs lie in ``<split>/``, ``images/<split>/`` or ``images/``. Roboflow's
    ``<split>/_annotations.coco.json`` lies with its photographs. One file of a name in ``ALONE`` is
    the split "train". ids: these images instead of all. Raises BadFileError.
    """
    known = splits(root)
    names = known if split.lower() == ALL and known else (_split(root, split),)
    files = [_read(root, name) for name in names]
    if len({file.classes for file in files}) > 1:
        raise BadFileError(f"{root}: {', '.join(names)} have different classes; open one split")
    images = [image for file in files for image in file.images]
    stems = _ids(images, files[0].path)
    by_number = {(i.folder, i.number): stem for stem, i in zip(stems, images, strict=True)}
    if len(by_number) != len(stems):
        twice = repeated(str(image.number) for image in images)
        raise BadFileError(
            f"{files[0].path}: {len(twice)} image numbers stand in it twice: {twice[0]}"
        )
    objects: dict[str, list[Annotation]] = {}
    for file in files:
        for number, thing in file.things or ():
            key = (file.folder, number)
            if key not in by_number:
                raise BadFileError(
                    f"{file.path}: an annotation of image {number}, which is not in it"
                )
            objects.setdefault(by_number[key], []).append(thing)
    return CocoSource(
        name=f"{root.name}/{names[0] if len(names) == 1 else ALL}",
        classes=files[0].classes,
        ids=stems if ids is None else ids,
        files={s: (image.folder, image.name) for s, image in zip(stems, images, strict=True)},
        sizes={stem: image.size for stem, image in zip(stems, images, strict=True)},
        objects=None
        if any(file.things is None for file in files)
        else {id: tuple(found) for id, found in objects.items()},
    )


class _Image(NamedTuple):
    name: str
    number: Any
    size: Size | None
    folder: Path


class _File(NamedTuple):
    path: Path
    folder: Path
    classes: ClassList
    images: list[_Image]
    things: list[tuple[Any, Annotation]] | None


def _read(root: Path, name: str) -> _File:
    path = _instances(root)[name]
    folders = [root / name, root / "images" / name, root / "images", root]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    content = read_json(path, MAX_JSON)
    try:
        classes, numbers = _categories(content["categories"], content.get("annotations") or ())
        images = [_image(image, folder) for image in content["images"]]
        given = content.get("annotations")
        things = None if given is None else [_annotation(thing, numbers) for thing in given]
        for number in (*(image.number for image in images), *(n for n, _ in things or ())):
            hash(number)  # a list is no number
    except MISTAKES as problem:
        raise BadFileError(f"{path}: not an instances file of COCO ({problem!r})") from problem
    return _File(path, folder, classes, images, things)


def _ids(images: Sequence[_Image], path: Path) -> tuple[str, ...]:
    """Names without suffix where they are all different, else with the folders before them."""
    places = [PurePosixPath(image.name) for image in images]
    stems = [id_of_name(place.stem) for place in places]
    if repeated(stems):
        stems = [id_of_name(place.with_suffix("").as_posix()) for place in places]
    if repeated(stems):
        stems = [f"{image.folder.name}/{stem}" for stem, image in zip(stems, images, strict=True)]
    return checked_ids(tuple(stems), path)


def _painted(things: Sequence[Annotation], size: Size) -> UInt8[np.ndarray, "H W"]:
    """Crowds lie under everything, then large under small: no object hides another whole."""
    runs = coco_regions.runs_of([thing.region for thing in things], size)
    counted = coco_regions.areas(runs, len(things))
    area = [t.area or n for t, n in zip(things, counted.tolist(), strict=True)]
    order = sorted(range(len(things)), key=lambda n: (not things[n].crowd, -area[n]))
    values = to_mask_index(np.array([thing.label for thing in things], np.int64))
    values[np.array([thing.crowd for thing in things], bool)] = IGNORE
    return coco_regions.paint(runs, np.asarray(order, np.int64), values.astype(np.uint8), size)


def _split(root: Path, split: str) -> str:
    known = splits(root)
    near = [name for name in known if name.lower().startswith(split.lower())]
    found = split_named(split, dict.fromkeys(known)) or (near[0] if len(near) == 1 else None)
    if found is None:
        raise BadFileError(f"{root}: no split {split!r} (there are: {', '.join(known) or 'none'})")
    return found


def _categories(
    categories: Sequence[Mapping[str, Any]], things: Sequence[Mapping[str, Any]]
) -> tuple[ClassList, dict[Any, int]]:
    """Classes in the order of their numbers, which may have gaps; one name twice is one class.

    Roboflow writes the name of the project as a category that all others belong to: it is no class.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    used = {thing["category_id"] for thing in things}
    above = {category.get("supercategory") for category in ordered[1:]}
    if ordered and above == {ordered[0]["name"]} and ordered[0]["id"] not in used:
        ordered = ordered[1:]
    classes = ClassList(tuple(dict.fromkeys(category["name"] for category in ordered)))
    return classes, {category["id"]: classes.index(category["name"]) for category in ordered}


_LONGEST = 255
"""Bytes of a name that file systems take."""


def _image(image: Mapping[str, Any], folder: Path) -> _Image:
    name = str(image["file_name"]).replace("\\", "/")
    if any(len(part.encode(errors="replace")) > _LONGEST for part in name.split("/")):
        raise UserError(f"a file name of {len(name)} characters: {name[:40]!r} …")
    height, width = image.get("height"), image.get("width")
    size = None if height is None or width is None else (int(height), int(width))
    return _Image(name, image["id"], size, folder)


def _annotation(thing: Mapping[str, Any], numbers: Mapping[Any, int]) -> tuple[Any, Annotation]:
    if thing["category_id"] not in numbers:
        raise UserError(f"annotation {thing.get('id')} of unknown class {thing['category_id']}")
    region = thing.get("segmentation") or None
    if isinstance(region, list) and not isinstance(region[0], (int, float)):
        region = [_compact(polygon) for polygon in region if not _is_empty(polygon)] or None
    label = numbers[thing["category_id"]]
    return thing["image_id"], Annotation(
        label,
        bool(thing.get("iscrowd", 0)),
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


def _is_empty(polygon: Any) -> bool:
    return isinstance(polygon, list) and not polygon


def _compact(polygon: Any) -> Any:
    """A polygon as numbers, a quarter of the memory; what is no polygon stays for later to name."""
    try:
        return np.asarray(polygon, np.float64)
    except MISTAKES:
        return polygon
