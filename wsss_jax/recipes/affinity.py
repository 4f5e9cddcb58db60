"""Learned affinity as one plan: labels from score maps, a network, its walk, a CRF, a verdict.

Every step writes a store beside the others and skips what is there, so the same command goes on
where it was stopped. True masks are read to judge and for nothing else.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from wsss_jax.batches.augment import Augmentation
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source, open_dataset, open_together
from wsss_jax.recipes import summary
from wsss_jax.run.executors import Workers
from wsss_jax.run.training import Training
from wsss_jax.stages.affinity import learn_affinity
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.parts.affinity_labels import Irn, Rule, make_labels
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import Crf, refine
from wsss_jax.systems.affinity import AffinityNet
from wsss_jax.train import parallel
from wsss_jax.train.optimizers import Optim


def light(weights: Path | None = None) -> Training[AffinityNet]:
    """IRN's branch on a frozen MobileNetV2, learned in minutes on a CPU.

    So few steps are too few for plain gradients; AdamW's are of one size from the first on.
    weights: of the backbone, pretrained; None for random ones.
    """
    optim = Optim("adamw", learning_rate=1e-3, new_layers=1.0, warm_up=10)
    view = Augmentation(crop=256, long_side=(256, 448), hue=0.0)
    return Training(AffinityNet(weights=weights, optim=optim), view, epochs=6)


@dataclass(frozen=True)
class AffinityPlan:
    """What an affinity network learns from, and which maps walk over what it learned.

    Attributes:
        data: folder of the data set.
        maps: store of score maps, where labels come from and walks start.
        saliency: store of saliency maps, for P-NOC's labels only.
        others: further stores to walk along the same affinity and to judge, for comparison.
        only: classes to use; all others become background. Not given: all classes.
        layout: one of DATASETS; "auto" tells them apart.
        train_split: list of photographs to learn from.
        splits: lists of photographs whose maps walk, and are judged if there are true masks.
        rule: which labels are certain.
        training: the network and how it learns.
        walk: how far the maps walk; its affinity is the one learned here.
        colour_walk: a walk over colours instead, for comparison.
        with_crf: refine the result of the walk by a dense CRF.
        crf: its settings.
        scoring: what counts.
        workers: processes and shards of the per-image stages.
        name: of the run.
    """

    data: Path
    maps: tyro.conf.Positional[Path]
    saliency: Path | None = None
    others: tuple[Path, ...] = ()
    only: tuple[str, ...] = ()
    layout: str = "auto"
    train_split: str = "train"
    splits: Annotated[tuple[str, ...], tyro.conf.arg(name="split")] = ("train", "val")
    rule: Rule = field(default_factory=lambda: Irn(thresholds="otsu"))
    training: Training[AffinityNet] = field(default_factory=light)
    walk: Walk = field(
        default_factory=lambda: Walk(
            beta=10.0, steps=256, off_boundaries=False, to_activations=True
        )
    )
    colour_walk: Walk = field(default_factory=Walk)
    with_crf: bool = True
    crf: Crf = field(default_factory=lambda: Crf("pnoc_masks", certainty=0.9))
    scoring: Scoring = field(default_factory=Scoring)
    workers: Workers = field(default_factory=Workers)
    name: str = "affinity"

    def make(self, out: Path) -> Store:
        """Do it all into ``out``; returns the last score maps."""
        source, whole, start = (
            self._open(self.train_split),
            self._together(),
            open_store(self.maps),
        )
        with parallel.in_turn():
            labels = make_labels(
                start,
                source,
                out / "labels",
                self.rule,
                ids=source.ids,
                saliency=None if self.saliency is None else open_store(self.saliency),
                workers=self.workers,
            )
        run = learn_affinity(source, labels, self.training, out / "run")
        with parallel.in_turn():
            return self._walked(run, start, whole, out)

    def _walked(self, run: Path, start: Store, whole: Source, out: Path) -> Store:
        """What follows training: walk, refine, judge."""
        along = replace(self.walk, affinity=run)
        steps: list[tuple[Store, str, Walk | Crf]] = [(start, "colour_walk", self.colour_walk)]
        for other in map(open_store, self.others):
            steps.append((other, f"walk_{other.folder.name}", along))
        steps.append((start, "walk", along))
        refined = partial(refine, source=whole, ids=whole.ids, workers=self.workers)
        made = [start]
        for before, name, settings in steps:
            made.append(refined(before, folder=out / name, settings=settings))
        if self.with_crf and whole.has_background:
            made.append(refined(made[-1], folder=out / "crf", settings=self.crf))
        if parallel.is_first():
            sources = {split: self._open(split) for split in self.splits}
            summary.conclude(made, sources, self.scoring, self.workers, out, self)
        return made[-1]

    def _open(self, split: str) -> Source:
        return views.only(open_dataset(self.data, split=split, layout=self.layout), self.only)

    def _together(self) -> Source:
        splits = (self.train_split, *self.splits)
        return views.only(open_together(self.data, splits, self.layout), self.only)


def command(plan: Annotated[AffinityPlan, tyro.conf.arg(name="")], out: Path) -> None:
    """Learn affinity from the certain parts of score maps, walk along it, refine, and judge.

    Args:
        plan: maps to learn from and to walk, the network, and the walk.
        out: folder of everything that is made; the same command resumes a stopped one.
    """
    print(plan.make(out).folder)
