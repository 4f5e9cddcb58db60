"""The steps of a run on somebody's own photographs: each writes a store, or a run, of its own.

True masks are read by none of them, but those that people corrected by ``Steps.with_masks``.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from wsss_jax.batches.augment import Augmentation
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data import json_records
from wsss_jax.data.stores import Store
from wsss_jax.errors import UserError
from wsss_jax.export.corrected import Corrected, with_corrected
from wsss_jax.export.stated import CORRECTED, PSEUDO_MASKS
from wsss_jax.recipes.photographs_networks import System, features_of, systems_of
from wsss_jax.recipes.photographs_plan import Plan, features_size
from wsss_jax.run.folders import versions
from wsss_jax.run.training import Training
from wsss_jax.stages import segment
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.export import Export, export
from wsss_jax.stages.features import Features, features
from wsss_jax.stages.import_maps import Import, import_priors
from wsss_jax.stages.masks import decide, fixed
from wsss_jax.stages.parts import segment_linear
from wsss_jax.stages.parts.segment_linear import Linear
from wsss_jax.stages.predict import HEAD, RECORD
from wsss_jax.stages.refine import AFTER_COMBINING, Crf, refine
from wsss_jax.stages.train import fit
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train import parallel
from wsss_jax.train.optimizers import Optim
from wsss_jax.weights import sources


class Result(NamedTuple):
    """Score maps and masks of one regime, and the folder of masks for people."""

    maps: Store
    masks: Store
    uncertainty: Store
    folder: Path


@dataclass
class Steps:
    """The path, step by step, each into a folder of its own below ``out``."""

    plan: Plan
    out: Path
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        self.source = self.plan.source
        self.ids = self.source.ids
        self.scoring = Scoring().on(self.source)
        self.systems: tuple[Store, ...] = ()
        self.inputs: Inputs | None = None

    def without_masks(self) -> Result:
        """Everything from image labels alone."""
        plan = self.plan
        cams = []
        for system in systems_of(plan.networks):
            run = fit(
                plan.teaching,
                self.training(system),
                self.out / f"run_{system.name}",
                imageless=plan.imageless,
            )
            folder = self.out / f"cam_{system.name}"
            with parallel.in_turn():
                cams.append(explain(run, self.source, folder, self.explanation(), ids=self.ids))
        self.systems = tuple(cams)
        with parallel.in_turn():
            self.inputs = self._inputs()
            result = self._combined(self.inputs, self.combining(), plan.teaching.ids, self.out)
            self._segmented(self.inputs, result.masks, self.out / HEAD)
        self._record(self.out)
        return result

    def _inputs(self) -> Inputs:
        """What is combined: class maps, saliency, and features of frozen networks."""
        frozen = tuple(
            features(self.source, self.out / f"features_{name}", asked, ids=self.ids)
            for name, asked in self._features()
        )
        return Inputs(self.source, self.systems, saliency=self._saliency(), features=frozen)

    def with_masks(self, corrected: Corrected) -> Result:
        """The same maps combined once more, with the corrected masks among what teaches."""
        assert self.inputs is not None
        folder = self.out / f"{CORRECTED}{len(corrected.files)}_{_digest(corrected)}"
        known = with_corrected(self.source, corrected)
        taught = tuple(dict.fromkeys((*self.plan.teaching.ids, *corrected.files)))
        shown = sum(bool(self.source.labels(id).any()) for id in corrected.files)
        if not shown:
            raise UserError("no corrected photograph has a class; label or correct another one")
        settings = replace(self.combining(), labelled=shown)
        inputs = replace(self.inputs, source=known, missing={})
        with parallel.in_turn():
            result = self._combined(inputs, settings, taught, folder, corrected)
            self._segmented(inputs, result.masks, folder / HEAD)
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
        if not self.quick:
            crf = Crf(AFTER_COMBINING)
            if not self.scoring.background:
                crf = replace(crf, background=None)
            maps = refine(maps, self.source, folder / "combined_crf", crf, ids=self.ids)
        made = decide(maps, folder / PSEUDO_MASKS, fixed(maps, self.scoring), ids=self.ids)
        for id in corrected.files if corrected is not None else ():
            mask = corrected.mask(id) if corrected is not None else None
            if mask is not None:
                made.put_mask(id, mask)
        export(made, self.source, folder / "masks", Export("png"))
        return Result(maps, made, fused.uncertainty, folder / "masks")

    def _segmented(self, inputs: Inputs, masks: Store, folder: Path) -> Path:
        """The head on frozen features that learns from masks, for photographs without labels."""
        ids = set(masks.ids())
        usable = self.plan.opened(tuple(id for id in self.plan.teaching.ids if id in ids))
        teacher = segment.pseudo_masks(masks, usable)
        settings = Linear(cells=self.plan.sizes.cells, seed=self.seed)
        return segment_linear.fit(usable, teacher, inputs.features, settings, folder)

    def training(self, system: System) -> Training[Classifier]:
        """How one of the systems is trained."""
        sizes = self.plan.sizes
        model = Classifier(
            system.network.backbone,
            system.network.path,
            system.stride,
            label_smoothing=system.smoothing,
            optim=_adam(3e-4),
        )
        seed = self.seed + (system.smoothing > 0)
        return Training(model, self._view(), sizes.epochs, sizes.batch, seed)

    def _view(self) -> Augmentation:
        crop = self.plan.sizes.crop
        return Augmentation(crop=crop, long_side=(crop, 3 * crop // 2), hue=0.0)

    def explanation(self) -> Explanation:
        """Scales in the photographs' own size."""
        sizes = self.plan.sizes
        scales = tuple(round(scale * self.plan.scale, 3) for scale in sizes.scales)
        return Explanation("cam", scales, sizes.flip, sizes.batch)

    def _features(self) -> list[tuple[str, Features]]:
        """In the order of ``features_of``."""
        return [
            (
                network.name,
                Features(
                    network.path,
                    backbone=network.backbone,
                    taps=network.taps,
                    stride=network.stride,
                    size=features_size(network, self.plan.sizes),
                ),
            )
            for network in features_of(self.plan.networks)
        ]

    def combining(self) -> Combining:
        """How maps are combined."""
        return Combining(
            cells=self.plan.sizes.cells,
            background=self.scoring.background,
            seed=self.seed,
        )

    def _saliency(self) -> Store | None:
        if self.plan.saliency is None or not self.scoring.background:
            return None
        asked, folder = Import("saliency_png", stride=1), self.out / "saliency"
        return import_priors(asked, self.plan.saliency, self.source, folder, ids=self.ids)

    def _record(self, folder: Path, base: str = ".") -> None:
        """What `wsss predict` needs to know of a result. base: where systems and features lie."""
        if not parallel.is_first():
            return
        content = {
            "classes": list(self.source.classes.names),
            "background": self.scoring.background,
            "base": base,
            "systems": [system.name for system in systems_of(self.plan.networks)],
            "features": {
                name: {
                    "weights": str(asked.weights.absolute()),
                    "known": sources.identified(asked.weights).name,
                    "backbone": asked.backbone,
                    "taps": asked.taps,
                    "stride": asked.stride,
                    "size": asked.size,
                }
                for name, asked in self._features()
            },
            "side": self.plan.sizes.side,
            "versions": versions(),
        }
        json_records.write(folder / RECORD, content)


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
