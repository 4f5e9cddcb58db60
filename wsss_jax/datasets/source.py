"""What every data set gives, image by image, and the source of one file per photograph and mask."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from wsss_jax.data.classes import ClassList
from wsss_jax.data.ids import UNREAD, Files, Index, files_below
from wsss_jax.data.mask_files import Colours, read_truth, upright
from wsss_jax.data.photographs import header, image_size, read_image
from wsss_jax.datasets import labels
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.types import IGNORE, Size

_SAMPLE = 20


def digest_of(source: "Source") -> str:
    """Of the ids, their labels, and how large their files are: another photograph changes it.

    Of prepared records the sizes have no part.
    """
    told, whole = hashlib.blake2b(digest_size=8), source
    while (inner := getattr(whole, "whole", None)) is not None:  # of a view
        whole = inner
    path: Callable[[str], Path] | None = getattr(whole, "path", None)
    for id in sorted(source.ids):
        with suppress(BadFileError, UserError):  # an image without readable labels has no part
            told.update(id.encode() + b"\0" + np.packbits(source.labels(id)).tobytes() + b"\0")
            if path is not None:
                told.update(path(id).stat().st_size.to_bytes(8, "little"))
    return told.hexdigest()


@runtime_checkable
class Source(Protocol):
    """One split of a data set, read image by image.

    Every method raises BadFileError where the file of that image is missing or damaged.
    """

    @property
    def name(self) -> str:
        """What provenance calls this data set."""
        ...

    @property
    def classes(self) -> ClassList:
        """Foreground classes in label order."""
        ...

    @property
    def ids(self) -> tuple[str, ...]:
        """Images of the split, in the order of its list."""
        ...

    @property
    def has_background(self) -> bool:
        """False where masks know no background: pixels of no class are IGNORE (MSRC)."""
        ...

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Which classes the image shows, maybe none, from image-level labels alone."""
        ...

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph as RGB, upright, with ``photographs.working_size(self.size(id))``."""
        ...

    def size(self, id: str) -> Size:
        """(height, width) of the upright photograph in full, without decoding; that of masks."""
        ...

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """The true mask in mask numbering and at full size, None where there is none."""
        ...

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        ...


@dataclass(frozen=True)
class PictureFolder:
    """A source of one file per photograph and per mask.

    images, masks: files by id, of which there should be one. table: the image-level labels.
    colours: what the colours of masks mean, None where they have indices.
    """

    name: str
    root: Path
    ids: tuple[str, ...]
    images: Files
    masks: Files
    table: labels.LabelTable
    colours: Colours | None = None

    @property
    def classes(self) -> ClassList:
        """Foreground classes in label order."""
        return self.table.classes

    @property
    def has_background(self) -> bool:
        """False where mask value 0 marks pixels without truth."""
        return self.table.void is None

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Which classes the image shows. MissingFileError where nothing is known of the image."""
        return self.table.of(id)

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph as RGB, upright, at its working size."""
        return read_image(self.path(id))

    def size(self, id: str) -> Size:
        """(height, width) of the upright photograph, from the header."""
        return image_size(self.path(id))

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """Class indices, turned upright with the photograph; None where there is no file."""
        if id not in self.masks:
            return None
        mask = self._raw_mask(id)
        with suppress(BadFileError):  # of the photograph, named when its turn comes
            mask = upright(mask, header(self.path(id), id))
        if self.white_is_class:
            mask = np.where(mask == IGNORE, np.uint8(1), mask)
        if self.table.void is None:
            return mask
        return np.where(mask == self.table.void, np.uint8(IGNORE), mask)

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        return read_bytes(self.path(id))

    def path(self, id: str) -> Path:
        """The file of a photograph. Raises BadFileError."""
        if id not in self.images:
            other = self._unread.get(id)
            hint = f"; {other} is not read, save it as JPEG or PNG" if other else ""
            raise MissingFileError(f"{self.root}: no photograph of {id}{hint}")
        return only(self.images[id], self.root)

    @property
    def assumed(self) -> str | None:
        """What is taken for granted of the masks, in words; None where nothing is."""
        if not self.white_is_class:
            return None
        return f"masks hold 0 and 255 alone, so 255 is read as {self.classes.names[0]}"

    @cached_property
    def white_is_class(self) -> bool:
        """Whether 255 is the one class: no mask of a photograph that shows it has anything else."""
        if len(self.classes) != 1:
            return False
        seen: set[int] = set()
        shown = 0
        for id in sorted(set(self.masks) & set(self.table.entries)):
            try:
                if not self.labels(id).any():
                    continue
                seen |= set(np.unique(self._raw_mask(id)).tolist())
            except BadFileError:
                continue  # named when its turn comes
            shown += 1
            if shown == _SAMPLE or not seen <= {0, IGNORE}:
                break
        return seen == {0, IGNORE}

    @cached_property
    def _unread(self) -> dict[str, str]:
        """Files of kinds that are not read, by their names without suffix."""
        files = (path for path in files_below(self.root) if path.suffix.lower() in UNREAD)
        return {path.stem: path.name for path in files}

    def _raw_mask(self, id: str) -> UInt8[np.ndarray, "H W"]:
        return read_truth(mask_file(self.masks[id], self.root), self.colours)


def mask_file(paths: tuple[Path, ...], root: Path) -> Path:
    """The one mask of an id, whatever JPEG lies beside it. Raises BadFileError as ``only``."""
    readable = tuple(path for path in paths if path.suffix.lower() not in (".jpg", ".jpeg"))
    return only(readable or paths, root)


def only(paths: tuple[Path, ...], root: Path) -> Path:
    """The one file of an id. Raises BadFileError for several, and for a link out of ``root``."""
    path = paths[0]
    if len(paths) > 1:
        raise BadFileError(f"{path}: {', '.join(p.name for p in paths)} share an id; keep one")
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise BadFileError(f"{path}: a link that leaves {root}; copy the file instead")
    return path


def masks_of(files: Mapping[str, tuple[Path, ...]], images: Files) -> dict[str, tuple[Path, ...]]:
    """Masks by the id of their photograph: of its name, with its suffix or in other capitals.

    Masks of no photograph are left out.
    """
    index = Index(images)
    found: dict[str, tuple[Path, ...]] = {}
    for name, paths in files.items():
        id = index.find(name)
        if id is not None:
            found[id] = (*found.get(id, ()), *paths)
    return found
