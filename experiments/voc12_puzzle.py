"""Puzzle-CAM on VOC 2012.

Source: Jo & Yu 2021 (Puzzle-CAM) and its code: ResNeSt-101, four tiles, reconstruction of weight 4
after a linear rise over half of all steps, long side 320 to 640, crop 512, no colour jitter, batch
32, 15 epochs, SGD of 0.1 whose momentum is the weight decay 1e-4, Nesterov.

Command: wsss run experiments/voc12_puzzle.py --data VOC2012 --weights DIR
Hardware: accelerators of much memory; no time was measured.
Expected: class maps of 61.9 mIoU on train with ResNeSt-101 (51.5 with ResNet-50, from 47.8 of the
plain classifier); users of the code report 44 to 49 for ResNet-50.
Not run: needs ImageNet weights of the backbone and all of VOC.

Where we differ: statistics of BatchNorm stay as they come, where the paper trains them. At rate
0.1 the authors of Puzzle-CAM and P-NOC saw that fail; where it does, try
--systems.puzzle.model.classifier.optim.learning-rate 0.01.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.systems import Classifier, PuzzleCam
from wsss_jax.train.optimizers import Optim

SCALES = (0.5, 1.0, 1.5, 2.0)


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on VOC 2012 in ``data`` with the backbone in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of resnest101-22405ba7.pth with --weights")
    optim = Optim(
        learning_rate=0.1, momentum_is_weight_decay=True, nesterov=True, weight_decay=1e-4
    )
    own = Classifier("resnest101", weights / "resnest101-22405ba7.pth", optim=optim)
    view = Augmentation(
        crop=512, long_side=(320, 640), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    )
    return Recipe(
        name="voc12_puzzle",
        data=data,
        train_split="train_aug",
        splits=("train", "val"),
        systems={"puzzle": Training(PuzzleCam(own), view, epochs=15, batch_size=32)},
        explanation=Explanation(scales=SCALES),
    )
