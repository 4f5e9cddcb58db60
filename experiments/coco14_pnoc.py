"""P-NOC on COCO 2014.

Source: David, Pedrini & Dias 2024 (P-NOC) and its code: ResNeSt-269 twice, the ordinary one a plain
classifier of the same settings; reconstruction 0 to 4 over half of all steps, erasing 0.3 to 1
over all; the second player's weight rises from 0 to 1, its threshold is 0.2. Long side 400 to 800,
crop 640, no jitter, batch 16, two batches per update, 15 epochs, SGD of 0.05 without momentum,
decay 1e-4.

Command: wsss run experiments/coco14_pnoc.py --data COCO14 --weights DIR
Hardware: accelerators of much memory; no time was measured.
Expected: class maps of 40.7 mIoU on train without label smoothing (38.2 with).
Not run: needs ImageNet weights of the backbone and all of COCO.

Where we differ: statistics of BatchNorm stay as they come, where the paper trains them. At rate
0.1 the authors of Puzzle-CAM and P-NOC saw that fail; where it does at this one, give a lower
--systems.pnoc.model.classifier.optim.learning-rate.
There is no coco14_vanilla.py: it is voc12_vanilla.py with this crop, long side and rate.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.systems import Classifier, PNoc
from wsss_jax.systems.terms import Erasing
from wsss_jax.train.optimizers import Optim

SCALES = (0.5, 1.0, 1.5, 2.0)
ORDINARY = Path("runs/coco14_vanilla/run_vanilla")
"""The finished run of a plain classifier; elsewhere: --systems.pnoc.model.erasing.ordinary DIR."""


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on COCO 2014 in ``data`` with the backbone in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of resnest269-0cc87c48.pth with --weights")
    optim = Optim(learning_rate=2 * 0.05, momentum=0.0, weight_decay=1e-4, accumulate=2)
    # The code adds the gradients of two batches up; ours are averaged, at twice the rate.
    own = Classifier("resnest269", weights / "resnest269-0cc87c48.pth", optim=optim)
    model = PNoc(own, Erasing(ORDINARY))
    view = Augmentation(
        crop=640, long_side=(400, 800), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    )
    return Recipe(
        name="coco14_pnoc",
        data=data,
        train_split="train",
        splits=("train", "val"),
        systems={"pnoc": Training(model, view, epochs=15, batch_size=16)},
        explanation=Explanation(scales=SCALES),
    )
