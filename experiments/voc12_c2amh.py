"""C2AM-H on VOC train_aug, and the saliency network that learns from it: P-NOC's saliency.

Source: David, Pedrini & Dias, P-NOC (2024): ResNeSt-269, hints from their class maps from 0.4 on,
weight 1, label smoothing 0.1; 448 of 515 pixels, batch 128, 10 epochs, SGD 0.001. Then PoolNet on
what was found, 9 epochs.

Command: wsss run experiments/voc12_c2amh.py --data VOC2012 --weights DIR --hints STORE
Hardware: accelerators of 40 GB or more together; no time was measured.
Expected: mean of both IoUs on train 67.9 after the CRF, 70.8 with PoolNet (their README). Not run:
needs ImageNet weights of ResNeSt-269 and all of VOC. A small version: voc12_animals_c2amh.py.

Where we differ: BatchNorm keeps ImageNet's statistics, photographs keep their proportions, and the
network of the second step is our own light one.
"""

from dataclasses import replace
from pathlib import Path

from wsss_jax.errors import UserError
from wsss_jax.recipes.saliency import SaliencyPlan
from wsss_jax.run.training import Training
from wsss_jax.stages.saliency import defaults
from wsss_jax.systems.objects import Objects
from wsss_jax.systems.saliency import Contrast
from wsss_jax.train.optimizers import Optim

RESNEST = "resnest269-0cc87c48.pth"


def recipe(data: Path, weights: Path | None) -> SaliencyPlan:
    """The run on VOC 2012 in ``data`` with ResNeSt-269 in the folder ``weights``."""
    if weights is None:
        raise UserError(f"give the folder of {RESNEST} with --weights")
    optim = Optim(learning_rate=1e-3, new_layers=1.0, momentum_is_weight_decay=True)
    contrast = Contrast("resnest269", weights / RESNEST, 16, hint_weight=1.0, optim=optim)
    plain = defaults().augmentation  # colours stay as they are
    return SaliencyPlan(
        data,
        name="voc12_c2amh",
        hints=Path("runs/voc12_pnoc/cam_pnoc"),
        classes=Path("runs/voc12_pnoc/labels"),
        train_split="train_aug",
        splits=("train",),
        training=Training(
            contrast, replace(plain, long_side=(515, 515)), epochs=10, batch_size=128
        ),
        network=Training(Objects("resnest269", weights / RESNEST), plain, epochs=9, batch_size=10),
    )
