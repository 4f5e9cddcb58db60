"""Data sets as they lie on disk, opened by their layout.

A source gives one image at a time, by id: its photograph, its image-level labels and, where there
is truth, its mask (``source``). Opening reads lists and labels only; what is wrong with one image
is an error (BadFileError) of that image, raised when it is asked for, so that a run can name it and
go on. ``wsss_jax.datasets.check`` lists everything that is wrong at once. Not here: the layouts
themselves (``folders``, ``voc``, ``coco``, ``prepared``), resizing and batches.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from wsss_jax.config import lookup
from wsss_jax.datasets import coco, folders
from wsss_jax.datasets import voc as voc_layout
from wsss_jax.datasets.folders import ALL, class_folders, folder
from wsss_jax.datasets.source import PictureFolder, Source
from wsss_jax.datasets.voc import voc, voc_root
from wsss_jax.errors import BadFileError, UserError

__all__ = ["ALL", "DATASETS", "PictureFolder", "Source", "layout_of", "list_files", "open_dataset",
           "open_together", "splits", "voc_root"]  # fmt: skip


def tfds(root: Path, split: str, *, ids: tuple[str, ...] | None = None) -> Source:
    """Records that ``tfds_builder.write`` prepared, read through grain. Raises BadFileError."""
    # Imported here: tensorflow_datasets takes longer to import than all the rest of this program.
    from wsss_jax.datasets import prepared

    return prepared.open_records(root, split, ids=ids)


DATASETS: Mapping[str, Callable[..., Source]] = MappingProxyType(
    {
        "voc": voc,
        "folder": folder,
        "class_folders": class_folders,
        "coco": coco.open_coco,
        "tfds": tfds,
    }
)
"""Layouts by name: (root, split, ids=None) to a source."""

_LISTS = MappingProxyType({"voc": voc_layout.list_files, "folder": folders.list_files})
"""Layouts that take lists from elsewhere, and where their own lie."""


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
        from wsss_jax.datasets import prepared

        return prepared.splits(root)
    own = folders.splits_in_folders(root) if layout == "class_folders" else ()
    return (*(own or sorted(list_files(root, layout, lists) or ("train", "val"))), ALL)


def layout_of(root: Path) -> str:
    """Which layout a folder has, by the files in it. Raises BadFileError."""
    if not root.is_dir():
        raise BadFileError(f"{root}: no such folder")
    if coco.splits(root):
        return "coco"
    if (voc_root(root) / "JPEGImages").is_dir():
        return "voc"
    if any(path for depth in range(4) for path in root.glob("*/" * depth + "features.json")):
        return "tfds"
    if folders.has_table(root):
        return "folder"
    if folders.has_class_folders(root):
        return "class_folders"
    if folders.image_folder(root) is not None:
        return "folder"
    raise BadFileError(
        f"{root}: no data set; wanted photographs and labels.csv or labels.json (folder), a folder "
        "of photographs for each class (class_folders), JPEGImages/ (voc), "
        "annotations/instances_*.json (coco) or prepared records (tfds)"
    )


def list_files(root: Path, layout: str, lists: Path | None = None) -> dict[str, Path]:
    """Lists of ids by split, where the layout has them, or ``lists``. Raises BadFileError."""
    return _LISTS[layout](root, lists) if layout in _LISTS else {}
