"""``wsss import``: score maps, masks and saliency that other tools wrote."""

from pathlib import Path

import tyro

from wsss_jax.cli.bare import Bare
from wsss_jax.datasets.selection import Data
from wsss_jax.run.executors import Workers
from wsss_jax.stages.import_maps import Import, import_priors


def command(
    priors: tyro.conf.Positional[Path],
    data: Path,
    out: Path,
    settings: Bare[Import] = Import(),  # noqa: B008
    split: str = "all",
    lists: Path | None = None,
    data_layout: str = "auto",
    workers: Workers = Workers(),  # noqa: B008
) -> None:
    """Read score maps, masks or saliency that another tool wrote.

    Args:
        priors: folder with one file per image, named by id, or a store.
        data: folder of the data set they belong to.
        out: store of score maps to write.
        settings: layout of the files, and how finely they are stored.
        split: one of the data set's lists (train, val …), or "all".
        lists: folder of id lists, if they lie elsewhere.
        data_layout: of the data set, one of DATASETS; "auto" tells them apart.
        workers: processes and shards.
    """
    source = Data(data, split, data_layout, lists).open()
    store = import_priors(settings, priors, source, out, ids=source.ids, workers=workers)
    print(store.folder)
