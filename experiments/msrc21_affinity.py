"""IRN's boundary branch on the combined maps of MSRC's things, and walks along it.

Source: voc12_animals_affinity.py, all settings as there.

Command: wsss run experiments/msrc21_affinity.py --data DATA/msrc21 --weights DIR
    COMBINED --others FUSED_SALIENCY OCCSE_SALIENCY
Hardware: two CPU cores, ten minutes.
"""

from pathlib import Path

from wsss_jax.errors import UserError
from wsss_jax.recipes.affinity import AffinityPlan, light

THINGS = (
    "cow", "sheep", "aeroplane", "face", "car", "bicycle", "flower", "sign", "bird", "book",
    "chair", "cat", "dog", "body", "boat",
)  # fmt: skip
V2 = "mobilenet_v2_1.0_224_quant_float.npz"


def recipe(data: Path, weights: Path | None) -> AffinityPlan:
    """The run on ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of the MobileNet npz files with --weights")
    return AffinityPlan(
        data,
        Path("runs/msrc21_things/combined"),
        name="msrc21_affinity",
        only=THINGS,
        training=light(weights / V2),
    )
