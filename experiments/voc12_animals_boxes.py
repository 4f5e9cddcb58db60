"""What boxes on some of the training photographs are worth to the combiner, on a finished run.

Reads the class maps, the saliency and the frozen features of a run folder that a recipe made, and
learns one combiner for each percentage: of so many of the training photographs, drawn by the seed,
it is given the boxes of all labelled classes. No box is given of the validation photographs.

Supervision: the boxes are those around the connected regions of the true masks, so they are
tighter than what people draw, and an object that another one parts has two.

Command: python experiments/voc12_animals_boxes.py RUN --data DATA/voc12_animals
    --systems cam_v2 cam_eff0 --features features features_dino_last
    [--percent 0 10 100] [--share 0.2] [--out FOLDER]
The same command goes on where it was stopped. Hardware: two CPU cores.
Results: benchmarks/RESULTS.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsss_jax import xla
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.stores import open_store
from wsss_jax.datasets import boxes
from wsss_jax.datasets.table import open_dataset, open_together
from wsss_jax.stages.evaluate import Scoring, evaluate

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
SPLITS = ("train", "val")


def main() -> None:
    """Learn, fuse and judge with boxes on each percentage of the training photographs."""
    parser = argparse.ArgumentParser(description="What boxes are worth to the combiner.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", required=True)
    parser.add_argument("--features", nargs="+", required=True)
    parser.add_argument("--percent", type=int, nargs="+", default=[0, 10, 100])
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    xla.keep_compiled()
    inputs = Inputs(
        open_together(chosen.data, SPLITS),
        tuple(open_store(chosen.run / name) for name in chosen.systems),
        saliency=open_store(chosen.run / "saliency"),
        features=tuple(open_store(chosen.run / name) for name in chosen.features),
    )
    print("mIoU in percent at the combiner's own threshold")
    print(f"{'boxes on':>10}" + "".join(f"{split:>8}" for split in SPLITS))
    for percent in chosen.percent:
        found = judged(inputs, chosen, percent)
        print(f"{percent:>8} %" + "".join(f"{100 * one:8.1f}" for one in found), flush=True)


def judged(inputs: Inputs, chosen: argparse.Namespace, percent: int) -> list[float]:
    """Mean IoU on both splits with boxes on so many percent of the training photographs."""
    sources = {split: open_dataset(chosen.data, split=split) for split in SPLITS}
    ids = sources["train"].ids
    order = np.random.default_rng(chosen.seed).permutation(len(ids))
    drawn = [ids[n] for n in order[: round(percent / 100 * len(ids))]]
    given = replace(inputs, boxes=boxes.around_masks(inputs.source, drawn), missing={})
    settings = Combining(boxes=chosen.share if drawn else 0.0, seed=chosen.seed)
    out = (chosen.out or chosen.run / "boxes") / str(percent)
    learned = learn(given, out / "run", settings, ids=ids)
    maps = fuse(learned, given, out / "combined", ids=inputs.source.ids).maps
    scoring = Scoring(classes=SCORED)
    return [evaluate(maps, one, scoring, split=name).miou() for name, one in sources.items()]


if __name__ == "__main__":
    main()
