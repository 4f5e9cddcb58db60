"""From somebody's own photographs and a table of labels to masks: ``wsss run --data PHOTOS``.

Two systems of different kinds are trained on image labels, explained by class activation maps, and
combined (``combiner``); the combined maps become masks, which teach a segmentation network for
photographs without labels (`wsss predict`). True masks are read to judge and for nothing else, but
those that people corrected (``--corrected``): these teach a second result in a folder of its own.
Every step skips what is there, so the same command goes on where it was stopped.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.augment import Augmentation
from wsss_jax.data.corrected import Corrected, read_corrected, with_corrected
from wsss_jax.data.datasets import Source
from wsss_jax.data.exported import photograph_names
from wsss_jax.data.files import read_json, write_atomic
from wsss_jax.data.stores import Store, open_store
from wsss_jax.errors import UserError
from wsss_jax.recipes import photographs_plan as planning
from wsss_jax.recipes import report, summary
from wsss_jax.recipes.photographs_plan import Plan, System, clock, systems_of
from wsss_jax.recipes.recipe import Made
from wsss_jax.run.executors import Workers
from wsss_jax.run.folders import versions
from wsss_jax.stages import segment
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.export import Export, export
from wsss_jax.stages.features import Features, features
from wsss_jax.stages.import_maps import Import, import_priors
from wsss_jax.stages.masks import decide, fixed, judged
from wsss_jax.stages.predict import RECORD
from wsss_jax.stages.refine import Crf, refine
from wsss_jax.stages.segment import Segmentation
from wsss_jax.stages.train import Training, fit
from wsss_jax.systems.classifier import Classifier
from wsss_jax.systems.pixels import Segmenter
from wsss_jax.train.optimizers import Optim

CRF_FROM = 400
"""Long side in pixels from which a dense CRF gains: on photographs of 320 it costs 5 mIoU, on those
of 500 it gains 2 (benchmarks/RESULTS.md)."""

_SETTINGS = "photographs_settings.json"

FIRST = 5
"""Photographs that are named last, the least certain ones."""


@dataclass(frozen=True)
class Photographs:
    """Masks from photographs and their labels, in one command.

    Attributes:
        data: folder of photographs with labels; `wsss check` tells what is read.
        out: folder of everything that is made, runs/<name of data> by default.
        quick: a first look in minutes: few epochs, one scale, no segmentation network.
        weights: pretrained weights, one or two: a file, a name of `wsss weights list`, or auto,
            which takes what is installed.
        corrected: folder of masks that were corrected by hand (see `wsss export`); they teach a
            second result in a folder of its own.
        layout: one of DATASETS; "auto" tells them apart.
        seed: of training.
        gallery: photographs on the report page.
    """

    data: Path
    out: Path | None = None
    quick: bool = False
    weights: tuple[str, ...] = ("auto",)
    corrected: Path | None = None
    layout: str = "auto"
    seed: int = 0
    gallery: int = 60


class Result(NamedTuple):
    """Score maps and masks of one regime, and the folder of masks for people."""

    maps: Store
    masks: Store
    uncertainty: Store
    folder: Path


def command(settings: Annotated[Photographs, tyro.conf.arg(name="")]) -> None:
    """Make masks from a folder of photographs and their labels; nothing else is needed.

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
    corrected = None
    if settings.corrected is not None:
        corrected = read_corrected(settings.corrected, plan.source)
        print(f"{len(corrected.files)} corrected masks in {settings.corrected}")
    for line in planning.describe(plan):
        print(line)
    if not (out / RECORD).is_file():
        estimate = clock(planning.seconds(plan))
        print(
            f"about {estimate} on this machine, from one measured look of each network", flush=True
        )
    write_atomic(out / _SETTINGS, json.dumps(_identity(settings), indent=1).encode())
    steps = _Steps(settings, plan, out)
    result = steps.without_masks()
    order = least_certain(result.uncertainty, plan.source)
    _write_order(out, order, plan.source)
    page = _page(steps, result, order, out)
    again = None if corrected is None else steps.with_masks(corrected)
    _tell(steps, result, order, page)
    if corrected is not None and again is not None:
        print(gained(result.masks, again.masks, tuple(corrected.files), plan.source, plan.opened))
    print(f"this took {clock(time.monotonic() - started)}")
    return out


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
            f"corrected: {len(known)} masks gained {100 * float(gain.estimate):+.1f} mIoU (95 %: "
            f"{100 * float(gain.low):+.1f} … {100 * float(gain.high):+.1f}) on {len(judged_by)} "
            f"other photographs with true masks: {100 * old.miou():.1f} before, "
            f"{100 * new.miou():.1f} now"
        )
    changed = pixels = 0
    for id in others:
        old_mask, new_mask = before.get_mask(id), after.get_mask(id)
        changed += int((old_mask != new_mask).sum())
        pixels += old_mask.size
    share = changed / max(pixels, 1)
    return (
        f"corrected: {len(known)} masks changed {changed:,} pixels ({share:.1%}) of the "
        f"{len(others)} other photographs; no true masks of those tell what that gained"
    )


@dataclass
class _Steps:
    """The path, step by step, each into a folder of its own below ``out``."""

    settings: Photographs
    plan: Plan
    out: Path

    def __post_init__(self) -> None:
        self.source = self.plan.source
        self.ids = self.source.ids
        self.scoring = Scoring().on(self.source)
        self.systems: tuple[Store, ...] = ()
        self.inputs: Inputs | None = None

    def without_masks(self) -> Result:
        """Everything from image labels alone."""
        plan, sizes = self.plan, self.plan.sizes
        cams = []
        for system in systems_of(plan.networks):
            run = fit(plan.teaching, self.training(system), self.out / f"run_{system.name}")
            folder = self.out / f"cam_{system.name}"
            cams.append(explain(run, self.source, folder, self.explanation(), ids=self.ids))
        self.systems = tuple(cams)
        frozen = tuple(
            features(self.source, self.out / f"features_{name}", asked, ids=self.ids)
            for name, asked in self._features()
        )
        self.inputs = Inputs(self.source, self.systems, saliency=self._saliency(), features=frozen)
        result = self._combined(self.inputs, self.combining(), plan.teaching.ids, self.out)
        if sizes.segmenter:
            self._segmented(result.masks, self.out / "segmenter")
        self._record(self.out)
        return result

    def with_masks(self, corrected: Corrected) -> Result:
        """The same maps combined once more, with the corrected masks among what teaches."""
        assert self.inputs is not None
        folder = self.out / f"corrected_{len(corrected.files)}_{_digest(corrected)}"
        known = with_corrected(self.source, corrected)
        taught = tuple(dict.fromkeys((*self.plan.teaching.ids, *corrected.files)))
        shown = sum(bool(self.source.labels(id).any()) for id in corrected.files)
        if not shown:
            raise UserError("no corrected photograph has a class; label or correct another one")
        settings = replace(self.combining(), labelled=shown)
        inputs = replace(self.inputs, source=known, missing={})
        result = self._combined(inputs, settings, taught, folder, corrected)
        if self.plan.sizes.segmenter:
            self._segmented(result.masks, folder / "segmenter")
        self._record(folder, base="..")
        return result

    def _combined(
        self,
        inputs: Inputs,
        settings: Combining,
        taught: tuple[str, ...],
        folder: Path,
        corrected: Corrected | None = None,
    ) -> Result:
        run = learn(inputs, folder / "run_combiner", settings, ids=taught)
        fused = fuse(run, inputs, folder / "combined", ids=self.ids)
        maps = fused.maps
        if self._with_crf():
            crf = Crf() if self.scoring.background else Crf(background=None)
            maps = refine(maps, self.source, folder / "combined_crf", crf, ids=self.ids)
        made = decide(maps, folder / "pseudo_masks", fixed(maps, self.scoring), ids=self.ids)
        for id in corrected.files if corrected is not None else ():
            mask = corrected.mask(id) if corrected is not None else None
            if mask is not None:
                made.put_mask(id, mask)
        export(made, self.source, folder / "masks", Export("png"))
        return Result(maps, made, fused.uncertainty, folder / "masks")

    def _segmented(self, masks: Store, folder: Path) -> Path:
        """A light segmentation network that learns from masks (experiments/…_segment.py)."""
        sizes, network = self.plan.sizes, systems_of(self.plan.networks)[0]
        model = Segmenter(
            network.network.backbone,
            network.network.path,
            network.stride,
            width=96,
            label_smoothing=0.1,
            optim=_adam(1e-4),
        )
        settings = Segmentation(
            model, self._view(), sizes.segmenter, sizes.batch, seed=self.settings.seed
        )
        teaching = self.plan.teaching
        ids = set(masks.ids())
        usable = self.plan.opened(tuple(id for id in teaching.ids if id in ids))
        return segment.fit(usable, segment.pseudo_masks(masks, usable), settings, folder)

    def training(self, system: System) -> Training:
        """How one of the systems is trained."""
        sizes = self.plan.sizes
        model = Classifier(
            system.network.backbone,
            system.network.path,
            system.stride,
            label_smoothing=system.smoothing,
            optim=_adam(3e-4),
        )
        seed = self.settings.seed + (system.smoothing > 0)
        return Training(
            model, self._view(), sizes.epochs, sizes.batch, seed, imageless=self.plan.imageless
        )

    def _view(self) -> Augmentation:
        crop = self.plan.sizes.crop
        return Augmentation(crop=crop, long_side=(crop, 3 * crop // 2), hue=0.0)

    def explanation(self) -> Explanation:
        """Scales in the photographs' own size."""
        sizes = self.plan.sizes
        scales = tuple(round(scale * self.plan.scale, 3) for scale in sizes.scales)
        return Explanation("cam", scales, sizes.flip, sizes.batch)

    def _features(self) -> list[tuple[str, Features]]:
        return [
            (
                network.name,
                Features(
                    network.path,
                    backbone=network.backbone,
                    taps=network.taps,
                    stride=8 if network.convolutional else 14,
                    size=self.plan.sizes.side if network.convolutional else 392,
                ),
            )
            for network in self.plan.networks
        ]

    def combining(self) -> Combining:
        """How maps are combined."""
        return Combining(
            cells=self.plan.sizes.cells,
            background=self.scoring.background,
            seed=self.settings.seed,
        )

    def _saliency(self) -> Store | None:
        if self.plan.saliency is None or not self.scoring.background:
            return None
        asked, folder = Import("saliency_png", stride=1), self.out / "saliency"
        return import_priors(asked, self.plan.saliency, self.source, folder, ids=self.ids)

    def _with_crf(self) -> bool:
        sides = [max(self.source.size(id)) for id in self.ids]
        return not self.settings.quick and float(np.median(sides)) >= CRF_FROM

    def _record(self, folder: Path, base: str = ".") -> None:
        """What `wsss predict` needs to know of a result. base: where systems and features lie."""
        sizes, teaching = self.plan.sizes, self.plan.teaching
        content = {
            "classes": list(self.source.classes.names),
            "background": self.scoring.background,
            "segmenter": "segmenter" if sizes.segmenter else None,
            "base": base,
            "systems": [system.name for system in systems_of(self.plan.networks)],
            "features": {
                name: {
                    "weights": str(Path(str(asked.weights)).resolve()),
                    "backbone": asked.backbone,
                    "taps": asked.taps,
                    "stride": asked.stride,
                    "size": asked.size,
                }
                for name, asked in self._features()
            },
            "side": sizes.side,
            "scales": sizes.scales,
            "flip": sizes.flip,
            "always": all(teaching.labels(id).any() for id in teaching.ids),
            "saliency": self.plan.saliency is not None and self.scoring.background,
            "versions": versions(),
        }
        write_atomic(folder / RECORD, json.dumps(content, indent=1).encode())


def _identity(settings: Photographs) -> dict[str, object]:
    """What must stay the same for the same folder."""
    return {
        "data": str(settings.data.resolve()),
        "quick": settings.quick,
        "weights": list(settings.weights),
        "seed": settings.seed,
    }


def _refuse_others(out: Path, settings: Photographs) -> None:
    """UserError where the folder holds another run."""
    if not settings.data.is_dir():
        raise UserError(f"{settings.data}: no such folder")
    path = out / _SETTINGS
    if not path.is_file():
        return
    held, now = read_json(path), _identity(settings)
    changed = [f"{name}: {held.get(name)} → {now[name]}" for name in now
               if held.get(name) != now[name]]  # fmt: skip
    if changed:
        raise UserError(
            f"{out} holds another run ({'; '.join(changed)}); choose another folder with --out"
        )


def _adam(rate: float) -> Optim:
    # So few steps are too few for plain gradients; AdamW's are of one size from the first on.
    return Optim("adamw", learning_rate=rate, warm_up=10)


def _digest(corrected: Corrected) -> str:
    """Of the ids and pixels of corrected masks, so that others are another result."""
    total = hashlib.sha256()
    for id in corrected.files:
        mask = corrected.mask(id)
        total.update(id.encode() + (b"" if mask is None else mask.tobytes()))
    return total.hexdigest()[:6]


def _write_order(out: Path, order: Sequence[tuple[str, float]], source: Source) -> None:
    names = photograph_names(source, [id for id, _ in order])
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("photograph", "uncertainty"))
    for id, value in order:
        table.writerow((str(names.get(id, PurePosixPath(id))), f"{value:.4f}"))
    write_atomic(out / "least_certain.csv", text.getvalue().encode())


def _page(steps: _Steps, result: Result, order: Sequence[tuple[str, float]], out: Path) -> Path:
    """Numbers where there are true masks (also as results.md), and the report page."""
    plan = steps.plan
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
        rows = summary.rows(made, results)
    if rows:
        summary.write(out, rows, plan.source.classes, versions=versions())
        summary.show(rows)
    return report.page_of_photographs(
        out / "report.html",
        report.Shown(made, rows, plan.source, steps.scoring, tuple(order)),
        lead=_lead(steps, result),
        count=steps.settings.gallery,
        settings=_shown_settings(steps),
    )


def _judged_sources(plan: Plan) -> dict[str, Source]:
    """The data set's own splits with true masks, or all photographs together."""
    found = {}
    for split in plan.splits:
        ids = set(planning.open_dataset(plan.root, split=split, layout=plan.layout).ids)
        found[split] = plan.opened(tuple(id for id in plan.source.ids if id in ids))
    return found or {"all": plan.source}


def _lead(steps: _Steps, result: Result) -> tuple[str, str]:
    plan = steps.plan
    names = " and ".join(system.name for system in systems_of(plan.networks))
    classes = len(plan.source.classes)
    return (
        f"Image labels of {len(plan.teaching.ids)} photographs ({classes} classes) taught two "
        f"classifiers ({names}), whose class maps were combined into masks of "
        f"{len(plan.source.ids)} photographs.",
        f"Take the masks in the folder {result.folder.name}: palette PNGs with the names of your "
        "photographs, 0 for background, then the classes from 1 on.",
    )


def _shown_settings(steps: _Steps) -> dict[str, str]:
    """Everything that was chosen, by name."""
    settings = {
        "sizes": str(steps.plan.sizes),
        "explanation": str(steps.explanation()),
        "combining": str(steps.combining()),
    }
    for system in systems_of(steps.plan.networks):
        settings[system.name] = str(steps.training(system))
    return settings


def _tell(steps: _Steps, result: Result, order: Sequence[tuple[str, float]], page: Path) -> None:
    names = photograph_names(steps.source, [id for id, _ in order[:FIRST]])
    listed = ", ".join(f"{names.get(id, id)} ({value:.2f})" for id, value in order[:FIRST])
    print(f"masks:   {result.folder}")
    print(f"report:  {page}")
    print(f"look first at the least certain (mean entropy): {listed}")
    print(f"         all of them in order: {steps.out / 'least_certain.csv'}")
    print(f"next:    wsss predict {steps.out} NEW_PHOTOGRAPHS --out MASKS")
