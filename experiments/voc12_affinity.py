"""IRN's boundary branch on VOC 2012: labels from class maps, three epochs, a random walk.

Source: Ahn, Cho & Kwak 2019 (IRN): labels where scores exceed 0.30 or stay below 0.05, after a CRF;
ResNet-50 of fixed ImageNet weights; pairs closer than 10 cells of stride 4; batch 32, 3 epochs,
long side scaled by 0.5 to 1.5, crop 512, SGD 0.1; walk of 256 steps with beta 10 and radius 5.
Puzzle-CAM and P-NOC: long side 320 to 640, and other labels (rule:irn --rule.foreground 0.4
--rule.background 0.1, or rule:pnoc with --saliency STORE before it; rules come last on the command
line). AffinityNet: --training.model.branch features --training.model.stride 8
--training.model.radius 5 --training.model.learns-body --walk.beta 8 rule:psa.

Command: wsss run experiments/voc12_affinity.py --data VOC2012 --weights DIR STORE
Hardware: one accelerator of 16 GB; no time was measured.
Expected: about 66.5 mIoU on train from class maps of 48.3 (IRN); AffinityNet with ResNet38-d 61.0
from 47.7 (PSA). Not run: needs ImageNet weights of ResNet-50 and all of VOC. A small version that
was run: voc12_animals_affinity.py.

Where we differ: no displacement field, which changes no semantic mask (its author, irn issue 19);
pairs of all cells, not only of those whose whole stencil fits.
"""

from pathlib import Path

from wsss_jax.batches.augment import Augmentation
from wsss_jax.errors import UserError
from wsss_jax.recipes.affinity import AffinityPlan
from wsss_jax.run.training import Training
from wsss_jax.stages.parts.affinity_labels import Irn
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import Crf
from wsss_jax.systems.affinity import AffinityNet
from wsss_jax.train.optimizers import Optim


def recipe(data: Path, weights: Path | None) -> AffinityPlan:
    """The run on VOC 2012 in ``data`` with ResNet-50 in the folder ``weights``."""
    if weights is None:
        raise UserError("give the folder of resnet50-19c8e357.pth with --weights")
    # IRN's optimizer takes the weight decay for its momentum, and every layer learns alike.
    optim = Optim(learning_rate=0.1, new_layers=1.0, biases=1.0, momentum_is_weight_decay=True)
    model = AffinityNet("boundary", "resnet50_irn", weights / "resnet50-19c8e357.pth", optim=optim)
    view = Augmentation(
        crop=512, long_side=(250, 750), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    )
    return AffinityPlan(
        data,
        Path("runs/voc12/cam"),
        name="voc12_affinity",
        train_split="train_aug",
        splits=("train", "val"),
        rule=Irn(0.30, 0.05),
        training=Training(model, view, epochs=3, batch_size=32, save_every=100),
        walk=Walk(beta=10.0, steps=256),
        crf=Crf(),
    )
