"""Data sets, stores and other tools' files by their paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss_jax.config import lookup
from wsss_jax.data import datasets, external, stores
from wsss_jax.data.classes import ClassList
from wsss_jax.data.datasets import Source
from wsss_jax.data.external import READERS
from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError
from wsss_jax.formats.pickled_arrays import read_dictionary
from wsss_jax.types import ScoreMaps


def open_dataset(
    folder: str | Path, split: str = "all", *, layout: str = "auto", lists: str | Path | None = None
) -> Source:
    """One split of a data set: ``.ids``, and by id ``.image``, ``.labels``, ``.mask``, ``.size``.

    folder: PASCAL VOC, COCO, prepared records, or ``images/`` with ``labels.json``. split: a name
    of its lists, or "all". layout: a name of DATASETS; "auto" tells them apart. lists: folder of
    lists that lie elsewhere. Images (H,W,3) uint8, labels (C,) bool, masks (H,W) uint8 or None.

    Raises UserError for a folder that is none and a split that is not there, naming those that are.

    >>> import wsss_jax as wj
    >>> data = wj.open_dataset(scenes, split="val")
    >>> len(data.ids), data.image(data.ids[0]).shape[-1], data.classes.names[:2]
    (4, 3, ('beetle', 'fish'))
    """
    elsewhere = None if lists is None else Path(lists)
    return datasets.open_dataset(Path(folder), split=split, layout=layout, lists=elsewhere)


def open_store(folder: str | Path) -> Store:
    """A store that a stage wrote: ``.ids()``, and by id ``.get_scores`` or ``.get_mask``.

    Raises BadFileError where there is none, or its index is damaged.

    >>> import wsss_jax as wj
    >>> wj.open_store("nowhere")
    Traceback (most recent call last):
    ...
    wsss_jax.errors.BadFileError: nowhere: no index.json, so no store; run the stage that makes it
    """
    return stores.open_store(Path(folder))


def opened_all(given: Sequence[Any]) -> list[Store]:
    """Stores, from stores or their folders. UserError where none is named."""
    if not given:
        return stores.open_stores([])
    return [one if isinstance(one, Store) else open_store(one) for one in given]


def read_maps(
    path: str | Path, classes: ClassList | Sequence[str] | None = None, layout: str = "auto"
) -> ScoreMaps:
    """Score maps of one ``.npy`` dictionary that another tool wrote; nothing in it is run.

    path: the file. classes: names in label order; a class beyond them is refused, None allows any.
    layout: a name of READERS, told from the fields of the file if "auto" (irn, puzzle, puzzle_rw,
    clipes, psa_cam, psa_crf). Returns the finest maps, whose grid is taken as the photograph's
    size; classes are numbered from 0, background is left out. ``wsss import`` reads whole folders,
    masks and saliency too, and checks them against photographs and labels.

    Raises UserError for a file that is damaged or of no known layout.

    >>> import wsss_jax as wj
    >>> maps = wj.read_maps(irn_file)
    >>> maps.classes.tolist(), maps.scores.shape, maps.kind
    ([2, 14], (4, 6, 2), 'activation')
    """
    path = Path(path)
    content = read_dictionary(path)
    name = _layout_of(content, path) if layout == "auto" else layout
    how = lookup(READERS, name, "layout (or auto)")
    try:
        found = external.maps_of(content, how)
    except ValueError as problem:
        raise BadFileError(f"{path}: {problem} (read as layout {name})") from problem
    kept = [n for n, key in enumerate(found.keys) if how.first == 0 or key != 0]
    labels = np.asarray([found.keys[n] - how.first for n in kept], np.int32)
    if classes is not None and labels.max(initial=0) >= len(classes):
        raise BadFileError(f"{path}: class {labels.max()} from 0, but {len(classes)} classes")
    scores = np.stack([np.asarray(found.choices[0][n], np.float32) for n in kept], axis=-1)
    peak = scores.max(axis=(0, 1))
    return ScoreMaps(scores, labels, scores.shape[:2], peak, how.kind)


def _layout_of(content: Any, path: Path) -> str:
    """The layout of a dictionary by its fields; of two with the same fields the first, not CCAM."""
    for name, how in READERS.items():
        if "keys" in content and not how.agnostic and {*how.fields[:1]} & {*content}:
            return name
    if content and all(isinstance(key, int) for key in content):
        found = external.maps_of(content, READERS["psa_crf"])
        return "psa_crf" if external.sums_to_one(found) else "psa_cam"
    fields = ", ".join(str(key)[:40] for key in list(content)[:12])
    raise BadFileError(f"{path}: fields {fields}, of no known layout ({', '.join(READERS)})")
