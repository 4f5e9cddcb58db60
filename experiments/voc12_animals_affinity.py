"""IRN's boundary branch on the combined maps of the animals, which then walk along it.

Source: voc12_affinity.py, with MobileNetV2 and small crops. Certain is what is above 0.7 or below
0.3 of the combiner's probabilities, and beyond Otsu's two thresholds of activations. Where we
differ from IRN: scores are left on the boundaries, which are not near 0 inside of objects after so
short a training. --others are stores that walk along the same affinity.

Command: wsss run experiments/voc12_animals_affinity.py --data DATA/voc12_animals --weights DIR
    COMBINED --others FUSED_SALIENCY OCCSE_SALIENCY
Hardware: two CPU cores, a quarter of an hour.
"""

from pathlib import Path

from wsss_jax.errors import UserError
from wsss_jax.recipes.affinity import AffinityPlan, light
from wsss_jax.stages.evaluate import Scoring

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
V2 = "mobilenet_v2_1.0_224_quant_float.npz"


def recipe(data: Path, weights: Path | None) -> AffinityPlan:
    """The run on ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    return AffinityPlan(
        data,
        Path("runs/voc12_animals/combined"),
        name="voc12_animals_affinity",
        training=light(weights / V2),
        scoring=Scoring(classes=SCORED),
    )
