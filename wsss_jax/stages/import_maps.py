"""Priors and cues that other tools wrote, imported as score maps or regions of ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss_jax.config import Record, check_numbers
from wsss_jax.data import json_records, stores
from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import write_atomic
from wsss_jax.data.photographs import working_size
from wsss_jax.data.provenance import NOT_STATED, inherited, recorded
from wsss_jax.data.stores import Store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError
from wsss_jax.ops.resize import grid_size
from wsss_jax.priors import external, layouts, places, regions
from wsss_jax.priors.external import Wanted
from wsss_jax.priors.file_layouts import REGIONS
from wsss_jax.priors.layouts import AUTO, Plan
from wsss_jax.priors.prior_readers import COARSE, READERS
from wsss_jax.run import left_out
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import SHOWN, each, settle
from wsss_jax.types import Provenance, Size

REPAIRS = "repairs"
"""Name of the list, next to a store, of what was put right or left out, in words, by image id."""


@dataclass(frozen=True)
class Import:
    """How the files are read.

    Attributes:
        layout: which tool wrote them, a name of READERS, or "regions"; "auto" recognises it from
            the files, and stops if it is in doubt.
        stride: pixels per cell of the store; finer maps are averaged, coarser ones stay. If not
            given, 1 for masks and 4 for all others.
        first_class: number of the first class in the files, if it is not the layout's usual one.
        field: which field to read, if files have several (high_res or cam of IRN). Not given: the
            finest.
        suffix: what follows the id in the file names, if images have several files.
        supervision: what people provided to make these maps ("image labels", "people's masks");
            tables of results show it. Not given, for a store: what it records.
        licence: of these maps.
    """

    layout: str = AUTO
    stride: int | None = None
    first_class: int | None = None
    field: str | None = None
    suffix: str | None = None
    supervision: str = NOT_STATED
    licence: str = NOT_STATED

    def __post_init__(self) -> None:
        if self.stride is not None:
            check_numbers(self, "stride")


class _Told(NamedTuple):
    """What an import of one image has to tell: notes, and classes left out with the reason."""

    notes: tuple[str, ...]
    dropped: Mapping[str, str]


def import_priors(
    settings: Import,
    prior_folder: Path,
    source: Source,
    folder: Path,
    *,
    ids: tuple[str, ...],
    workers: Workers | None = None,
) -> Store:
    """Read one file per image into a store of score maps, or of regions, at ``folder``.

    Images whose file is missing, damaged or not theirs are skipped, printed, and listed in
    skipped.json. A class whose map cannot be trusted is left out, listed in dropped.json; the
    others of its image are kept. What was put right on the way is printed and listed in
    repairs.json. Masks come as maps of 0 and 1, which the store's index tells (``hard``).
    prior_folder: or one JSON file with the regions of all images. Raises BadFileError before
    anything is written where the folder's layout or numbering is in doubt.
    """
    plan = layouts.survey(
        prior_folder,
        source,
        ids,
        layout=settings.layout,
        first=settings.first_class,
        field=settings.field,
        suffix=settings.suffix,
    )
    made_by = _made_by(settings, plan, prior_folder)
    _announce(prior_folder, plan, made_by["stride"], source.classes)
    target = stores.create(
        folder,
        holds="regions" if plan.layout == REGIONS else "scores",
        classes=plan.classes,
        kind=plan.kind,
        made_by=made_by,
    )
    workers = workers or Workers()
    left = target.missing(ids)
    if target.ids() and len(left) < len(ids):
        print(
            f"{folder}: maps of {len(ids) - len(left)} images are there from before, and are not "
            "read again; to read them again, delete it"
        )
    function = partial(_import_one, plan=plan, stride=made_by["stride"], source=source, to=target)
    told: dict[str, _Told] = {}
    try:
        tally = each(
            f"import {folder.name}",
            function,
            left,
            workers=workers,
            collect=lambda id, found: told.update({id: found} if any(found) else {}),
        )
    finally:  # of a run that is stopped, too: its images are not read again
        _record(folder, told, workers.share_number())
    left_out.note_maps(folder, sum(map(len, external.dropped_classes(folder).values())))
    settle(target, tally)
    return target


def _made_by(settings: Import, plan: Plan, prior_folder: Path) -> Record:
    how = READERS.get(plan.layout)
    stride = settings.stride or (COARSE if how is None else 1 if plan.exported else how.stride)
    return {
        "stage": "import",
        "layout": plan.layout,
        "first_class": plan.first,
        "stride": 1 if how is None else stride,
        "field": plan.field,
        "hard": how is not None and how.hard,
        "from": prior_folder.name,
        **_taught_by(settings, prior_folder),
    }


def _taught_by(settings: Import, prior_folder: Path) -> Record:
    if (prior_folder / "index.json").is_file():
        return inherited(stores.open_store(prior_folder))
    return recorded(Provenance(prior_folder.name, settings.licence, settings.supervision))


def _announce(prior_folder: Path, plan: Plan, stride: int, own: ClassList) -> None:
    told = f"layout {plan.layout}"
    if plan.layout != REGIONS:
        told += f", first class {plan.first}, {plan.kind}, stride {stride}"
    told += f", field {plan.field}" if plan.field else ""
    told += ", an export of this program" if plan.exported else ""
    told += "".join(
        f", classes numbered as all of {name}'s"
        for name, whole in layouts.NUMBERINGS.items()
        if whole == plan.numbering != own
    )
    if plan.places:
        told += f", files {places.in_words(plan.places)}"
    print(f"import {prior_folder}: {told}")


def _import_one(id: str, *, plan: Plan, stride: int, source: Source, to: Store) -> _Told:
    size = source.size(id)
    if plan.layout == REGIONS:
        return _import_regions(id, plan, size, to)
    grid: Size = grid_size(working_size(size), stride)
    entries = None if plan.entries is None else plan.entries.get(id, [])
    own, numbering = source.classes, plan.numbering
    seen = source if numbering == own else views.among(source, numbering)
    wanted = Wanted(
        numbering, seen.labels(id), size, grid, plan.first, plan.kind, plan.field, entries
    )
    if plan.store is not None:
        prior = external.read_record(plan.layout, plan.store, id, wanted)
    elif plan.entries is None:
        prior = external.read_prior(plan.layout, plan.folder, id, wanted, plan.places)
    else:
        prior = external.read_file(plan.layout, plan.folder, wanted)
    maps = prior.maps
    if numbering != own and plan.classes == own.names:
        classes = [own.index(numbering.names[label]) for label in maps.classes]
        maps = replace(maps, classes=np.asarray(classes, np.int32))
    to.put_scores(id, maps)
    return _Told(prior.notes, prior.dropped)


def _import_regions(id: str, plan: Plan, size: Size, to: Store) -> _Told:
    if plan.store is not None:
        found = regions.get_regions(plan.store, id)
        if found.size != size:
            raise BadFileError(f"regions of a photograph of {found.size}, this one is {size}")
    elif plan.entries is not None:
        found = regions.parsed(plan.entries.get(id, []), plan.folder, size=size)
    else:
        path = external.file_of(plan.folder, id, READERS["instances"], plan.places)
        found = regions.read_regions(path, size=size)
    regions.put_regions(to, id, found)
    return _Told(found.notes, {})


def _record(folder: Path, told: Mapping[str, _Told], shard: tuple[int, int]) -> None:
    """Print what was put right or left out, and add it to the lists next to the store."""
    if not told:
        return
    print(f"{folder.name}: {len(told)} image(s) with something put right or lacking")
    for id, found in sorted(told.items())[:SHOWN]:
        print(f"  {id}: {'; '.join(found.notes)}")
    dropped = {id: dict(found.dropped) for id, found in told.items() if found.dropped}
    if dropped:
        count = sum(map(len, dropped.values()))
        print(f"{folder.name}: {count} map(s) of {len(dropped)} image(s) left out, all listed in "
              f"{external.DROPPED}.json; the other classes of these images are kept")  # fmt: skip
    _add(folder, REPAIRS, {id: list(found.notes) for id, found in told.items()}, shard)
    _add(folder, external.DROPPED, dropped, shard)


def _add(folder: Path, name: str, new: Record, shard: tuple[int, int]) -> None:
    if not new:
        return
    path = folder / (f"{name}.json" if shard[1] == 1 else f"{name}_{shard[0]}_of_{shard[1]}.json")
    before = json_records.read(path) if path.is_file() else {}
    write_atomic(path, json.dumps({**before, **new}, indent=1, sort_keys=True).encode())
