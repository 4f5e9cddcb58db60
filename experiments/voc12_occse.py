"""OC-CSE on VOC 2012.

Source: Kweon et al. 2021 (OC-CSE) and its code: two ResNet38-d, the ordinary one trained before
and fixed; weight of the erasing 0.3, 0.35, … 1.0 by epoch; long side 256 to 448, crop 384, jitter
0.3, batch 8, 15 epochs, SGD of 0.01 whose momentum is the weight decay 5e-4. The ordinary
one is PSA's classifier: crop 448, batch 16, rate 0.1.

Command: wsss run experiments/voc12_occse.py --data VOC2012 --weights DIR
Hardware: accelerators of much memory; no time was measured.
Expected: class maps of 56.0 mIoU on train, 66.9 after AffinityNet (its author).
Not run: needs ImageNet weights of the backbone and all of VOC.

Where we differ: the new layer learns ten times faster, which the code meant and does not do.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.systems import Classifier, OcCse
from wsss_jax.systems.terms import Erasing
from wsss_jax.train.optimizers import Optim

SCALES = (0.5, 1.0, 1.5, 2.0)
FILE = "ilsvrc-cls_rna-a1_cls1000_ep-0001.params"
ORDINARY = Path("runs/voc12_resnet38d/run_vanilla")
"""The finished run of a plain ResNet38-d; elsewhere: --systems.occse.model.erasing.ordinary DIR."""


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on VOC 2012 in ``data`` with the backbone in the folder ``weights``."""
    if weights is None:
        raise UserError(
            "give the folder of ilsvrc-cls_rna-a1_cls1000_ep-0001.params with --weights"
        )
    optim = Optim(learning_rate=0.01, momentum_is_weight_decay=True, weight_decay=5e-4)
    own = Classifier("resnet38d", weights / FILE, output_stride=8, optim=optim)
    model = OcCse(own, Erasing(ORDINARY, stages=15))
    view = Augmentation(crop=384, long_side=(256, 448))
    return Recipe(
        name="voc12_occse",
        data=data,
        train_split="train_aug",
        splits=("train", "val"),
        systems={"occse": Training(model, view, epochs=15, batch_size=8)},
        explanation=Explanation(scales=SCALES),
    )
