"""Data sets and stores by their paths."""

from collections.abc import Sequence
from pathlib import Path

from wsss_jax.data import stores
from wsss_jax.data.stores import Store
from wsss_jax.datasets import synthetic
from wsss_jax.datasets import table as datasets
from wsss_jax.datasets.table import Source
from wsss_jax.formats.bounded import as_path


def open_dataset(
    folder: str | Path, split: str = "all", *, layout: str = "auto", lists: str | Path | None = None
) -> Source:
    """One split of a data set: ``.ids``, and by id ``.image``, ``.labels``, ``.mask``, ``.size``.

    folder: photographs with a table of labels or in a folder per class, PASCAL VOC, COCO, prepared
    records, or ``images/`` with ``labels.json``. split: a name of its lists, or "all"; without
    lists "val" is a fifth of the images, chosen by their ids, and "train" the others. layout:
    a name of DATASETS; "auto" tells them apart. lists: folder of lists that lie elsewhere. Images
    (H,W,3) uint8, labels (C,) bool, masks (H,W) uint8 or None.

    Raises UserError for a folder that is no data set, and for an unknown split, naming the others.

    >>> import wsss_jax as wj
    >>> data = wj.open_dataset(scenes, split="val")
    >>> len(data.ids), data.image(data.ids[0]).shape[-1], data.classes.names[:2]
    (4, 3, ('beetle', 'fish'))
    """
    elsewhere = None if lists is None else as_path(lists, "lists")
    return datasets.open_dataset(
        as_path(folder, "folder"), split=split, layout=layout, lists=elsewhere
    )


def open_store(folder: str | Path) -> Store:
    """A store that a stage wrote: ``.ids()``, and by id ``.get_scores`` or ``.get_mask``.

    Raises BadFileError where there is none, or its index is damaged.

    >>> import wsss_jax as wj
    >>> wj.open_store("nowhere")
    Traceback (most recent call last):
    ...
    wsss_jax.errors.BadFileError: nowhere: no index.json, so no store; run the stage that makes it
    """
    return stores.open_store(as_path(folder, "folder"))


def draw_scenes(folder: str | Path, images: int = 60) -> Path:
    """Draw photographs to try things on: a data set with labels, true masks and saliency.

    Creatures of six classes, 96×96 pixels, which differ in their heads only. Every third scene is
    in the split "val", the others in "train". Nothing is downloaded. Returns the folder; scenes
    that are there already are used again. Raises ValueError if another program drew into it.

    >>> import wsss_jax as wj
    >>> data = wj.open_dataset(wj.draw_scenes(folder, images=6))
    >>> len(data.ids), data.image(data.ids[0]).shape
    (6, (96, 96, 3))
    """
    return synthetic.write(as_path(folder, "folder"), images, 0, settings=synthetic.LARGE)


def opened_all(given: Sequence[str | Path | Store]) -> list[Store]:
    """Stores, from stores or their folders. UserError where none is named."""
    if not given:
        return stores.open_stores([])
    return [one if isinstance(one, Store) else open_store(one) for one in given]
