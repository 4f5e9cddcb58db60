"""Saliency of our own as one plan: contrast and hints, PNGs, and a network that learns from both.

Every step writes a store beside the others and skips what is there, so the same command goes on
where it was stopped. True masks are read to judge and for nothing else.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source, open_dataset, open_together
from wsss_jax.recipes import summary
from wsss_jax.run.executors import Workers
from wsss_jax.run.training import Training
from wsss_jax.stages import saliency
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.parts import objects
from wsss_jax.stages.parts.affinity_labels import Irn, make_labels
from wsss_jax.stages.saliency import Looking
from wsss_jax.systems.objects import Objects
from wsss_jax.systems.saliency import Contrast
from wsss_jax.train import parallel


@dataclass(frozen=True)
class SaliencyPlan:
    """How saliency is learned, and for which images it is made.

    Attributes:
        data: folder of the data set.
        hints: store of class maps, whose high scores are hints of foreground (C2AM-H); without it,
            C2AM.
        layout: one of DATASETS; "auto" tells them apart.
        train_split: list of photographs to learn from.
        splits: lists of photographs to make saliency of, and to judge if they have true masks.
        training: the network that compares foregrounds and backgrounds.
        looking: scales and mirror images.
        with_network: train a saliency and edge network on the saliency that was found.
        rule: which saliency is certain enough to train on, after a CRF.
        classes: store of masks, whose class boundaries the edges are learned from.
        edges: store of boundary maps to learn the edges from instead, as BSDS has them: grey PNGs
            of the share of people who drew a pixel (import: --layout saliency_png --stride 1).
        network: the saliency and edge network.
        compare: stores of other saliency maps that are judged too, for comparison.
        workers: processes and shards of the per-image stages.
        name: of the run.
    """

    data: Path
    hints: Path | None = None
    layout: str = "auto"
    train_split: str = "train"
    splits: Annotated[tuple[str, ...], tyro.conf.arg(name="split")] = ("train", "val")
    training: Training[Contrast] = field(default_factory=saliency.defaults)
    looking: Looking = field(default_factory=Looking)
    with_network: bool = True
    rule: Irn = field(default_factory=lambda: Irn(foreground=0.6, background=0.4))
    classes: Path | None = None
    edges: Path | None = None
    network: Training[Objects] = field(default_factory=objects.defaults)
    compare: tuple[Path, ...] = ()
    workers: Workers = field(default_factory=Workers)
    name: str = "saliency"

    def make(self, out: Path) -> Store:
        """Do it all into ``out``; returns the last saliency maps."""
        source, whole = (
            self._open(self.train_split),
            open_together(self.data, (self.train_split, *self.splits), self.layout),
        )
        hints = None if self.hints is None else open_store(self.hints)
        run = saliency.fit(source, self.training, out / "run", hints=hints)
        with parallel.in_turn():
            maps = saliency.predict(run, whole, out / "contrast", self.looking, ids=whole.ids)
        made = [maps]
        if self.with_network:
            made.append(self._network(source, whole, maps, out))
        if parallel.is_first():
            self._judged(made, whole, out)
        return made[-1]

    def _judged(self, made: list[Store], whole: Source, out: Path) -> None:
        """PNGs of the last maps, and how good all are."""
        saliency.write_pngs(made[-1], out / "png", ids=whole.ids, workers=self.workers)
        opened = {split: views.agnostic(self._open(split)) for split in self.splits}
        sources = {split: one for split, one in opened.items() if one.has_background}
        judged = [*map(open_store, self.compare), *made]
        summary.conclude(judged, sources, Scoring(), self.workers, out / "results", self)

    def _network(self, source: Source, whole: Source, maps: Store, out: Path) -> Store:
        with parallel.in_turn():
            proposals = make_labels(
                maps, source, out / "proposals", self.rule, ids=source.ids, workers=self.workers
            )
        classes = None if self.classes is None else open_store(self.classes)
        edges = None if self.edges is None else open_store(self.edges)
        folder = out / "network"
        run = objects.fit(
            source, self.network, folder, proposals=proposals, classes=classes, edges=edges
        )
        folders = out / "saliency", out / "edges"
        with parallel.in_turn():
            return objects.predict(run, whole, folders, self.looking, ids=whole.ids)[0]

    def _open(self, split: str) -> Source:
        return open_dataset(self.data, split=split, layout=self.layout)


def command(plan: Annotated[SaliencyPlan, tyro.conf.arg(name="")], out: Path) -> None:
    """Learn saliency and edges from photographs, and from hints where there are any.

    Args:
        plan: hints, networks, and for which images saliency is made.
        out: folder of everything that is made; the same command resumes a stopped one.
    """
    print(plan.make(out).folder)
