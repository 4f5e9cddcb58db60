"""What a writer gets and returns: one image with its mask or maps, and the files made of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data.classes import ClassList
from wsss_jax.datasets.coco import CocoSource
from wsss_jax.datasets.table import PictureFolder, Source
from wsss_jax.datasets.views import View
from wsss_jax.errors import UserError
from wsss_jax.types import ScoreMaps, Size

RECORD = "export.json"
"""The file that tells what made an export; a folder without it is somebody else's."""

APPROVED = "approved"
"""The tag in CVAT that tells that a mask is right."""

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files from below its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


@dataclass(frozen=True)
class Options:
    """What formats of annotations leave open.

    Attributes:
        objects: of coco and yolo, "region" makes every connected region of a class one object,
            "class" all pixels of a class in an image (coco only).
        smallest: pixels of the smallest region that is written as an object of coco and yolo;
            smaller ones are left out and counted.
        image_url: of label-studio, what stands before the file name of a photograph.
    """

    objects: Literal["region", "class"] = "region"
    smallest: int = 1
    image_url: str = LOCAL_FILES

    def __post_init__(self) -> None:
        if self.smallest < 1:
            raise UserError(f"smallest is {self.smallest}; wanted 1 or more pixels")


@dataclass(frozen=True)
class Picture:
    """One image to write.

    number: its place in the export, from 1. name: of the photograph's file, below the folder of
    all. stem: what the written files are called, without suffix. mask or maps: one of the two.
    """

    id: str
    number: int
    name: PurePosixPath
    stem: PurePosixPath
    size: Size
    classes: ClassList
    source: Source = field(repr=False)
    mask: UInt8[np.ndarray, "H W"] | None = None
    maps: ScoreMaps | None = None

    @property
    def pixels(self) -> UInt8[np.ndarray, "H W"]:
        """The mask. ValueError where only maps were given."""
        if self.mask is None:
            raise ValueError(f"{self.id}: a format of masks was given score maps")
        return self.mask

    @property
    def scores(self) -> ScoreMaps:
        """The score maps. ValueError where only a mask was given."""
        if self.maps is None:
            raise ValueError(f"{self.id}: a format of score maps was given a mask")
        return self.maps


class Written(NamedTuple):
    """What was made of one image: files by their path in the folder, and a note for ``whole``.

    left_out: regions that were too small to be objects.
    """

    files: Mapping[str, bytes]
    note: Any = None
    left_out: int = 0


Whole = Callable[[Sequence[Any], ClassList], Mapping[str, bytes]]
"""From the notes of all images, in order, and the classes to files by path."""


def photograph_names(source: Source, ids: Iterable[str]) -> dict[str, PurePosixPath]:
    """The file names of photographs, with folders below the one that they share.

    Of prepared records, which have no files, it is the id with the suffix of its encoding.
    Raises UserError for a name that leaves the folder it would be written to.
    """
    return {id: _safe(name) for id, name in _names(source, tuple(ids)).items()}


def stem_of(id: str) -> PurePosixPath:
    """What files of an image are called, without suffix: the id, folders and all."""
    return _safe(PurePosixPath(id))


def _names(source: Source, ids: tuple[str, ...]) -> dict[str, PurePosixPath]:
    if isinstance(source, View):
        return _names(source.whole, ids)
    if isinstance(source, CocoSource):
        names = {id: PurePosixPath(source.files[id][1]) for id in ids if id in source.files}
        # Names of other machines and of folders above; the photograph lies in the data set.
        return {
            id: PurePosixPath(name.name) if name.is_absolute() or ".." in name.parts else name
            for id, name in names.items()
        }
    if isinstance(source, PictureFolder):
        paths = {id: source.images[id][0] for id in ids if id in source.images}
        shared = _shared(paths.values())
        return {id: PurePosixPath(path.relative_to(shared)) for id, path in paths.items()}
    return {id: PurePosixPath(f"{id}{_suffix(source.encoded(id))}") for id in ids}


def _shared(paths: Iterable[Path]) -> Path:
    """The deepest folder that holds all of the files."""
    folders = [path.parent for path in paths]
    shared = folders[0] if folders else Path()
    while not all(folder.is_relative_to(shared) for folder in folders):
        shared = shared.parent
    return shared


def _suffix(content: bytes) -> str:
    return ".png" if content.startswith(b"\x89PNG") else ".jpg"


def _safe(name: PurePosixPath) -> PurePosixPath:
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise UserError(f"{str(name)!r} is no name of a file below a folder; rename the photograph")
    return name
