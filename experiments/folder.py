"""Two light classifiers on a folder of your own: images/, labels.json, and masks/ where they exist.

Source: the vanilla systems of voc12_animals.py, and the combiner without its network, which takes
minutes: linear probes of frozen features (--combiner.network learns the network instead). With
saliency/ (8-bit PNGs named by id) it is better still. In a folder whose first class is "void"
(MSRC v2) there is no background: every pixel gets a class, and thresholds and saliency play no
part. There is no dense CRF, which costs 5 on photographs as small as MSRC's; on those of VOC's size
it gains 2 (--refinements saliency walk crf).

Command: wsss run experiments/folder.py --data DATA/msrc21 --weights DIR
Hardware: two CPU cores. Time and numbers: see benchmarks/RESULTS.md.
"""

from pathlib import Path

from wsss_jax.combiner.settings import Combining
from wsss_jax.data.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.features import Features
from wsss_jax.stages.train import Training
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train.optimizers import Optim

V2 = "mobilenet_v2_1.0_224_quant_float.npz"
V2_INT8 = "tf2_mobilenet_v2_1.0_224_ptq_int8.npz"


def recipe(data: Path, weights: Path | None) -> Recipe:
    """The run on the folder ``data`` with the ImageNet MobileNets in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    optim = Optim(learning_rate=0.01)
    even = Optim("adamw", learning_rate=2e-4, warm_up=10)  # see voc12_animals.py
    view = Augmentation(crop=224, long_side=(224, 352), hue=0.0)
    saliency = data / "saliency"
    return Recipe(
        name=data.name,
        data=data,
        systems={
            "v2": Training(Classifier("mobilenet_v2", weights / V2, optim=optim), view),
            "v2_int8": Training(
                Classifier("mobilenet_v2", weights / V2_INT8, optim=even), view, seed=2
            ),
        },
        saliency=saliency if saliency.is_dir() else None,
        refinements=("saliency", "walk"),
        combiner=Combining(network=False),
        features=(Features(weights / V2),),
        fusions=("mean", "median", "log_opinion_pool", "noisy_or", "majority_vote"),
        scoring=Scoring(threshold=0.3),
    )
