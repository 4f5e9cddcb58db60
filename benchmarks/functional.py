"""What image labels teach of two classes that look the same (``study/functional_world.py``).

For a world whose surroundings tell balls from wheels, and for one where nothing does: class maps of
a small classifier, and the combiner of these maps and a drawn saliency with frozen features of
several kinds. Judged on the training pictures, whose image labels are known: mIoU at the threshold
that suits the true masks best, which leaves thresholds out of the question; and in pictures that
show both classes the share of the discs' pixels at which the right one of the two scores higher
(chance: 50 %). The last rows give the probe the true masks of some pictures: what no features
tell, no masks teach either.

Command: python benchmarks/functional.py [--count 140] [--seed 0]
Hardware: one CPU core, minutes. Results: benchmarks/RESULTS.md.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsss_jax import xla
from wsss_jax.batches.augment import Augmentation
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.ops.resize import resize
from wsss_jax.run.training import Training
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.train import fit
from wsss_jax.study import functional_world, world
from wsss_jax.systems import Classifier
from wsss_jax.train.optimizers import Optim

CELLS = 32
"""Of the combiner's grid; two pixels each."""

MASKS = 60
"""Pictures whose true masks teach in the last rows."""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description="Classes that surroundings alone tell apart.")
    parser.add_argument("--count", type=int, default=140)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    xla.keep_compiled()
    columns = []
    for told in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            made = functional_world.make(chosen.count, told=told, seed=chosen.seed)
            columns.append(list(rows(made, Path(folder), chosen.seed)))
    print("| | told: mIoU | right disc | untold: mIoU | right disc |\n|---|--:|--:|--:|--:|")
    for (name, *told), (_, *untold) in zip(*columns, strict=True):
        print(f"| {name} | " + " | ".join(f"{100 * one:.1f}" for one in (*told, *untold)) + " |")


def rows(made: world.World, folder: Path, seed: int) -> Iterator[tuple[str, float, float]]:
    """Each way of making maps of this world, its mIoU and its share of right discs."""
    source, saliency = world.pictures(made, folder, functional_world.CLASSES)
    optim = Optim("adamw", learning_rate=2e-3, warm_up=10)
    view = Augmentation(crop=64, long_side=(60, 68), hue=0.0, brightness=0.1, contrast=0.1)
    training = Training(Classifier("tiny", None, 8, optim=optim), view, epochs=30)
    run = fit(source, training, folder / "run")
    maps = explain(run, source, folder / "cam", Explanation(), ids=source.ids)
    yield "class maps", *judged(maps, source)
    kinds = {
        "colours": made.images,
        "local": functional_world.local(made.images),
        "context": functional_world.context(made.images),
    }
    stores = {name: world.frozen(folder, name, values) for name, values in kinds.items()}
    inputs = Inputs(source, (maps,), saliency)
    plain = Combining(cells=CELLS, seed=seed)
    masks = replace(plain, labelled=MASKS)
    tried = (
        ("combiner without features", (), plain),
        ("… probe on colours", ("colours",), plain),
        ("… features without context", ("local",), plain),
        ("… features with context", ("context",), plain),
        (f"… without context, {MASKS} true masks", ("local",), masks),
        (f"… with context, {MASKS} true masks", ("context",), masks),
    )
    for number, (name, features, settings) in enumerate(tried):
        given = replace(inputs, features=tuple(stores[one] for one in features), missing={})
        run = learn(given, folder / f"run_{number}", settings, ids=source.ids)
        fused = fuse(run, given, folder / f"fused_{number}", ids=source.ids).maps
        yield name, *judged(fused, source)


def judged(maps: Store, source: Source) -> tuple[float, float]:
    """Mean IoU at its best threshold, and the share of right disc pixels where both classes are."""
    right = []
    for id in source.ids:
        truth, scores = source.mask(id), maps.get_scores(id)
        if truth is None or not {0, 1} <= set(scores.classes.tolist()):
            continue
        ball, wheel = (
            resize(scores.scores, truth.shape)[..., scores.classes.tolist().index(label)]
            for label in (0, 1)
        )
        discs = (truth == 1) | (truth == 2)
        right.append((np.where(truth == 1, ball > wheel, wheel > ball))[discs])
    result = evaluate(maps, source, Scoring(threshold=0.3), split="all")
    return float(np.nanmax(result.curve)), float(np.concatenate(right).mean())


if __name__ == "__main__":
    main()
