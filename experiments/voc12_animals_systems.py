"""Five ways to train one MobileNetV2, on the same budget, then fused and combined.

Source: voc12_animals.py's data and refinement; the losses of OC-CSE, Puzzle-CAM and SEAM with
their papers' weights. Every system sees 3,200 images in crops of 256 and learns with AdamW:
200 steps of plain gradients at the papers' rates do not fit the sums of their losses (Puzzle-CAM
with SGD 0.01 and momentum 0.9 ended at 17.8 mIoU on val).

Command: wsss run experiments/voc12_animals_systems.py --data DATA/voc12_animals --weights DIR
OC-CSE judges by the plain one, found at runs/voc12_animals_systems/run_vanilla.
Hardware: two CPU cores. Time, expected numbers and ours: see the README.
"""

from dataclasses import replace
from pathlib import Path

from wsss_jax.data.augment import Augmentation
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.features import Features
from wsss_jax.stages.fit import Training
from wsss_jax.stages.learn_combiner import Combining
from wsss_jax.stages.recipe import Recipe
from wsss_jax.systems import Classifier, OcCse, PuzzleCam, Seam
from wsss_jax.systems.fusion import Protocol
from wsss_jax.systems.terms import Erasing
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
NEVER = ("aeroplane",)
"""The one VOC class that none of the 600 photographs shows."""

V2 = "mobilenet_v2_1.0_224_quant_float.npz"
ORDINARY = Path("runs/voc12_animals_systems/run_vanilla")


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on the data set ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise ValueError("give the folder of the MobileNet npz files with --weights")
    optim = Optim("adamw", learning_rate=2e-4, warm_up=10)
    plain = Classifier("mobilenet_v2", weights / V2, optim=optim)
    view = Augmentation(crop=256, long_side=(320, 576), hue=0.0)
    models = {
        "vanilla": (plain, view),
        "randaugment": (plain, replace(view, operations=2)),
        "occse": (OcCse(plain, Erasing(ORDINARY, stages=8)), view),
        "puzzle": (PuzzleCam(plain), view),
        "seam": (Seam(replace(plain, dropout=0.5)), view),
    }
    return Recipe(
        name="voc12_animals_systems",
        data=data,
        systems={
            name: Training(model, augmentation, seed=seed, imageless=NEVER)
            for seed, (name, (model, augmentation)) in enumerate(models.items())
        },
        saliency=data / "saliency_csnet",
        combiner=Combining(Protocol(students=4), epochs=4, distil_epochs=12, cells=64),
        features=Features(weights / V2),
        fusions=("mean", "median", "log_opinion_pool", "majority_vote", "weighted_mean"),
        scoring=Scoring(classes=SCORED, threshold=0.3),
    )
