"""``wsss refine``: random walk or dense CRF on a store of score maps."""

from pathlib import Path
from typing import Literal

import tyro

from wsss_jax.cli.bare import Bare
from wsss_jax.data.stores import open_store
from wsss_jax.datasets.selection import Data
from wsss_jax.errors import UserError
from wsss_jax.run.executors import Workers
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import Crf
from wsss_jax.stages.refine import refine as refine_store


def command(
    store: tyro.conf.Positional[Path],
    data: Bare[Data],
    out: Path,
    method: Literal["walk", "crf"] = "walk",
    walk: Walk = Walk(),  # noqa: B008
    crf: Crf = Crf(),  # noqa: B008
    workers: Workers = Workers(),  # noqa: B008
) -> None:
    """Refine score maps by random walk or dense CRF.

    Args:
        store: score maps to refine.
        data: the photographs they belong to.
        out: store of score maps to write.
        method: random walk or dense CRF.
        walk: settings of the random walk.
        crf: settings of the dense CRF.
        workers: processes and shards.
    """
    source = data.open()
    settings = walk if method == "walk" else crf
    if (method == "walk" and crf != Crf()) or (method == "crf" and walk != Walk()):
        unused = "crf" if method == "walk" else "walk"
        raise UserError(f"--{unused}.* does nothing with --method {method}; leave it out")
    refined = refine_store(
        open_store(store), source, out, settings, ids=source.ids, workers=workers
    )
    print(refined.folder)
