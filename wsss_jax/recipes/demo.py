"""The demonstration: the whole path on the embedded data set, in minutes on two cores."""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.combiner.settings import Combining
from wsss_jax.datasets import synthetic
from wsss_jax.ops import fuse
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import Crf
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train.optimizers import Optim

IMAGES = 600
EPOCHS = 36
SEED = 0


def prepare(folder: Path, images: int = IMAGES) -> Path:
    """Draw the data set into ``folder`` (what is there is kept) and return it."""
    return synthetic.write(folder, images, SEED, settings=synthetic.LARGE)


def recipe(data: Path, *, epochs: int = EPOCHS) -> Recipe:
    """Three small networks from scratch that differ in stride, crop, labels and seed, combined."""
    optim = Optim("adamw", learning_rate=4e-3, weight_decay=1e-4, schedule="cosine", warm_up=50)

    def training(seed: int, crop: int, stride: int, smoothing: float) -> Training[Classifier]:
        augmentation = Augmentation(
            crop=crop, long_side=(80, 112), brightness=0.2, contrast=0.2, saturation=0.0, hue=0.0
        )
        model = Classifier("tiny", None, stride, label_smoothing=smoothing, optim=optim)
        return Training(model, augmentation, epochs=epochs, seed=seed, save_every=100)

    return Recipe(
        name="demo",
        data=data,
        systems={
            "fine": training(seed=1, crop=96, stride=8, smoothing=0.0),
            "smooth": training(seed=2, crop=80, stride=8, smoothing=0.1),
            "coarse": training(seed=3, crop=96, stride=16, smoothing=0.0),
        },
        explanation=Explanation(scales=(1.0, 1.5), batch_size=32),
        saliency=data / "saliency",
        saliency_supervision="drawn with the scenes",
        walk=Walk(radius=3, steps=8),
        crf=Crf(preset="thumbnail", stride=1),
        last=Crf(preset="thumbnail", stride=1),
        fusions=tuple(fuse.FUSIONS),
        combiner=Combining(cells=24),
        gallery=40,
    )
