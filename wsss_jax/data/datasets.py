"""Data sets as they lie on disk: PASCAL VOC, a plain folder, COCO, and prepared ArrayRecords.

A source gives one image at a time, by id: its photograph, its image-level labels and, where there
is truth, its mask. Opening reads lists and labels only; what is wrong with one image is an error
(BadFileError) of that image, raised when it is asked for, so that a run can name it and go on.
``wsss_jax.data.check`` lists everything that is wrong at once. Not here: resizing and batches.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from wsss_jax.config import lookup
from wsss_jax.data import coco, labels
from wsss_jax.data.classes import VOC, ClassList
from wsss_jax.data.files import image_size, read_image, read_mask
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.types import IGNORE, Sample, Size

ALL = "all"
"""The split of every image that any list names, or of every image where there are no lists."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")


Files = Mapping[str, tuple[Path, ...]]
"""Files by id, which is the name without suffix."""


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
        """Which classes the image shows, from image-level labels alone."""
        ...

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph as RGB in raw orientation."""
        ...

    def size(self, id: str) -> Size:
        """(height, width) from the header, without decoding."""
        ...

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """The true mask in mask numbering, None where there is none."""
        ...

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        ...


def sample(source: Source, id: str) -> Sample:
    """All that is known of one image. Raises BadFileError."""
    return Sample(id, source.image(id), source.labels(id), source.mask(id))


@dataclass(frozen=True)
class PictureFolder:
    """A source of one file per photograph and per mask: PASCAL VOC and the plain folder.

    images, masks: files by id, of which there should be one. table: the image-level labels.
    """

    name: str
    root: Path
    ids: tuple[str, ...]
    images: Files
    masks: Files
    table: labels.LabelTable | labels.Annotations

    @property
    def classes(self) -> ClassList:
        """Foreground classes in label order."""
        return self.table.classes

    @property
    def has_background(self) -> bool:
        """False where mask value 0 marks pixels without truth."""
        return self.table.void is None

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Which classes the image shows. MissingFileError where nothing is said of the image."""
        return self.table.of(id)

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph as RGB in raw orientation."""
        return read_image(self._image(id))

    def size(self, id: str) -> Size:
        """(height, width) from the header."""
        return image_size(self._image(id))

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """Class indices, read without any colour conversion; None where there is no file."""
        if id not in self.masks:
            return None
        mask = read_mask(_only(self.masks[id], self.root))
        if self.table.void is None:
            return mask
        return np.where(mask == self.table.void, np.uint8(IGNORE), mask)

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        return read_bytes(self._image(id))

    def _image(self, id: str) -> Path:
        if id not in self.images:
            raise MissingFileError(f"{self.root}: no image of {id} ({', '.join(IMAGE_SUFFIXES)})")
        return _only(self.images[id], self.root)


def voc(
    root: Path, split: str, *, ids: tuple[str, ...] | None = None, lists: Path | None = None
) -> Source:
    """PASCAL VOC: JPEGImages, SegmentationClassAug or SegmentationClass, ImageSets/Segmentation.

    Image-level labels come from image_labels.json, else cls_labels.npz (both in ``root`` or in
    ``lists``), else Annotations/. ids: these images instead of the split's. lists: a folder of
    other lists, such as train_aug.txt. Raises BadFileError.
    """
    root = voc_root(root)
    table = _voc_labels(root, lists)
    folder = next((root / name for name in _MASK_FOLDERS if (root / name).is_dir()), None)
    images = pictures(root / "JPEGImages", IMAGE_SUFFIXES)
    masks = pictures(folder, (".png",)) if folder else {}
    if ids is None:
        ids = _chosen(root, split, lists=list_files(root, "voc", lists), images=images, table=table)
    return PictureFolder(root.name, root, ids, images, masks, table)


def folder(
    root: Path, split: str, *, ids: tuple[str, ...] | None = None, lists: Path | None = None
) -> Source:
    """A plain folder: ``images/``, ``labels.json`` and, where there is truth, ``masks/*.png``.

    ``labels.json`` is as ``labels.json_table`` says. Splits are ``splits/<name>.txt``; without
    lists, "val" is every fifth image by the hash of its id and "train" the others. ids: these
    images instead of the split's. lists: another folder of lists. Raises BadFileError.
    """
    table = labels.json_table(root / "labels.json")
    images = pictures(root / "images", IMAGE_SUFFIXES)
    masks = pictures(root / "masks", (".png",)) if (root / "masks").is_dir() else {}
    if ids is None:
        found = list_files(root, "folder", lists)
        ids = _chosen(root, split, lists=found, images=images, table=table)
    return PictureFolder(root.name, root, ids, images, masks, table)


def tfds(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> Source:
    """Records that ``tfds_builder.write`` prepared, read through grain. Raises BadFileError."""
    # Imported here: tensorflow_datasets takes longer to import than all the rest of this program.
    from wsss_jax.data import tfds_builder

    return tfds_builder.open_records(root, split, ids=ids)


DATASETS: Mapping[str, Callable[..., Source]] = MappingProxyType(
    {"voc": voc, "folder": folder, "coco": coco.open_coco, "tfds": tfds}
)
"""Layouts by name: (root, split, ids=None) to a source."""


def open_dataset(
    root: Path,
    *,
    split: str,
    layout: str = "auto",
    ids: tuple[str, ...] | None = None,
    lists: Path | None = None,
) -> Source:
    """One split of the data set in ``root``.

    layout: a name of DATASETS, or "auto" to tell it from the folders in ``root``. ids: these
    images instead of the split's. lists: a folder of id lists (and cls_labels.npz) that lies
    elsewhere, for the layouts voc and folder. Raises BadFileError, ValueError for unknown names.
    """
    layout = layout_of(root) if layout == "auto" else layout
    opener = lookup(DATASETS, layout, "data set layout")
    if lists is None:
        return opener(root, split, ids=ids)
    if layout not in _LISTS:
        raise UserError(f"layout {layout!r} has no lists; choose a split or give the ids")
    return opener(root, split, ids=ids, lists=lists)


def open_together(root: Path, names: Iterable[str], layout: str = "auto") -> Source:
    """One source with the images of several splits, each once, in the order of the splits."""
    ids = (id for name in names for id in open_dataset(root, split=name, layout=layout).ids)
    return open_dataset(root, split=ALL, layout=layout, ids=tuple(dict.fromkeys(ids)))


def splits(root: Path, layout: str = "auto", lists: Path | None = None) -> tuple[str, ...]:
    """Names of the splits that can be opened, sorted, "all" last. Raises BadFileError."""
    layout = layout_of(root) if layout == "auto" else layout
    if layout == "coco":
        return coco.splits(root)
    if layout == "tfds":
        from wsss_jax.data import tfds_builder  # for the reason in tfds()

        return tfds_builder.splits(root)
    return (*sorted(list_files(root, layout, lists) or ("train", "val")), ALL)


def layout_of(root: Path) -> str:
    """Which layout a folder has, by the files in it. Raises BadFileError."""
    if not root.is_dir():
        raise BadFileError(f"{root}: no such folder")
    if next(root.glob("annotations/instances_*.json"), None):
        return "coco"
    if (voc_root(root) / "JPEGImages").is_dir():
        return "voc"
    if (root / "images").is_dir():
        return "folder"
    if next(root.glob("**/features.json"), None):
        return "tfds"
    raise BadFileError(
        f"{root}: no data set; wanted JPEGImages/ (voc), images/ and labels.json (folder), "
        "annotations/instances_*.json (coco) or prepared records (tfds)"
    )


def list_files(root: Path, layout: str, lists: Path | None = None) -> dict[str, Path]:
    """Lists of ids by split: lower-case ``*.txt`` names, where the layout has them or ``lists``."""
    if layout not in _LISTS:
        return {}
    folder = lists or (voc_root(root) if layout == "voc" else root) / _LISTS[layout]
    return {path.stem: path for path in sorted(folder.glob("*.txt")) if path.stem.islower()}


def voc_root(root: Path) -> Path:
    """The folder that holds JPEGImages: ``root``, ``root/VOC2012`` or below ``root/VOCdevkit``."""
    tries = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((path for path in tries if (path / "JPEGImages").is_dir()), root)


def pictures(folder: Path, suffixes: tuple[str, ...]) -> dict[str, tuple[Path, ...]]:
    """Files by id, which is the name without suffix. Raises BadFileError without a folder."""
    if not folder.is_dir():
        raise BadFileError(f"{folder}: no such folder")
    found: dict[str, tuple[Path, ...]] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() in suffixes and not stem.startswith("."):
            found[stem] = (*found.get(stem, ()), folder / entry.name)
    return found


def known_ids(images: Files, table: labels.LabelTable | labels.Annotations) -> tuple[str, ...]:
    """Every id that has an image or labels, sorted: what there is where there are no lists."""
    entries = table.entries if isinstance(table, labels.LabelTable) else {}
    return tuple(sorted({*images, *entries}))


_LISTS = {"voc": "ImageSets/Segmentation", "folder": "splits"}


def _chosen(
    root: Path,
    split: str,
    *,
    lists: Mapping[str, Path],
    images: Files,
    table: labels.LabelTable | labels.Annotations,
) -> tuple[str, ...]:
    if table.twice:
        raise BadFileError(f"{root}: {', '.join(table.twice)} have labels twice")
    if split == ALL and lists:
        return tuple(dict.fromkeys(id for path in lists.values() for id in labels.ids_of(path)))
    if split in lists:
        return labels.ids_of(lists[split])
    everything = labels.checked_ids(known_ids(images, table), root)
    if split == ALL:
        return everything
    if lists or split not in ("train", "val"):
        known = ", ".join([*sorted(lists or ("train", "val")), ALL])
        raise BadFileError(f"{root}: no split {split!r} (there are: {known})")
    held_out = _held_out(everything)
    return tuple(id for id in everything if (id in held_out) == (split == "val"))


def _held_out(ids: tuple[str, ...]) -> set[str]:
    by_hash = sorted(ids, key=lambda id: hashlib.blake2b(id.encode(), digest_size=8).digest())
    return set(by_hash[: max(1, round(len(ids) / 5))])


def _only(paths: tuple[Path, ...], root: Path) -> Path:
    path = paths[0]
    if len(paths) > 1:
        raise BadFileError(f"{path}: {', '.join(p.name for p in paths)} share an id; keep one")
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise BadFileError(f"{path}: a link that leaves {root}; copy the file instead")
    return path


def _voc_labels(root: Path, lists: Path | None) -> labels.LabelTable | labels.Annotations:
    for folder in (root,) if lists is None else (lists, root):
        if (folder / "image_labels.json").is_file():
            return labels.json_table(folder / "image_labels.json")
        if (folder / "cls_labels.npz").is_file():
            return labels.npz_table(folder / "cls_labels.npz", VOC)
    if (root / "Annotations").is_dir():
        return labels.Annotations(root / "Annotations", VOC)
    raise BadFileError(
        f"{root}: no image-level labels; wanted image_labels.json, cls_labels.npz or Annotations/"
    )
