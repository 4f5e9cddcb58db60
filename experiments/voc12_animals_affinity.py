"""IRN's boundary branch on the class maps of voc12_animals.py: minutes on a CPU.

Source: voc12_affinity.py, with MobileNetV2 and small crops. Labels are Puzzle-CAM's and P-NOC's
thresholds (0.40, 0.10) on maps times saliency.

Command: wsss run experiments/voc12_animals_affinity.py --data DATA/voc12_animals --weights DIR
--maps runs/voc12_animals/v2_saliency
Hardware: two CPU cores. As it stands here it was not run to its end. A shorter run was (two epochs,
pairs closer than 5 cells, labels from the probabilities of voc12_animals.py's CRF above 0.7 and
background above 0.9 in place of the rule): 75 s of processor time to train. mIoU on val (fixed
threshold 0.3; tuned on the truth): maps times saliency 54.8; 55.1. Walk over colours 56.5; 58.9.
Walk over learned affinity 55.9; 58.6. So what was learned gains over where it started, and so far
not over colours, for which nothing is learned.
"""

from pathlib import Path

from wsss_jax.data.augment import Augmentation
from wsss_jax.stages.affinity_plan import AffinityPlan
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.labels import Irn
from wsss_jax.stages.learn_affinity import AffinityTraining
from wsss_jax.stages.refine import Walk
from wsss_jax.systems.affinity import AffinityNet
from wsss_jax.train.optimizers import Optim

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
V2 = "mobilenet_v2_1.0_224_quant_float.npz"


def recipe(data: Path, weights: Path | None) -> AffinityPlan:
    """The run on ``data`` with the ImageNet MobileNetV2 in the folder ``weights``."""
    if weights is None:
        raise ValueError("give the folder of the MobileNet npz files with --weights")
    # So few steps are too few for plain gradients; AdamW's are of one size from the first on.
    optim = Optim("adamw", learning_rate=1e-3, new_layers=1.0, warm_up=5)
    model = AffinityNet("boundary", "mobilenet_v2", weights / V2, optim=optim)
    view = Augmentation(crop=224, long_side=(224, 384), hue=0.0)
    return AffinityPlan(
        data,
        Path("runs/voc12_animals/v2_saliency"),
        name="voc12_animals_affinity",
        rule=Irn(0.40, 0.10),
        training=AffinityTraining(model, view, epochs=3, batch_size=8),
        walk=Walk(beta=10.0, steps=256),
        scoring=Scoring(classes=SCORED, threshold=0.3),
    )
