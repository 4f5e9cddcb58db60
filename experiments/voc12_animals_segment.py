"""A light DeepLabV3+ on the pseudo-masks of voc12_animals.py: the last step, in minutes on a CPU.

Source: voc12_segment.py, with MobileNetV2, 96 channels behind it and small crops. Learned from the
400 training photographs' pseudo-masks, judged on 200 others whose labels it never sees.

Command: wsss run experiments/voc12_animals_segment.py --data DATA/voc12_animals --weights DIR
runs/voc12_animals/pseudo_masks
Hardware: two CPU cores. One number with --truth: benchmarks/RESULTS.md.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.segment import SegmentPlan
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.refine import Crf
from wsss_jax.stages.segment import Prediction
from wsss_jax.systems.pixels import Segmenter
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
V2 = "mobilenet_v2_1.0_224_quant_float.npz"


def recipe(data: Path, weights: Path | None) -> SegmentPlan:
    """The run on ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    # So few steps are too few for plain gradients; AdamW's are of one size from the first on.
    optim = Optim("adamw", learning_rate=1e-4, warm_up=10)
    model = Segmenter("mobilenet_v2", weights / V2, 16, width=96, label_smoothing=0.1, optim=optim)
    view = Augmentation(crop=192, long_side=(192, 320), hue=0.0)
    return SegmentPlan(
        data,
        name="voc12_animals_segment",
        training=Training(model, view, epochs=4, batch_size=8),
        # Long sides of 250 and 375 for VOC's 500, as in training.
        prediction=Prediction(scales=(0.5, 0.75), batch_size=8),
        crf=Crf("deeplab"),
        scoring=Scoring(classes=SCORED),
    )
