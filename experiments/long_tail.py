"""What helps class maps where few images show some classes: a data set, drawn with a long tail.

Trains one MobileNetV2 for each row of ``ROWS`` and seed on ``views.long_tailed`` of the training
images (imbalance 50), and judges its class maps on the untouched validation images: mean IoU of
head, middle and tail, thirds of the classes by the number of images that teach, and of all of them,
at the fixed threshold where there is background. The classes of an image are its labels, as always
for pseudo-masks.

Command: python experiments/long_tail.py --data DATA/msrc21 --weights DIR [--seeds 0 1 2]
    [--rows plain focal ...] [--classes cat cow ...] [--out FOLDER]
The same command goes on where it was stopped; the draw is that of its seed. Hardware: two CPU cores
or a GPU.
Results (benchmarks/RESULTS.md): logit adjustment gains much in the tail and changes the head a
little, for better or worse; with one seed on MSRC all others cost. The papers measure
classification, and not masks.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from wsss_jax import xla
from wsss_jax.batches.augment import Augmentation
from wsss_jax.config import lookup
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source, open_dataset
from wsss_jax.ops import metrics
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.train import fit
from wsss_jax.systems import Classifier
from wsss_jax.systems.class_loss import ClassLoss
from wsss_jax.train.optimizers import Optim

V2 = "mobilenet_v2_1.0_224_quant_float.npz"
VIEW = Augmentation(crop=224, long_side=(224, 352), hue=0.0)
OPTIM = Optim("adamw", learning_rate=2e-4, warm_up=10)

GROUPS = ("head", "middle", "tail")

ROWS: dict[str, tuple[ClassLoss, Literal["shuffled", "balanced"]]] = {
    "plain": (ClassLoss(), "shuffled"),
    "focal": (ClassLoss("focal"), "shuffled"),
    "asymmetric": (ClassLoss("asymmetric"), "shuffled"),
    "effective": (ClassLoss(balance="effective"), "shuffled"),
    "logit": (ClassLoss(balance="logit"), "shuffled"),
    "sampled": (ClassLoss(), "balanced"),
}
"""Losses and sampling that are compared, by name."""


def main() -> None:
    """Train and judge every row with every seed, and print the table."""
    parser = argparse.ArgumentParser(description="Class maps of a data set with a long tail.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[*ROWS])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--classes", nargs="+", default=[], help="these alone; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/long_tail"))
    chosen = parser.parse_args()
    xla.keep_compiled()
    print("mIoU in percent   " + "".join(f"{title:>9}" for title in (*GROUPS, "all")))
    for name in chosen.rows:
        loss, sampling = lookup(ROWS, name, "row")
        model = Classifier("mobilenet_v2", chosen.weights / V2, optim=OPTIM, loss=loss)
        training = Training(model, VIEW, epochs=chosen.epochs, sampling=sampling)
        train, val = (
            views.only(open_dataset(chosen.data, split=split), chosen.classes)
            for split in ("train", "val")
        )
        found = [
            judged(train, val, replace(training, seed=seed), chosen.out / f"{name}_{seed}")
            for seed in chosen.seeds
        ]
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        cells = (f"{100 * m:5.1f}±{100 * s:.1f}" for m, s in zip(mean, spread, strict=True))
        print(f"{name:18}" + "".join(f"{cell:>9}" for cell in cells), flush=True)


def judged(train: Source, val: Source, training: Training[Classifier], out: Path) -> list[float]:
    """Mean IoU of one training's class maps over head, middle, tail and all classes."""
    drawn = views.long_tailed(train, seed=training.seed)
    run = fit(drawn, training, out / "run")
    maps = explain(run, val, out / "cam", Explanation(), ids=val.ids)
    result = evaluate(maps, val, Scoring().on(val), split="val")
    counts = result.counts.sum(axis=0)
    groups = [*thirds(drawn), np.arange(len(val.classes))]
    return [float(metrics.mean_iou(counts, tuple((one + 1).tolist()))) for one in groups]


def thirds(source: Source) -> list[np.ndarray]:
    """Classes that many, some and few images show."""
    shown = np.sum([source.labels(id) for id in source.ids], axis=0)
    return np.array_split(np.argsort(-shown, kind="stable"), len(GROUPS))


if __name__ == "__main__":
    main()
