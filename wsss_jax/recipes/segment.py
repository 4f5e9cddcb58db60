"""The end of the path as one plan: train on masks, predict, refine, decide, judge.

Every step writes a store beside the others and skips what is there, so the same command goes on
where it was stopped. True masks are read to judge, and to teach only where the plan says so; the
names of everything made then begin with "upper_bound".
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from wsss_jax.data.stores import Store, open_store, open_stores
from wsss_jax.datasets.table import Source, open_dataset, open_together
from wsss_jax.errors import UserError
from wsss_jax.recipes import summary
from wsss_jax.run.executors import Workers
from wsss_jax.run.training import Training
from wsss_jax.stages import segment
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.masks import decide, fixed
from wsss_jax.stages.parts import segment_linear
from wsss_jax.stages.parts.chances import Asking, chances
from wsss_jax.stages.parts.segment_linear import Linear
from wsss_jax.stages.refine import Crf, refine
from wsss_jax.stages.segment import Prediction
from wsss_jax.systems.pixels import Segmenter
from wsss_jax.train import parallel


@dataclass(frozen=True)
class SegmentPlan:
    """What a segmentation network learns from, and what it is asked.

    Attributes:
        data: folder of the data set.
        masks: store of pseudo-masks to learn from.
        truth: learn from true masks instead: the upper bound of full supervision.
        layout: one of DATASETS; "auto" tells them apart.
        train_split: list of photographs to learn from.
        splits: lists of photographs to predict, and to judge if they have true masks.
        features: stores of frozen features of all splits (`wsss features`), the one to smooth
            along last: trains a linear head on them in place of a network, within seconds.
        classifiers: runs of `wsss train` that tell the head which classes a photograph shows.
        linear: the head on frozen features.
        training: the network and how it learns.
        prediction: scales and mirror images.
        with_crf: refine the predictions by a dense CRF.
        crf: its settings (P-NOC: deeplab, Puzzle-CAM: psa).
        scoring: what counts.
        workers: processes and shards of the per-image stages.
        name: of the run.
    """

    data: Path
    masks: tyro.conf.Positional[Path | None] = None
    truth: bool = False
    layout: str = "auto"
    train_split: str = "train"
    splits: Annotated[tuple[str, ...], tyro.conf.arg(name="split")] = ("val",)
    features: tuple[Path, ...] = ()
    classifiers: tuple[Path, ...] = ()
    linear: Linear = field(default_factory=Linear)
    training: Training[Segmenter] = field(default_factory=segment.defaults)
    prediction: Prediction = field(default_factory=Prediction)
    with_crf: bool = True
    crf: Crf = field(default_factory=lambda: Crf("deeplab"))
    scoring: Scoring = field(default_factory=Scoring)
    workers: Workers = field(default_factory=Workers)
    name: str = "segment"

    def make(self, out: Path) -> Store:
        """Do it all into ``out``; returns the final masks."""
        stem = "upper_bound_" if self.truth else ""
        source = self._open(self.train_split)
        teacher, run = self._teacher(source), out / f"{stem}run"
        if self.features:
            frozen = open_stores(self.features)
            segment_linear.fit(source, teacher, frozen, self.linear, run)
        else:
            segment.fit(source, teacher, self.training, run)
        with parallel.in_turn():
            return self._masks(run, out, stem)

    def _predicted(self, run: Path, source: Source, out: Path, stem: str) -> Store:
        """Probabilities on all predicted splits."""
        folder, ids = out / f"{stem}scores", source.ids
        if not self.features:
            return segment.predict(run, source, folder, self.prediction, ids=ids)
        found = None
        if self.classifiers:
            asked = Asking(1.0, self.prediction.batch_size, self.workers)
            found = chances(self.classifiers, source, asked, out, ids=ids)
            ids = tuple(found)
        frozen = open_stores(self.features)
        names = tuple(one.name for one in self.classifiers)
        return segment_linear.predict(
            run, source, frozen, folder, ids=ids, chances=found, told_by=names
        )

    def _masks(self, run: Path, out: Path, stem: str) -> Store:
        """What follows training: predict, refine, decide, judge."""
        whole = open_together(self.data, self.splits, self.layout)
        made = [self._predicted(run, whole, out, stem)]
        if self.with_crf and whole.has_background:
            folder = out / f"{stem}crf"
            made += [refine(made[0], whole, folder, self.crf, ids=whole.ids, workers=self.workers)]
        scoring = self.scoring.on(whole)
        folder = out / f"{stem}masks"
        masks = decide(
            made[-1], folder, fixed(made[-1], scoring), ids=whole.ids, workers=self.workers
        )
        if parallel.is_first():
            sources = {split: self._open(split) for split in self.splits}
            results = out / f"{stem}results"
            summary.conclude(made, sources, self.scoring, self.workers, results, self)
        return masks

    def _teacher(self, source: Source) -> segment.Teacher:
        if (self.masks is None) == (not self.truth):
            raise UserError(
                "give a store of pseudo-masks or --truth, which learns from true masks for the "
                "upper bound of full supervision, and not both"
            )
        if self.masks is None:
            return segment.truth(source)
        return segment.pseudo_masks(open_store(self.masks), source)

    def _open(self, split: str) -> Source:
        return open_dataset(self.data, split=split, layout=self.layout)


def command(plan: Annotated[SegmentPlan, tyro.conf.arg(name="")], out: Path) -> None:
    """Train a segmentation network, or a head on frozen features, on pseudo-masks; predict; judge.

    Args:
        plan: masks to learn from, the network, and what is predicted.
        out: folder of everything that is made; the same command resumes a stopped one.
    """
    print(plan.make(out).folder)
