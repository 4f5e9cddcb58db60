"""Priors and cues that other tools wrote, imported as score maps of ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wsss_jax.data import external, layouts, stores
from wsss_jax.data.datasets import Source
from wsss_jax.data.external import READERS, Wanted
from wsss_jax.data.files import read_json, write_atomic
from wsss_jax.data.layouts import AUTO, Plan
from wsss_jax.data.photographs import working_size
from wsss_jax.data.stores import Store
from wsss_jax.errors import UserError
from wsss_jax.explain import multiscale
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import SHOWN, each, settle
from wsss_jax.types import Size


@dataclass(frozen=True)
class Import:
    """How the files are read.

    Attributes:
        layout: which tool wrote them, a name of READERS; "auto" tells from the files, and refuses
            what it cannot tell apart.
        stride: pixels per cell of what is kept; finer maps are averaged, coarser ones stay.
        first_class: number of the first class in the files, where it is not the layout's own.
    """

    layout: str = AUTO
    stride: int = multiscale.STRIDE
    first_class: int | None = None

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UserError(f"stride is {self.stride}; wanted 1 or more pixels per cell")


def import_priors(
    settings: Import,
    prior_folder: Path,
    source: Source,
    folder: Path,
    *,
    ids: tuple[str, ...],
    workers: Workers | None = None,
) -> Store:
    """Read one file per image into a store of score maps at ``folder``.

    Images whose file is missing, damaged or not theirs are skipped, printed, and listed in
    skipped.json; what was put right on the way is printed and listed in repairs.json. Masks come as
    maps of 0 and 1, which the store's index says (``hard``). Raises BadFileError before anything is
    written where the folder's layout or numbering is in doubt.
    """
    plan = layouts.survey(
        prior_folder, source, ids, layout=settings.layout, first=settings.first_class
    )
    print(f"import {prior_folder}: layout {plan.layout}, first class {plan.first}, {plan.kind}")
    made_by = {
        "stage": "import",
        "layout": plan.layout,
        "first_class": plan.first,
        "stride": settings.stride,
        "hard": READERS[plan.layout].hard,
        "from": prior_folder.name,
    }
    target = stores.create(
        folder, holds="scores", classes=plan.classes, kind=plan.kind, made_by=made_by
    )
    workers = workers or Workers()
    function = partial(_import_one, plan=plan, stride=settings.stride, source=source, to=target)
    repairs: dict[str, list[str]] = {}
    try:
        tally = each(
            f"import {folder.name}",
            function,
            target.missing(ids),
            workers=workers,
            collect=lambda id, notes: repairs.update({id: list(notes)} if notes else {}),
        )
    finally:  # of a run that is stopped, too: its images are not read again
        _record_repairs(folder, repairs, workers.share_number())
    settle(target, tally)
    return target


def _import_one(id: str, *, plan: Plan, stride: int, source: Source, to: Store) -> tuple[str, ...]:
    size = source.size(id)
    grid: Size = multiscale.grid_size(working_size(size), stride)
    wanted = Wanted(source.classes, source.labels(id), size, grid, plan.first, plan.kind)
    prior = external.read_prior(plan.layout, plan.folder, id, wanted)
    to.put_scores(id, prior.maps)
    return prior.notes


def _record_repairs(folder: Path, repairs: Mapping[str, list[str]], shard: tuple[int, int]) -> None:
    """Print what was put right, and add it to the list beside the store."""
    if not repairs:
        return
    print(f"{folder.name}: {len(repairs)} image(s) with something put right or lacking")
    for id, notes in sorted(repairs.items())[:SHOWN]:
        print(f"  {id}: {'; '.join(notes)}")
    path = folder / ("repairs.json" if shard[1] == 1 else f"repairs_{shard[0]}_of_{shard[1]}.json")
    before = read_json(path) if path.is_file() else {}
    write_atomic(path, json.dumps({**before, **repairs}, indent=1, sort_keys=True).encode())
