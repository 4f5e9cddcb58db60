"""One classifier on a ResNet-50 v2 without its last stage, on 600 VOC photographs of animals.

Its class maps lie on stage 3, at stride 16; stem and stages 1 and 2 keep their values. Small views
and few steps, for a busy computer without a GPU: a member for ``wsss combine``, not a leader.

Supervision: image labels of ImageNet (the network) and of these photographs.

Command: wsss run experiments/voc12_animals_resnet50v2.py --data DATA/voc12_animals --weights DIR
    --train-only resnet50v2
Hardware: two CPU cores. Not run to its end yet, so no number stands here.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.explain import Explanation
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
NEVER = ("aeroplane",)
"""The one VOC class that none of the 600 photographs shows."""

KEPT = ("bn0", "conv0", "bn1", "stages/0", "stages/1")
FILE = "resnet50v2_stages1to3_fp16.npz"


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on ``data`` with the ResNet-50 v2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the ResNet-50 v2 npz file with --weights")
    optim = Optim("adamw", learning_rate=2e-4, warm_up=10, freeze=KEPT)
    view = Augmentation(crop=192, long_side=(224, 320), hue=0.0)
    model = Classifier("resnet50v2", weights / FILE, optim=optim)
    return Recipe(
        name="voc12_animals_resnet50v2",
        data=data,
        systems={"resnet50v2": Training(model, view, epochs=3)},
        imageless=NEVER,
        explanation=Explanation(scales=(0.6,), flip=False),
        refinements=("walk",),
        scoring=Scoring(classes=SCORED, threshold=0.3),
    )
