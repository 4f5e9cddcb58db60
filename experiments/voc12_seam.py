"""SEAM on VOC 2012.

Source: Wang et al. 2020 (SEAM) and its code: ResNet38-d, scales 1 and 0.3, long side 448 to 768,
crop 448, jitter 0.3, batch 8, 8 epochs, SGD of 0.01 whose momentum is the weight decay 5e-4,
dropout 0.5.

Command: wsss run experiments/voc12_seam.py --data VOC2012 --weights DIR
Hardware: accelerators of much memory; no time was measured.
Expected: class maps of 55.4 mIoU on train (its author), 47.4 of the plain classifier.
Not run: needs ImageNet weights of the backbone and all of VOC.

Where we differ: see wsss_jax/systems/seam.py.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.explain import Explanation
from wsss_jax.systems import Classifier, Seam
from wsss_jax.train.optimizers import Optim

SCALES = (0.5, 1.0, 1.5, 2.0)
FILE = "ilsvrc-cls_rna-a1_cls1000_ep-0001.params"


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on VOC 2012 in ``data`` with the backbone in the folder ``weights``."""
    if weights is None:
        raise UserError(
            "give the folder of ilsvrc-cls_rna-a1_cls1000_ep-0001.params with --weights"
        )
    optim = Optim(learning_rate=0.01, momentum_is_weight_decay=True, weight_decay=5e-4)
    own = Classifier("resnet38d", weights / FILE, output_stride=8, dropout=0.5, optim=optim)
    view = Augmentation(crop=448, long_side=(448, 768))
    return Recipe(
        name="voc12_seam",
        data=data,
        train_split="train_aug",
        splits=("train", "val"),
        systems={"seam": Training(Seam(own), view, epochs=8, batch_size=8)},
        explanation=Explanation(scales=SCALES),
    )
