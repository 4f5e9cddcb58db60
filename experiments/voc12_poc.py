"""P-OC on VOC 2012: Puzzle-CAM and OC-CSE together.

Source: David, Pedrini & Dias 2024 (P-NOC) and its code: ResNeSt-269 twice, the ordinary one from
voc12_vanilla.py; reconstruction 0 to 4 over half of all steps, erasing 0.3 to 1 over all. Long
side 320 to 640, crop 512, no jitter, batch 16, two batches per update, 15 epochs, SGD of 0.1
without momentum, decay 1e-4.

Command: wsss run experiments/voc12_poc.py --data VOC2012 --weights DIR
Hardware: accelerators of much memory; no time was measured.
Expected: class maps of 61.5 mIoU on train (61.9 with label smoothing 0.1).
Not run: needs ImageNet weights of the backbone and all of VOC.

Where we differ: statistics of BatchNorm stay as they come, where the paper trains them. At rate
0.1 the authors of Puzzle-CAM and P-NOC saw that fail; where it does, try
--systems.poc.model.classifier.optim.learning-rate 0.02.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.systems import Classifier, POc
from wsss_jax.systems.terms import Erasing
from wsss_jax.train.optimizers import Optim

SCALES = (0.5, 1.0, 1.5, 2.0)
ORDINARY = Path("runs/voc12_vanilla/run_vanilla")
"""The finished run of voc12_vanilla.py; elsewhere: --systems.poc.model.erasing.ordinary DIR."""


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on VOC 2012 in ``data`` with the backbone in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of resnest269-0cc87c48.pth with --weights")
    optim = Optim(learning_rate=2 * 0.1, momentum=0.0, weight_decay=1e-4, accumulate=2)
    # The code adds the gradients of two batches up; ours are averaged, at twice the rate.
    own = Classifier("resnest269", weights / "resnest269-0cc87c48.pth", optim=optim)
    model = POc(own, Erasing(ORDINARY))
    view = Augmentation(
        crop=512, long_side=(320, 640), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    )
    return Recipe(
        name="voc12_poc",
        data=data,
        train_split="train_aug",
        splits=("train", "val"),
        systems={"poc": Training(model, view, epochs=15, batch_size=16)},
        explanation=Explanation(scales=SCALES),
    )
