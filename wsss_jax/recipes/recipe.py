"""The whole path as one recipe: train, explain, refine, fuse, decide, evaluate, report.

Every step writes a store beside the others and skips what is there, so the same command goes on
where it was stopped. Nothing before ``judge_all`` reads a true mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.config import lookup
from wsss_jax.data.provenance import NOT_STATED
from wsss_jax.data.stores import Store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source, open_dataset, open_together
from wsss_jax.run.executors import Workers
from wsss_jax.run.thresholds import label_free_threshold
from wsss_jax.run.training import Training
from wsss_jax.stages.combine import Fusion, combine
from wsss_jax.stages.evaluate import Result, Scoring, evaluate
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.features import Features, features
from wsss_jax.stages.import_maps import Import, import_priors
from wsss_jax.stages.masks import decide, fixed
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import AFTER_COMBINING, Crf, refine
from wsss_jax.stages.train import fit
from wsss_jax.systems import Model
from wsss_jax.train import parallel

VOTES = ("majority_vote", "staple", "dawid_skene")
"""Rules whose result is a share of votes or a posterior: half is their threshold by meaning."""

Refinement = Literal["saliency", "walk", "crf"]
REFINEMENTS: tuple[Refinement, ...] = ("saliency", "walk", "crf")


@dataclass(frozen=True)
class Recipe:
    """Everything a run is told.

    Attributes:
        name: of the run.
        data: the data set's folder.
        layout: one of DATASETS; "auto" tells them apart.
        classes: these of the data set's classes alone, all others being background; () takes all
            as they are.
        train_split: where image labels are learned from.
        splits: where masks are made and judged.
        systems: by name, what is trained.
        imageless: classes that may be without any training image; without it, one such class stops
            the run.
        explanation: which maps are made.
        saliency: folder of 8-bit saliency PNGs; None to do without.
        saliency_supervision: what people provided for them to be made, for tables of results.
        walk: random walk of each system and of the fusion.
        crf: dense CRF of each system and of the fusion.
        refinements: which of saliency, walk and crf are done; always in that order.
        fusions: closed forms to compare, names of FUSIONS.
        combiner: the learned combiner of the systems' class maps, which then makes the
            pseudo-masks; None to do without.
        last: dense CRF of what the combiner made; None to do without.
        features: frozen features for its linear probe and, where there is a second network,
            for smoothing; () does without both.
        rivals: whether each system is also refined alone as the combiner refines all of them, so
            that what fusing gains is told from what refining gains.
        scoring: what counts, and where background begins.
        workers: processes and shards of the per-image stages.
        gallery: photographs on the report page.
    """

    name: str
    data: Path
    layout: str = "auto"
    classes: tuple[str, ...] = ()
    train_split: str = "train"
    splits: Annotated[tuple[str, ...], tyro.conf.arg(name="split")] = ("train", "val")
    systems: Annotated[dict[str, Training[Model]], tyro.conf.AvoidSubcommands] = field(
        default_factory=dict
    )
    imageless: tuple[str, ...] = ()
    explanation: Explanation = field(default_factory=Explanation)
    saliency: Path | None = None
    saliency_supervision: str = NOT_STATED
    walk: Walk = field(default_factory=Walk)
    crf: Crf = field(default_factory=Crf)
    refinements: tuple[Refinement, ...] = REFINEMENTS
    fusions: tuple[str, ...] = ("mean",)
    combiner: Annotated[Combining | None, tyro.conf.AvoidSubcommands] = None
    last: Annotated[Crf | None, tyro.conf.AvoidSubcommands] = field(
        default_factory=lambda: Crf(AFTER_COMBINING)
    )
    features: tuple[Features, ...] = ()
    rivals: bool = False
    scoring: Scoring = field(default_factory=Scoring)
    workers: Workers = field(default_factory=Workers)
    gallery: int = 40


@dataclass(frozen=True)
class Made:
    """All stores of a run in pipeline order, by name, and the group each belongs to.

    The groups of single systems begin with "single".
    """

    stores: Mapping[str, Store]
    groups: Mapping[str, str]
    final: str
    saliency: Store | None
    masks: Store


def make(recipe: Recipe, out: Path) -> Made:
    """Everything from photographs and labels to pseudo-masks; resumes what ``out`` holds."""
    # The recipe's steps build on one another, so a job array must not cut them into shares.
    recipe = replace(recipe, workers=replace(recipe.workers, shard=(0, 1)))
    everything = opened(recipe)
    scoring = recipe.scoring.on(everything)
    if not scoring.background:
        last = recipe.last and replace(recipe.last, background=None)
        recipe = replace(recipe, crf=replace(recipe.crf, background=None), last=last)
    cue = None
    if recipe.saliency is not None and scoring.background:
        with parallel.in_turn():
            cue = import_priors(
                Import("saliency_png", stride=1, supervision=recipe.saliency_supervision),
                recipe.saliency,
                everything,
                out / "saliency",
                ids=everything.ids,
                workers=recipe.workers,
            )
    steps = _Steps(recipe, out, everything, cue)
    cams = [steps.system(name, training) for name, training in recipe.systems.items()]
    with parallel.in_turn():
        return _masks(recipe, steps, cams)


def _masks(recipe: Recipe, steps: "_Steps", cams: list[Store]) -> Made:
    """What follows training: refine, fuse, decide."""
    for store in cams:
        steps.refined(store, store.folder.name, "single")
    fused = {rule: steps.fused(cams, rule) for rule in recipe.fusions}
    final = steps.refined(fused["mean"] if "mean" in fused else cams[0], "fused", "fused")
    if recipe.combiner is not None:
        final = steps.learned(cams, recipe.combiner)
    final_masks = decide(
        final,
        steps.out / "pseudo_masks",
        fixed(final, recipe.scoring.on(steps.source)),
        ids=steps.source.ids,
        workers=recipe.workers,
    )
    return Made(
        stores=steps.stores,
        groups=steps.groups,
        final=final.folder.name,
        saliency=steps.cue,
        masks=final_masks,
    )


def train_systems(recipe: Recipe, out: Path, names: Sequence[str]) -> list[Store]:
    """Train and explain these systems alone, so that machines can share a recipe's systems.

    ``make`` on the same folder then finds them done. Raises ValueError for an unknown name.
    """
    chosen = {name: lookup(recipe.systems, name, "system") for name in names}
    steps = _Steps(recipe, out, opened(recipe), None)
    return [steps.system(name, training) for name, training in chosen.items()]


def judge_all(recipe: Recipe, made: Made) -> list[Result]:
    """Every store on every split, against the true masks."""
    results = []
    otsu: dict[str, float | None] = {}
    if recipe.scoring.on(opened(recipe)).background:
        teaching = opened(recipe, recipe.train_split).ids
        otsu = {
            name: label_free_threshold(store, teaching)
            for name, store in made.stores.items()
            if not _votes(name)
        }
    for split in recipe.splits:
        source = opened(recipe, split)
        for name, store in made.stores.items():
            scoring = recipe.scoring.on(source)
            if _votes(name):
                scoring = replace(scoring, threshold=0.5)
            found = otsu.get(name)
            results.append(
                evaluate(store, source, scoring, split=split, otsu=found, workers=recipe.workers)
            )
    return results


def _votes(name: str) -> bool:
    return name.removeprefix("fuse_") in VOTES


@dataclass(frozen=True)
class _Steps:
    """The run while it is being made: each method adds stores to the growing list."""

    recipe: Recipe
    out: Path
    source: Source
    cue: Store | None
    stores: dict[str, Store] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def system(self, name: str, training: Training[Model]) -> Store:
        """Train one system and explain it."""
        recipe = self.recipe
        run = fit(
            opened(recipe, recipe.train_split),
            training,
            self.out / f"run_{name}",
            imageless=recipe.imageless,
        )
        folder = self.out / f"cam_{name}"
        with parallel.in_turn():
            maps = explain(run, self.source, folder, recipe.explanation, ids=self.source.ids)
        return self._keep(maps, "single: class maps")

    def fused(self, cams: list[Store], rule: str) -> Store:
        """One closed form over all systems' maps."""
        fusion = Fusion(rule, renormalise=rule not in VOTES)
        folder = self.out / f"fuse_{rule}"
        store = combine(
            cams,
            self.source,
            folder,
            fusion,
            ids=self.source.ids,
            workers=self.recipe.workers,
        )
        return self._keep(store, "fused: closed forms")

    def learned(self, cams: list[Store], settings: Combining) -> Store:
        """The learned combiner, from the training images alone, on all of them."""
        recipe, ids = self.recipe, self.source.ids
        background = recipe.scoring.on(self.source).background
        settings = replace(settings, background=background)
        frozen = tuple(
            features(self.source, self.out / f"features_{one.name()}", one, ids=ids)
            for one in recipe.features
        )
        inputs = Inputs(self.source, tuple(cams), saliency=self.cue, features=frozen)
        teaching = opened(recipe, recipe.train_split).ids
        run = learn(inputs, self.out / "run_combiner", settings, ids=teaching)
        for one in cams if recipe.rivals else ():
            alone = replace(inputs, systems=(one,), missing={})
            name = one.folder.name.removeprefix("cam_")
            own = learn(alone, self.out / f"run_combiner_{name}", settings, ids=teaching)
            store = fuse(own, alone, self.out / f"combined_{name}", ids=ids).maps
            self._ended(store, "single: refined as the combiner does")
        return self._ended(
            fuse(run, inputs, self.out / "combined", ids=ids).maps, "combined: learned"
        )

    def _ended(self, combined: Store, group: str) -> Store:
        """What a combiner made, after the recipe's last CRF where it has one."""
        self._keep(combined, group)
        recipe, folder = self.recipe, self.out / f"{combined.folder.name}_crf"
        if recipe.last is None:
            return combined
        # Saliency and a walk are in it already; only the outlines in the photograph are left.
        maps = refine(
            combined, self.source, folder, recipe.last, ids=self.source.ids, workers=recipe.workers
        )
        return self._keep(maps, f"{group}, dense CRF")

    def refined(self, maps: Store, stem: str, group: str) -> Store:
        """The recipe's refinements, one after the other; the last store is returned."""
        stem, steps = stem.removeprefix("cam_"), self.recipe.refinements
        ids, workers = self.source.ids, self.recipe.workers
        if self.cue is not None and "saliency" in steps:
            folder = self.out / f"{stem}_saliency"
            maps = combine(
                [maps], self.source, folder, Fusion(), ids=ids, saliency=self.cue, workers=workers
            )
            self._keep(maps, f"{group}: × saliency")
        for settings, name in ((self.recipe.walk, "walk"), (self.recipe.crf, "crf")):
            if name not in steps:
                continue
            folder = self.out / f"{stem}_{name}"
            maps = refine(maps, self.source, folder, settings, ids=ids, workers=workers)
            self._keep(maps, f"{group}: + {'random walk' if name == 'walk' else 'dense CRF'}")
        return maps

    def _keep(self, store: Store, group: str) -> Store:
        self.stores[store.folder.name] = store
        self.groups[store.folder.name] = group
        return store


def opened(recipe: Recipe, split: str | None = None) -> Source:
    """The recipe's classes on one split of its data set; None for all its splits together."""
    if split is None:
        source = open_together(recipe.data, recipe.splits, recipe.layout)
    else:
        source = open_dataset(recipe.data, split=split, layout=recipe.layout)
    return views.only(source, recipe.classes)
