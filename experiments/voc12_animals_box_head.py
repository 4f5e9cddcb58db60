"""A box head on photographs of animals: how many of its boxes are right.

Source: classification and localisation with L = α S + (1 − α) R, of the lecture "Localization and
CNN Explanations" (Boracchi). Trained is a classifier with a box head (α = 1/2); the rivals of
the head's boxes are the mean box of the training photographs, and the box around the class map of
the same network (Zhou et al. 2016, above a fifth of the maximum).

Supervision: boxes of all 400 training photographs. They are drawn around the connected regions of
the true masks; a region whose box has less than a tenth of the area of its class's largest one is
a part that something else cut off, and has none. So boxes are tighter than what people draw.

Command: python experiments/voc12_animals_box_head.py --data DATA/voc12_animals --weights WEIGHTS
    --out FOLDER [--regression smooth_l1 squared]
The same command goes on where it was stopped. Hardware: one CPU core. Results:
benchmarks/RESULTS.md.
"""

import argparse
from pathlib import Path

import numpy as np

from wsss_jax import xla
from wsss_jax.batches.augment import Augmentation
from wsss_jax.data.stores import Store
from wsss_jax.datasets import boxes
from wsss_jax.datasets.boxes import Boxes, Reader
from wsss_jax.datasets.table import Source, open_dataset
from wsss_jax.ops.components import Box, score_box
from wsss_jax.ops.resize import resize
from wsss_jax.run.training import Training
from wsss_jax.stages.boxes import Found, find, judge
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.train import fit
from wsss_jax.systems import BoxRegression, Classifier
from wsss_jax.train.optimizers import Optim

NEVER = ("aeroplane",)
PART = 0.1
VIEW = Augmentation(crop=160, long_side=(144, 160), hue=0.0)
"""Whole photographs, as the lecture shows them: a crop would cut boxes."""


def main() -> None:
    """Train, and print how many boxes are right."""
    parser = argparse.ArgumentParser(description="A box head on photographs of animals.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--regression", nargs="+", default=["smooth_l1"])
    chosen = parser.parse_args()
    xla.keep_compiled()
    train, val = (open_dataset(chosen.data, split=split) for split in ("train", "val"))
    given, truth = (without_parts(boxes.around_masks(one, one.ids)) for one in (train, val))
    plain = Classifier(
        "mobilenet_v2",
        chosen.weights / "mobilenet_v2_1.0_224_quant_float.npz",
        optim=Optim("adamw", learning_rate=2e-4, warm_up=10),
    )
    rows = {"mean box of training": judge(mean_boxes(train, given, val), truth)}
    for name in chosen.regression:
        run, cam = chosen.out / f"run_{name}", chosen.out / f"cam_{name}"
        training = Training(BoxRegression(plain, regression=name), VIEW)
        fit(train, training, run, imageless=NEVER, boxes=given)
        maps = explain(run, val, cam, Explanation(scales=(0.5,)), ids=val.ids)
        rows[f"{name}, around the class map"] = judge(map_boxes(maps, val), truth)
        found = find(run, val, chosen.out / f"boxes_{name}", ids=val.ids)
        rows[f"{name}, box head"] = judge(found, truth)
    for name, row in rows.items():
        print(f"{name}: {row}")


def without_parts(read: Reader) -> Reader:
    """The boxes but those that are small beside the largest of their class."""

    def larger(id: str) -> Boxes | None:
        found = read(id)
        if found is None:
            return None
        top, left, bottom, right = found.corners.T
        area = (bottom - top) * (right - left)
        names = np.array(found.names)
        most = np.array([area[names == name].max() for name in names])
        kept = area >= PART * most
        return Boxes(tuple(names[kept].tolist()), found.corners[kept])

    return larger


def mean_boxes(train: Source, given: Reader, val: Source) -> dict[str, Found]:
    """The mean of all boxes of the training photographs, for every class of every photograph."""
    corners = np.concatenate([one.corners for id in train.ids if (one := given(id)) is not None])
    return {id: _same(val, id, corners.mean(axis=0)) for id in val.ids}


def map_boxes(store: Store, source: Source) -> dict[str, Found]:
    """The boxes around class maps."""
    found = {}
    for id in source.ids:
        maps = store.get_scores(id)
        names = [source.classes.names[label] for label in maps.classes]
        enlarged = resize(maps.scores, maps.size)
        boxes_of = {name: score_box(enlarged[..., n]) for n, name in enumerate(names)}
        found[id] = Found(boxes_of, "", maps.size)
    return found


def _same(source: Source, id: str, corners: np.ndarray) -> Found:
    size = source.size(id)
    box = Box(*np.round(corners * [*size, *size]).astype(int).tolist())
    names = [source.classes.names[label] for label in np.flatnonzero(source.labels(id))]
    return Found(dict.fromkeys(names, box), "", size)


if __name__ == "__main__":
    main()
