"""C2AM-H with MobileNetV2 on 400 VOC photographs of animals, and a saliency network from it.

Source: voc12_c2amh.py with a light backbone, small crops, and AdamW, as so few steps of plain
gradients move nothing. Judged beside another tool's saliency (CSNet, learned from human labels),
which plays no part in it.

Command: wsss run experiments/voc12_animals_c2amh.py --data DATA/voc12_animals --weights DIR
--hints runs/voc12_animals/cam_v2 --classes runs/voc12_animals/pseudo_masks
--compare runs/voc12_animals/saliency
Hardware: two CPU cores. Time, expected numbers and ours: see benchmarks/RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.saliency import SaliencyPlan
from wsss_jax.run.training import Training
from wsss_jax.stages.saliency import Looking, defaults
from wsss_jax.systems.objects import Objects
from wsss_jax.systems.saliency import Contrast
from wsss_jax.train.optimizers import Optim

V2 = "mobilenet_v2_1.0_224_quant_float.npz"


def recipe(data: Path, weights: Path | None) -> SaliencyPlan:
    """The run on ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    even = Optim("adamw", learning_rate=1e-4, warm_up=5)
    contrast = Contrast("mobilenet_v2", weights / V2, 16, hint_weight=1.0, optim=even)
    plain = defaults().augmentation  # colours stay as they are
    return SaliencyPlan(
        data,
        name="voc12_animals_c2amh",
        hints=Path("runs/voc12_animals/cam_v2"),
        classes=Path("runs/voc12_animals/pseudo_masks"),
        training=Training(
            contrast, replace(plain, crop=224, long_side=(224, 320)), epochs=6, batch_size=32
        ),
        looking=Looking(scales=(0.75, 1.0), batch_size=8),
        network=Training(
            Objects("mobilenet_v2", weights / V2, optim=even),
            Augmentation(224, (224, 320), hue=0.0),
            epochs=4,
            batch_size=16,
        ),
    )
