"""COCO: instances JSON and photographs, with masks drawn from its polygons and run lengths.

Polygons are filled bit for bit as in the reference code of COCO, and run lengths go down the
columns. Not here: keypoints, captions, and the panoptic files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wsss_jax.data.classes import ClassList, to_mask_index
from wsss_jax.data.files import MAX_PIXELS, image_size, read_image
from wsss_jax.data.labels import checked_ids, read_json, repeated
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.types import IGNORE, Size

MAX_JSON = 2**30
"""Larger annotation files are refused; that of train2017, the largest of COCO, has 448 MB."""

MAX_OUTLINE = 20_000_000
"""Longer outlines are refused, in fifths of a pixel: they take memory and enclose no object."""

_FINER = 5
_PREFIX = "instances_"


@dataclass(frozen=True)
class Annotation:
    """One object or crowd: its class, and its region as polygons or run lengths, not yet drawn."""

    label: int
    crowd: bool
    area: float
    region: Any


@dataclass(frozen=True)
class CocoSource:
    """A split of COCO. Ids are the names of the photographs without suffix.

    names: file by id, relative to ``folder``. sizes: (H, W) by id, as the JSON says. objects: by
    id; None where the JSON has no annotations (test sets). Crowds count as labels, and their
    pixels as IGNORE; where objects overlap, the smaller one lies on top.
    """

    name: str
    folder: Path
    classes: ClassList
    ids: tuple[str, ...]
    names: Mapping[str, str]
    sizes: Mapping[str, Size]
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
        """The photograph as RGB in raw orientation."""
        return read_image(self._path(id))

    def size(self, id: str) -> Size:
        """(height, width) from the header of the photograph."""
        return image_size(self._path(id))

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """The drawn mask in mask numbering, of the size the JSON says; None in test sets."""
        if self.objects is None:
            return None
        self._known(id)
        height, width = self.sizes[id]
        if not 0 < height * width <= MAX_PIXELS or min(height, width) < 1:
            raise BadFileError(f"{self.name}: {id} is said to have {width}×{height} pixels")
        mask = np.zeros((height, width), np.uint8)
        values = to_mask_index(np.arange(len(self.classes)))
        # Crowds lie under everything, then large under small: no object hides another whole.
        order = sorted(self.objects.get(id, ()), key=lambda thing: (not thing.crowd, -thing.area))
        for thing in order:
            try:
                region = draw(thing.region, (height, width))
            except ValueError as problem:
                raise BadFileError(f"{self.name}: an object of {id}: {problem}") from problem
            mask[region] = IGNORE if thing.crowd else values[thing.label]
        return mask

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        return read_bytes(self._path(id))

    def _known(self, id: str) -> None:
        if id not in self.names:
            raise MissingFileError(f"{self.name}: no image {id}")

    def _path(self, id: str) -> Path:
        self._known(id)
        path = self.folder / self.names[id]
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise BadFileError(f"{self.name}: file name {self.names[id]!r} leaves {self.folder}")
        return path


def splits(root: Path) -> tuple[str, ...]:
    """Splits of a COCO folder: what stands after ``instances_`` in its annotation files."""
    found = sorted((root / "annotations").glob(f"{_PREFIX}*.json"))
    return tuple(path.stem.removeprefix(_PREFIX) for path in found)


def open_coco(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> CocoSource:
    """A split of COCO: ``annotations/instances_<split>.json`` and the photographs.

    split: "val2017", or "val" where only one split starts so. The photographs lie in
    ``<split>/``, ``images/<split>/`` or ``images/``. ids: these images instead of all. Raises
    BadFileError.
    """
    name = _split(root, split)
    path = root / "annotations" / f"{_PREFIX}{name}.json"
    content = read_json(path, MAX_JSON)
    try:
        classes, numbers = _categories(content["categories"])
        images = [(str(i["file_name"]), i["id"], _size(i)) for i in content["images"]]
        given = content.get("annotations")
        things = None if given is None else [_annotation(thing, numbers) for thing in given]
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise BadFileError(f"{path}: not an instances file of COCO ({problem!r})") from problem
    folders = (root / name, root / "images" / name, root / "images")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    stems = tuple(PurePosixPath(file).stem for file, _, _ in images)
    checked_ids(stems, path)
    by_number = {number: stem for stem, (_, number, _) in zip(stems, images, strict=True)}
    if len(by_number) != len(stems):
        twice = repeated(str(number) for _, number, _ in images)
        raise BadFileError(f"{path}: {len(twice)} image numbers stand in it twice: {twice[0]}")
    return CocoSource(
        name=f"{root.name}/{name}",
        folder=folder,
        classes=classes,
        ids=stems if ids is None else ids,
        names={stem: file for stem, (file, _, _) in zip(stems, images, strict=True)},
        sizes={stem: size for stem, (_, _, size) in zip(stems, images, strict=True)},
        objects=None if things is None else _by_image(things, by_number, path),
    )


def draw(region: Any, size: Size) -> Bool[np.ndarray, "H W"]:
    """The pixels of a region: a list of polygons, or run lengths in either form.

    region: ``[[x, y, x, y, …], …]`` in pixels, or ``{"size": [H, W], "counts": […] or "…"}``.
    size: (H, W) of the image. Raises ValueError for what is neither, or does not fit the image.
    """
    if isinstance(region, dict):
        return _draw_runs(region, size)
    if not isinstance(region, (list, tuple)):
        raise UserError(f"a region of type {type(region).__name__}, wanted polygons or runs")
    pixels = np.zeros(size, bool)
    for polygon in region:
        pixels |= fill_polygon(_corners(polygon), size)
    return pixels


def fill_polygon(corners: Float[np.ndarray, "n 2"], size: Size) -> Bool[np.ndarray, "H W"]:
    """Pixels inside a polygon, bit for bit as the reference code of COCO draws them.

    corners: (x, y) in pixels, pixel (0, 0) covering [0, 1) × [0, 1). The outline is walked on a
    grid five times finer; wherever it crosses the centre line of a column, all pixels below the
    crossing are toggled (even-odd rule). Source: rleFrPoly in maskApi.c of the COCO API. Raises
    ValueError for an outline of absurd length.
    """
    height, width = size
    across, down = _outline(np.trunc(_FINER * corners + 0.5).astype(np.int64))
    before, after = across[:-1], across[1:]
    column, rest = np.divmod(np.where(after < before, after, after - 1), _FINER)
    # The middle of the five fine columns is the centre line; standing still crosses nothing.
    crossed = (before != after) & (rest == _FINER // 2) & (0 <= column) & (column < width)
    row = (np.minimum(down[:-1], down[1:])[crossed] + 0.5) / _FINER - 0.5
    places = column[crossed] * height + np.ceil(np.clip(row, 0, height)).astype(np.int64)
    toggles = np.bincount(places, minlength=height * width + 1)[: height * width]
    return (np.cumsum(toggles) & 1).astype(bool).reshape(width, height).T


def run_lengths(text: str) -> list[int]:
    """The run lengths that a compressed string of COCO holds.

    Five bits a character from '0' on, the sixth says that more follow, the last carries the sign;
    from the fourth number on each is the difference to the one two before. Raises ValueError.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 30:
            raise UserError("characters that no compressed run lengths have")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise UserError("compressed run lengths that are cut off")
    return counts


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All grid points (x, y) along a closed polygon of whole numbers, one edge after the other.

    Each edge takes one step a point along its longer side, from its lower end, so that rounding
    does not depend on the direction.
    """
    ends = np.roll(corners, -1, axis=0)
    dx, dy = np.abs(ends - corners).T
    flat = dx >= dy
    flip = np.where(flat, corners[:, 0] > ends[:, 0], corners[:, 1] > ends[:, 1])
    length = np.maximum(dx, dy)
    if length.sum() > MAX_OUTLINE:
        raise UserError(f"a polygon whose outline is {length.sum() / _FINER:.0f} pixels long")
    start, stop = np.where(flip[:, None], (ends, corners), (corners, ends))
    edge = np.repeat(np.arange(len(corners)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(flip[edge], length[edge] - step, step)
    slope = (stop - start) / np.maximum(length, 1)[:, None]
    points = np.trunc(start[edge] + slope[edge] * step[:, None] + 0.5).astype(np.int64)
    along = start[edge] + step[:, None]
    flat = flat[edge]
    return np.where(flat, along[:, 0], points[:, 0]), np.where(flat, points[:, 1], along[:, 1])


def _draw_runs(region: Mapping[str, Any], size: Size) -> np.ndarray:
    height, width = size
    if list(region.get("size", ())) != [height, width]:
        raise UserError(f"runs of size {region.get('size')}, wanted [{height}, {width}]")
    counts = region.get("counts")
    if isinstance(counts, str):
        counts = run_lengths(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise UserError("run lengths that are no list of whole numbers from 0 on")
    if sum(counts) != height * width:
        raise UserError(f"runs of {sum(counts)} pixels, wanted {height} × {width}")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _corners(polygon: Any) -> np.ndarray:
    flat = np.asarray(polygon, np.float64)
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2:
        raise UserError(f"a polygon of shape {flat.shape}, wanted x, y of three or more corners")
    # The bound keeps products far from overflow; no photograph is near it.
    if not (np.abs(flat) < 1e7).all():
        raise UserError("a polygon with corners that are not finite")
    return flat.reshape(-1, 2)


def _split(root: Path, split: str) -> str:
    known = splits(root)
    if split in known:
        return split
    near = [name for name in known if name.startswith(split)]
    if len(near) == 1:
        return near[0]
    raise BadFileError(f"{root}: no split {split!r} (there are: {', '.join(known) or 'none'})")


def _categories(categories: list[Mapping[str, Any]]) -> tuple[ClassList, dict[int, int]]:
    by_number = sorted(categories, key=lambda category: category["id"])
    classes = ClassList(tuple(category["name"] for category in by_number))
    return classes, {category["id"]: label for label, category in enumerate(by_number)}


def _size(image: Mapping[str, Any]) -> Size:
    return int(image["height"]), int(image["width"])


def _annotation(thing: Mapping[str, Any], numbers: Mapping[int, int]) -> tuple[Any, Annotation]:
    if thing["category_id"] not in numbers:
        raise UserError(f"annotation {thing.get('id')} of unknown class {thing['category_id']}")
    region = thing["segmentation"]
    if isinstance(region, list):
        region = [_compact(polygon) for polygon in region]
    label = numbers[thing["category_id"]]
    area = float(thing.get("area", 0))
    return thing["image_id"], Annotation(label, bool(thing.get("iscrowd", 0)), area, region)


def _compact(polygon: Any) -> Any:
    """A polygon as numbers, a quarter of the memory; what is no polygon stays for draw to name."""
    try:
        return np.asarray(polygon, np.float64)
    except (ValueError, TypeError, OverflowError):
        return polygon


def _by_image(
    things: list[tuple[Any, Annotation]], by_number: Mapping[Any, str], path: Path
) -> dict[str, tuple[Annotation, ...]]:
    grouped: dict[str, list[Annotation]] = {}
    for number, thing in things:
        if number not in by_number:
            raise BadFileError(f"{path}: an annotation of image {number}, which is not in it")
        grouped.setdefault(by_number[number], []).append(thing)
    return {id: tuple(found) for id, found in grouped.items()}
