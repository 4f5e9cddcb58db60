"""Priors and cues that other tools wrote, imported as score maps of ours."""

from functools import partial
from pathlib import Path

from wsss_jax.data import external, stores
from wsss_jax.data.datasets import Source
from wsss_jax.data.stores import Store
from wsss_jax.stages.executors import Workers
from wsss_jax.stages.work import each, settle


def import_priors(
    reader: str,
    prior_folder: Path,
    source: Source,
    folder: Path,
    *,
    ids: tuple[str, ...],
    workers: Workers | None = None,
) -> Store:
    """Read one file per image by the named reader into a store at ``folder``.

    Images whose file is missing or damaged are skipped, printed, and listed in skipped.json.
    """
    agnostic = reader == "saliency_png"
    target = stores.create(
        folder,
        holds="scores",
        classes=external.SALIENCY.names if agnostic else source.classes.names,
        kind="probability",
        made_by={"stage": "import", "reader": reader, "from": prior_folder.name},
    )
    function = partial(_import_one, reader=reader, folder=prior_folder, source=source, to=target)
    missing = target.missing(ids)
    tally = each(f"import {folder.name}", function, missing, workers=workers or Workers())
    settle(target, tally)
    return target


def _import_one(id: str, *, reader: str, folder: Path, source: Source, to: Store) -> None:
    size = source.size(id)
    to.put_scores(id, external.read_prior(reader, folder, id, classes=source.classes, size=size))
