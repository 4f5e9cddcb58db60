"""The combiner on the world of failing systems: is it better than every closed form?

Prints, for each seed: the best single system and the closed forms at the threshold that suits them
best on the *test truth*, the combiner at its own half, and the paired difference with its interval.
With --features the combiner is given frozen features, and learns a linear probe. With --safety also
what happens when a system is missing, alone, noise, or distorted. mIoU in percent; the world ranks
designs, it predicts nothing about photographs. What every step is worth: study/ablation.py.

Command: python benchmarks/combiner.py --seeds 0 1 2 [--features] [--safety]
Hardware: two CPU cores.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsss_jax import xla
from wsss_jax.combiner.batches import Seen, over_images
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.stores import Store
from wsss_jax.ops.intervals import bootstrap_difference
from wsss_jax.stages.combine import Fusion, combine
from wsss_jax.stages.evaluate import Result, Scoring, evaluate
from wsss_jax.study import ablation, fusion_world, world
from wsss_jax.types import ScoreMaps

STEPS = (8, 16, 32, 64)
"""Lengths of the walks over mean × saliency."""


def main() -> None:
    """Run the seeds that were asked for."""
    parser = argparse.ArgumentParser(description="The combiner on the world of failing systems.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--features", action="store_true", help="give it frozen features")
    parser.add_argument("--safety", action="store_true", help="also systems that fail")
    chosen = parser.parse_args()
    xla.keep_compiled()
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory() as folder:
            one(Path(folder), seed, chosen)


def one(folder: Path, seed: int, chosen: argparse.Namespace) -> None:
    """One world, one combiner."""
    train = written(folder / "train", chosen.train, 100 + seed, chosen)
    test = written(folder / "test", chosen.test, 200 + seed, chosen)
    settings = Combining(cells=chosen.size, seed=seed)
    began = time.process_time()
    run = learn(train, folder / "run", settings, ids=train.source.ids)
    print(f"\nseed {seed}: learned in {time.process_time() - began:.0f} s of processor time")
    singles, forms = closed_forms(test, folder / "forms")
    for title, group in (("best single", singles), ("closed form", forms)):
        for found in sorted(group, key=tuned, reverse=True)[:3]:
            at = f"tuned on test truth, at {found.tuned:.2f}"
            print(f"  {title:12} {found.name:18} {100 * tuned(found):5.1f}  {at}")
    combined = fused(run, test, folder / "all")
    row("combiner, less best form", combined, best(forms))
    row("combiner, less best single", combined, best(singles))
    if chosen.safety:
        safety(run, test, folder / "safety", combined)


def written(folder: Path, count: int, seed: int, chosen: argparse.Namespace) -> Inputs:
    """A world of ``count`` images in a folder."""
    made = fusion_world.make(count, seed=seed, size=chosen.size)
    inputs = world.write(made, folder)
    return replace(inputs, features=world.features(made, folder)) if chosen.features else inputs


def closed_forms(inputs: Inputs, folder: Path) -> tuple[list[Result], list[Result]]:
    """The single systems, and the closed forms over all of them."""
    ids, source = inputs.source.ids, inputs.source
    made = [
        combine(inputs.systems, source, folder / "mean", Fusion(), ids=ids),
        combine(
            inputs.systems, source, folder / "mean_saliency", Fusion(), ids=ids,
            saliency=inputs.saliency,
        ),
    ]  # fmt: skip
    made += [walked(inputs, folder / f"walk_of_{steps}", steps) for steps in STEPS]
    judge = [judged(store, inputs) for store in (*inputs.systems, *made)]
    return judge[: len(inputs.systems)], judge[len(inputs.systems) :]


def walked(inputs: Inputs, folder: Path, steps: int) -> Store:
    """Mean of the systems × saliency after a random walk of so many steps; maximum 1."""
    target = world.store(folder.parent, folder.name, inputs.source.classes.names, "activation")

    def use(seen: Seen) -> None:
        mean = seen.consensus.mean(axis=0)
        scores = mean / np.maximum(mean.max(axis=(0, 1)), 1e-6)
        labels, peak = seen.example.classes, scores.max(axis=(0, 1))
        target.put_scores(seen.id, ScoreMaps(scores, labels, seen.example.size, peak))

    over_images(folder.name, inputs, inputs.shown(inputs.source.ids), steps, use)
    return target


def fused(run: Path, inputs: Inputs, folder: Path) -> Result:
    """What a run makes of the inputs, judged at its own half."""
    fresh = replace(inputs, missing={})
    return judged(fuse(run, fresh, folder, ids=inputs.source.ids).maps, inputs)


def judged(store: Store, inputs: Inputs) -> Result:
    """On all images of the inputs."""
    return evaluate(store, inputs.source, Scoring(), split="test")


def tuned(found: Result) -> float:
    """The mIoU at the threshold that is best on the truth."""
    return found.miou(tuned=True)


def best(results: list[Result]) -> np.ndarray:
    """Counts of the best result at its best threshold."""
    return max(results, key=tuned).counts_tuned


def row(title: str, found: Result, against: np.ndarray) -> None:
    """One line: mIoU, and the paired difference to other counts with its interval."""
    gap = bootstrap_difference(found.counts, against)
    low, middle, high = (100 * float(value) for value in (gap.low, gap.estimate, gap.high))
    shown = f"{middle:+.1f} ({low:+.1f} … {high:+.1f})"
    print(f"  {title:37} {100 * found.miou():5.1f}  {shown}", flush=True)


def safety(run: Path, test: Inputs, folder: Path, before: Result) -> None:
    """One system missing, one alone, noise added, one in other units."""
    names = test.names()
    for system in test.systems:
        name = system.folder.name
        rest = replace(test, systems=tuple(one for one in test.systems if one is not system))
        forms = closed_forms(rest, folder / f"forms_without_{name}")[1]
        row(f"without {name}, less best form", fused(run, rest, folder / f"no_{name}"), best(forms))
    for system in test.systems:
        name = system.folder.name
        alone = replace(test, systems=(system,))
        itself = judged(system, test).counts_tuned
        row(f"{name} alone, less itself", fused(run, alone, folder / f"only_{name}"), itself)
    noise = ablation.noise_system(test.systems[0], folder / "noise", ids=test.source.ids)
    added = replace(test, systems=(*test.systems, noise))
    row("noise added, less before", fused(run, added, folder / "with_noise"), before.counts)
    victim = test.systems[names.index("overctx")]
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "× 0.2": lambda scores: np.float32(0.2) * scores,
        "to the power 3": lambda scores: scores**3,
    }
    for number, (title, change) in enumerate(changes.items()):
        other = changed(victim, folder / f"changed_{number}", change)
        systems = tuple(other if one is victim else one for one in test.systems)
        found = fused(run, replace(test, systems=systems), folder / f"other_{number}")
        row(f"overctx {title}, less before", found, before.counts)


def changed(system: Store, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Store:
    """A store of the same name with other scores, in a folder of its own."""
    made = world.store(folder, system.folder.name, system.classes, "activation")
    for id in system.ids():
        maps = system.get_scores(id)
        made.put_scores(id, replace(maps, scores=change(maps.scores)))
    return made


if __name__ == "__main__":
    main()
