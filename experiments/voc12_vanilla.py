"""The plain classifier with RandAugment and label smoothing on VOC 2012: P-NOC's ordinary one.

Source: David, Pedrini & Dias 2024 (P-NOC), train_vanilla: ResNeSt-269, RandAugment (2 of 14
operations, cutout), label smoothing 0.1, long side 320 to 640, crop 512, batch 32, 15 epochs, SGD
of 0.1 without momentum, decay 1e-4, poly 0.9; class maps of four scales and their mirror images.

Command: wsss run experiments/voc12_vanilla.py --data VOC2012 --weights DIR
Hardware: accelerators of much memory; no time was measured.
Expected: class maps of 53.7 mIoU on train (threshold chosen on train's masks).
Not run: needs ImageNet weights of the backbone and all of VOC.

Where we differ: statistics of BatchNorm stay as they come, where the paper trains them. At rate
0.1 the authors of Puzzle-CAM and P-NOC saw that fail; where it does, try
--systems.vanilla.model.optim.learning-rate 0.01.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.systems import Classifier
from wsss_jax.train.optimizers import Optim

SCALES = (0.5, 1.0, 1.5, 2.0)


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on VOC 2012 in ``data`` with the backbone in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of resnest269-0cc87c48.pth with --weights")
    optim = Optim(learning_rate=0.1, momentum=0.0, weight_decay=1e-4)
    model = Classifier(
        "resnest269", weights / "resnest269-0cc87c48.pth", label_smoothing=0.1, optim=optim
    )
    view = Augmentation(
        crop=512,
        long_side=(320, 640),
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        operations=2,
    )
    return Recipe(
        name="voc12_vanilla",
        data=data,
        train_split="train_aug",
        splits=("train", "val"),
        systems={"vanilla": Training(model, view, epochs=15, batch_size=32)},
        explanation=Explanation(scales=SCALES),
    )
