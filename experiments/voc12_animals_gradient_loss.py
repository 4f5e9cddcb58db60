"""The interpretable gradient loss on photographs of animals: maps with it and without.

Source: Torres Figueroa et al. 2024 (A Learning Paradigm for Interpretable Gradients), algorithm 1,
on the data and network of voc12_animals_systems.py. Both classifiers start from the same weights.

Command: wsss run experiments/voc12_animals_gradient_loss.py --data DATA/voc12_animals --weights DIR
Hardware: two CPU cores.
Results: run with a quarter of the steps, it changed nothing (benchmarks/RESULTS.md). The paper
measures other data and no masks.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.systems import Classifier, InterpretableGradient
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
NEVER = ("aeroplane",)
"""The one VOC class that none of the 600 photographs shows."""


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on the data set ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    plain = Classifier(
        "mobilenet_v2",
        weights / "mobilenet_v2_1.0_224_quant_float.npz",
        optim=Optim("adamw", learning_rate=2e-4, warm_up=10),
    )
    view = Augmentation(crop=256, long_side=(320, 576), hue=0.0)
    return Recipe(
        name="voc12_animals_gradient_loss",
        data=data,
        systems={
            "plain": Training(plain, view),
            "interpretable": Training(InterpretableGradient(plain), view),
        },
        imageless=NEVER,
        scoring=Scoring(classes=SCORED, threshold=0.3),
    )
