"""Five classifiers of things on MSRC v2, and their combiner; grass, sky and road are background.

Source: voc12_animals_systems.py with smaller crops (photographs are 320 by 213 pixels). Classes are
the things of the data set's labels.json but the horse, which too few images show. With background
there, saliency plays its part. A dense CRF costs 5 and more on photographs
as small as these, so there is none.

Command: wsss run experiments/msrc21_things.py --data DATA/msrc21 --weights DIR
OC-CSE judges by the plain one, found at runs/msrc21_things/run_vanilla. Hardware: two CPU cores, or
a GPU. Time, expected numbers and ours: see benchmarks/RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.combiner.settings import Combining
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.features import Features
from wsss_jax.systems import Classifier, OcCse
from wsss_jax.systems.terms import Erasing
from wsss_jax.train.optimizers import Optim

THINGS = (
    "cow",
    "sheep",
    "aeroplane",
    "face",
    "car",
    "bicycle",
    "flower",
    "sign",
    "bird",
    "book",
    "chair",
    "cat",
    "dog",
    "body",
    "boat",
)
V2 = "mobilenet_v2_1.0_224_quant_float.npz"
V2_INT8 = "tf2_mobilenet_v2_1.0_224_ptq_int8.npz"
ORDINARY = Path("runs/msrc21_things/run_vanilla")


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on the folder ``data`` with the ImageNet MobileNetV2s in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    optim, momentum = Optim("adamw", learning_rate=2e-4, warm_up=10), Optim(learning_rate=0.01)
    plain = Classifier("mobilenet_v2", weights / V2, optim=optim)
    view = Augmentation(crop=224, long_side=(224, 352), hue=0.0)
    models = {
        "vanilla": (plain, view, 0),
        "randaugment": (replace(plain, label_smoothing=0.1), replace(view, operations=2), 1),
        "occse": (OcCse(plain, Erasing(ORDINARY, stages=6)), view, 2),
        "v2_int8": (replace(plain, weights=weights / V2_INT8), view, 3),
        "v2_sgd": (replace(plain, optim=momentum), replace(view, operations=2), 4),
    }
    return Recipe(
        name="msrc21_things",
        data=data,
        classes=THINGS,
        systems={
            name: Training(model, augmentation, epochs=6, seed=seed)
            for name, (model, augmentation, seed) in models.items()
        },
        saliency=data / "saliency_csnet",
        saliency_supervision="people's masks",
        refinements=("saliency", "walk"),
        combiner=Combining(),
        features=(Features(weights / V2),),
        fusions=("mean", "log_opinion_pool"),
        scoring=Scoring(threshold=0.3),
    )
