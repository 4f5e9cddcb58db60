"""Three light classifiers on 600 VOC photographs of animals, refined, fused and combined.

Source: a subset of PASCAL VOC 2012 (400 train, 200 val) in which image labels of all 20 classes are
known; background, cat, cow, dog, horse, sheep and person are scored.

Command: wsss run experiments/voc12_animals.py --data DATA/voc12_animals --weights DIR
Hardware: two CPU cores.
"""

from dataclasses import replace
from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.combiner.settings import Combining
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.features import Features
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
NEVER = ("aeroplane",)
"""The one VOC class that none of the 600 photographs shows."""

RULES = (
    "mean",
    "median",
    "max",
    "min",
    "product",
    "noisy_or",
    "log_opinion_pool",
    "majority_vote",
    "weighted_mean",
    "agreement_mean",
    "staple",
    "dawid_skene",
)


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on the data set ``data`` with the ImageNet MobileNets in the folder ``weights``."""
    if weights is None:
        raise UserError(
            "this experiment starts from ImageNet weights: give the folder of the MobileNet npz "
            "files with --weights"
        )
    momentum = Optim(learning_rate=0.01)
    # Weights rounded to 8 bits differ in size from channel to channel by orders of magnitude, and
    # steps of plain gradients lose what ImageNet taught them; AdamW's are of one size.
    even = Optim("adamw", learning_rate=2e-4, warm_up=10)
    view = Augmentation(crop=288, long_side=(320, 576), hue=0.0)
    return Recipe(
        name="voc12_animals",
        data=data,
        systems={
            "v2": Training(Classifier("mobilenet_v2", weights / V2, optim=momentum), view),
            "v2_int8": Training(
                Classifier("mobilenet_v2", weights / V2_INT8, optim=even),
                view,
                seed=2,
            ),
            "v2_randaugment": Training(
                Classifier("mobilenet_v2", weights / V2, optim=momentum),
                replace(view, crop=256, operations=2),
                seed=4,
            ),
        },
        imageless=NEVER,
        saliency=data / "saliency_csnet",
        saliency_supervision="people's masks",
        combiner=Combining(),
        features=(Features(weights / V2),),
        fusions=RULES,
        scoring=Scoring(classes=SCORED, threshold=0.3),
    )


V2 = "mobilenet_v2_1.0_224_quant_float.npz"
V2_INT8 = "tf2_mobilenet_v2_1.0_224_ptq_int8.npz"
