"""DeepLabV3+ with ResNeSt-269 on pseudo-masks of VOC train_aug: the last step of P-NOC.

Source: David, Pedrini & Dias, P-NOC (2024), segmentation stage: long side 320 to 640, crop 512,
batch 32, 15 epochs, SGD 0.007 with Nesterov momentum 0.9, label smoothing 0.1, scales 0.5 to 2 and
mirror images, CRF of DeepLab v2.

Command: wsss run experiments/voc12_segment.py --data VOC2012 --weights DIR STORE
Hardware: accelerators of 40 GB or more together; no time was measured.
Expected: 73.8 mIoU on val from P-NOC's masks, 80.6 with --truth (their README). Not run: needs
ImageNet weights of ResNeSt-269 and all of VOC. A small version that was run:
voc12_animals_segment.py.

Where we differ: BatchNorm keeps ImageNet's statistics (theirs is trained), and the last epoch is
taken (they keep the best on the true masks of val).
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.segment import SegmentPlan
from wsss_jax.run.training import Training
from wsss_jax.stages.refine import Crf
from wsss_jax.stages.segment import Prediction
from wsss_jax.systems.pixels import Segmenter
from wsss_jax.train.optimizers import Optim


def recipe(data: Path, weights: Path | None) -> SegmentPlan:
    """The run on VOC 2012 in ``data`` with ResNeSt-269 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of resnest269-0cc87c48.pth with --weights")
    optim = Optim(learning_rate=0.007, nesterov=True, weight_decay=4e-5)
    model = Segmenter(
        "resnest269", weights / "resnest269-0cc87c48.pth", 16, label_smoothing=0.1, optim=optim
    )
    view = Augmentation(crop=512, long_side=(320, 640))
    return SegmentPlan(
        data,
        name="voc12_segment",
        train_split="train_aug",
        splits=("val",),
        training=Training(model, view, epochs=15, batch_size=32, save_every=200),
        prediction=Prediction(scales=(0.5, 1.0, 1.5, 2.0)),
        crf=Crf("deeplab", stride=1),
    )
