"""COCO: instances JSON and photographs, as COCO itself, annotation tools and Roboflow write them.

Boxes are all that image labels need; masks are drawn where objects have regions
(``coco_regions``). Not here: keypoints, captions, and the panoptic files.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import MAX_PIXELS
from wsss_jax.data.ids import Index, id_of_name, pictures
from wsss_jax.data.mask_files import upright
from wsss_jax.data.photographs import header, image_size, read_image
from wsss_jax.data.texts import read_json
from wsss_jax.datasets.coco_entries import (
    Annotation,
    Entries,
    Photograph,
    painted,
    read_entries,
)
from wsss_jax.datasets.folders import ALL
from wsss_jax.datasets.lists import checked_ids, repeated, split_named
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.types import Size

MAX_JSON = 2**30
"""Larger annotation files are refused; that of train2017, the largest of COCO, has 448 MB."""

_PREFIX = "instances_"
_USUAL = ("_annotations.coco.json", "instances.json", "annotations.json", "coco.json")
_ROBOFLOW = "_annotations.coco.json"

_OTHERS = (
    "labels.json",
    "image_labels.json",
    "captions_",
    "person_keypoints_",
    "panoptic_",
    "stuff_",
)
"""Beginnings of the names of files that are no instances, though they may lie beside them."""


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
            mask = painted(things, size)
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
        for path in (folder / name, folder / PurePosixPath(name).name):
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                return path
        files = _index(folder, folder.stat().st_mtime_ns if folder.is_dir() else 0)
        near = files.find(name)
        if near is not None and not files.files[near][0].is_symlink():
            return files.files[near][0]
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise BadFileError(f"{self.name}: file name {name!r} leaves {folder}")
        return folder / name

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

    One file alone, of any name, is the split "train"; several are splits of their own names.
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
    for folder in (root, root / "annotations"):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [path for path in inside if _may_be_instances(path)]
        if found:
            return {"train": found[0]} if len(found) == 1 else {path.stem: path for path in found}
    return {}


def _may_be_instances(path: Path) -> bool:
    named = path.suffix.lower() == ".json" and path.name[:1] != "."
    if not named or path.name.lower().startswith(_OTHERS) or not path.is_file():
        return False
    return _is_instances(path, path.stat().st_mtime_ns)


@lru_cache
def _is_instances(path: Path, changed: int) -> bool:
    """Whether a file is one of COCO. A damaged one of a usual name is: it is named when read."""
    try:
        content = read_json(path, MAX_JSON)
    except BadFileError:
        return path.name in _USUAL
    return isinstance(content, dict) and {"images", "categories"} <= set(content)


def open_coco(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> CocoSource:
    """A split of COCO: ``annotations/instances_<split>.json`` and the photographs.

    split: "val2017", or "val" where only one split starts so, or "all" for all that there are. The
    photographs lie in ``<split>/``, ``images/<split>/`` or ``images/``. Roboflow's
    ``<split>/_annotations.coco.json`` lies with its photographs. Where no file is called so, each
    JSON file of COCO's form is a split, and one alone is "train". ids: these images instead of all.
    Raises BadFileError.
    """
    known = splits(root)
    names = known if split.lower() == ALL and known else (_split(root, split),)
    files = [_read(root, name) for name in names]
    if len({file.entries.classes for file in files}) > 1:
        raise BadFileError(f"{root}: {', '.join(names)} have different classes; open one split")
    images = [image for file in files for image in file.entries.photographs]
    stems = _ids(images, files[0].path)
    by_number = {(i.folder, i.number): stem for stem, i in zip(stems, images, strict=True)}
    if len(by_number) != len(stems):
        twice = repeated(str(image.number) for image in images)
        raise BadFileError(
            f"{files[0].path}: {len(twice)} image numbers stand in it twice: {twice[0]}"
        )
    objects: dict[str, list[Annotation]] = {}
    for file in files:
        for number, thing in file.entries.things or ():
            key = (file.folder, number)
            if key not in by_number:
                raise BadFileError(
                    f"{file.path}: an annotation of image {number}, which is not in it; add the "
                    "image, or take its annotations out"
                )
            objects.setdefault(by_number[key], []).append(thing)
    return CocoSource(
        name=f"{root.name}/{names[0] if len(names) == 1 else ALL}",
        classes=files[0].entries.classes,
        ids=stems if ids is None else ids,
        files={s: (image.folder, image.name) for s, image in zip(stems, images, strict=True)},
        sizes={stem: image.size for stem, image in zip(stems, images, strict=True)},
        objects=None
        if any(file.entries.things is None for file in files)
        else {id: tuple(found) for id, found in objects.items()},
    )


@lru_cache(maxsize=8)
def _index(folder: Path, changed: int) -> Index:
    """The photographs of a folder, for names that are not written as on disk."""
    return Index(pictures(folder) if folder.is_dir() else {})


class _File(NamedTuple):
    path: Path
    folder: Path
    entries: Entries


def _read(root: Path, name: str) -> _File:
    path = _instances(root)[name]
    folders = [root / name, root / "images" / name, root / "images", root]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return _File(path, folder, read_entries(path, read_json(path, MAX_JSON), folder))


def _ids(images: Sequence[Photograph], path: Path) -> tuple[str, ...]:
    """Names without suffix where they are all different, else with the folders before them."""
    places = [PurePosixPath(image.name) for image in images]
    stems = [id_of_name(place.stem) for place in places]
    if repeated(stems):
        stems = [id_of_name(place.with_suffix("").as_posix()) for place in places]
    if repeated(stems):
        stems = [f"{image.folder.name}/{stem}" for stem, image in zip(stems, images, strict=True)]
    return checked_ids(tuple(stems), path)


def _split(root: Path, split: str) -> str:
    known = splits(root)
    near = [name for name in known if name.lower().startswith(split.lower())]
    found = split_named(split, dict.fromkeys(known)) or (near[0] if len(near) == 1 else None)
    if found is None:
        raise BadFileError(f"{root}: no split {split!r} (there are: {', '.join(known) or 'none'})")
    return found
