"""Six classifiers that differ in loss, weights, optimiser and augmentation, and their combiner.

Source: voc12_animals.py's data and refinement; the losses of OC-CSE and Puzzle-CAM with their
papers' weights. Each sees 3,200 images. Those named after a loss start from the same weights, see
crops of 256 and learn with AdamW: 200 steps of plain gradients at the papers' rates do not fit the
sums of their losses (Puzzle-CAM with SGD 0.01 and momentum 0.9 ended at 17.8 mIoU on val). The last
two are those of voc12_animals.py.

Command: wsss run experiments/voc12_animals_systems.py --data DATA/voc12_animals --weights DIR
OC-CSE judges by the plain one, found at runs/voc12_animals_systems/run_vanilla.
Hardware: two CPU cores. Time, expected numbers and ours: see benchmarks/RESULTS.md.
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
from wsss_jax.systems import Classifier, OcCse, PuzzleCam
from wsss_jax.systems.terms import Erasing
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
NEVER = ("aeroplane",)
"""The one VOC class that none of the 600 photographs shows."""

V2 = "mobilenet_v2_1.0_224_quant_float.npz"
V2_INT8 = "tf2_mobilenet_v2_1.0_224_ptq_int8.npz"
ORDINARY = Path("runs/voc12_animals_systems/run_vanilla")


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on the data set ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    optim, momentum = Optim("adamw", learning_rate=2e-4, warm_up=10), Optim(learning_rate=0.01)
    plain = Classifier("mobilenet_v2", weights / V2, optim=optim)
    view = Augmentation(crop=256, long_side=(320, 576), hue=0.0)
    models = {
        "vanilla": (plain, view, 0),
        "randaugment": (plain, replace(view, operations=2), 1),
        "occse": (OcCse(plain, Erasing(ORDINARY, stages=8)), view, 2),
        "puzzle": (PuzzleCam(plain), view, 3),
        "v2_int8": (replace(plain, weights=weights / V2_INT8), replace(view, crop=288), 2),
        "v2_randaugment": (replace(plain, optim=momentum), replace(view, operations=2), 4),
    }
    return Recipe(
        name="voc12_animals_systems",
        data=data,
        systems={
            name: Training(model, augmentation, seed=seed)
            for name, (model, augmentation, seed) in models.items()
        },
        imageless=NEVER,
        saliency=data / "saliency_csnet",
        saliency_supervision="people's masks",
        combiner=Combining(),
        features=(Features(weights / V2),),
        fusions=("mean", "median", "log_opinion_pool", "majority_vote", "weighted_mean"),
        scoring=Scoring(classes=SCORED, threshold=0.3),
    )
