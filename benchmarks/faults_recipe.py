"""The whole path in miniature, for ``faults`` to disturb: `wsss run benchmarks/faults_recipe.py`.

Two small networks are trained on drawn scenes and explained; their maps are fused by a rule and by
the combiner, decided, judged and shown on a page; the masks teach a segmentation network, whose
predictions are refined, judged and exported. Two worker processes do what is done image by image.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from wsss_jax.cli.run import make_whole
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import open_together
from wsss_jax.recipes import demo
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.recipes.segment import SegmentPlan
from wsss_jax.run.executors import Workers
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.stages.export import Export, export
from wsss_jax.stages.refine import Crf
from wsss_jax.stages.segment import Prediction
from wsss_jax.systems.pixels import Segmenter
from wsss_jax.train.optimizers import Optim

IMAGES, EPOCHS = 16, 2

PATH = ("saliency", "run_fine", "cam_fine", "run_coarse", "cam_coarse", "fuse_mean", "run_combiner",
        "combined", "pseudo_masks", "results.json", "report.html", "segment/run", "segment/scores",
        "segment/crf", "segment/masks", "segment/results", "exported")  # fmt: skip
"""What the path makes, in this order."""


@dataclass(frozen=True)
class Whole:
    """From image labels to exported masks of a segmentation network.

    Attributes:
        labels: from image labels to pseudo-masks.
        masks: from pseudo-masks to masks.
        name: of the run.
    """

    labels: Recipe
    masks: SegmentPlan
    name: str = "faults"

    def make(self, out: Path) -> Store:
        """Do it all into ``out``; returns the final masks."""
        make_whole(self.labels, out)
        final = replace(self.masks, masks=out / "pseudo_masks").make(out / "segment")
        source = open_together(self.masks.data, self.masks.splits)
        export(open_store(final.folder), source, out / "exported", Export("png"))
        return final


def recipe(data: Path, weights: Path | None) -> Whole:
    """The path on scenes that ``demo.prepare`` drew; no weights are needed."""
    whole = demo.recipe(data, epochs=EPOCHS)
    systems = {
        name: replace(whole.systems[name], batch_size=4, save_every=2)
        for name in ("fine", "coarse")
    }
    labels = replace(
        whole,
        systems=systems,
        explanation=Explanation(scales=(1.0,), flip=False),
        splits=("train",),
        refinements=(),
        fusions=("mean",),
        combiner=Combining(cells=12),
        workers=Workers(2),
        gallery=4,
    )
    model = Segmenter("tiny", None, 16, width=8, optim=Optim("adamw", 3e-3))
    view = systems["fine"].augmentation
    masks = SegmentPlan(
        data,
        training=Training(model, view, epochs=EPOCHS, batch_size=4, save_every=2),
        prediction=Prediction(scales=(1.0,), flip=False),
        crf=Crf("thumbnail"),
        workers=Workers(2),
    )
    return Whole(labels, masks)
