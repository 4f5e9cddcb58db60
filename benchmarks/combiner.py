"""The learned combiner on the world of failing systems: is it better than every closed form?

Prints, for each seed: the best single system and the closed forms at the threshold that suits them
best on the *test truth*, the combiner at its own 1/2, and the paired difference with its interval.
With --safety also what happens when a system is missing, alone, noise, or distorted; with --shots
the k-shot regime beside logistic stacking. mIoU in percent; the world ranks designs, it predicts
nothing about photographs. What every input and step is worth: notebooks/combiner_inputs.py.

    python benchmarks/combiner.py --seeds 0 1 2 --safety --shots 5 20
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.few_shot import FewShot
from wsss_jax.study.baselines import Agreeing

from wsss_jax.combiner import consensus as ops
from wsss_jax.combiner import few_shot, learn_combiner
from wsss_jax.combiner.batches import evidence_groups
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.data.stores import Store, open_store
from wsss_jax.ops import metrics
from wsss_jax.ops.intervals import bootstrap_difference
from wsss_jax.study import baselines, fusion_world, world
from wsss_jax.study.fusion_world import CLASSES, SYSTEMS

THRESHOLDS = tuple(np.arange(0.1, 0.9, 0.04))
SCORED = tuple(range(len(CLASSES) + 1))


def main() -> None:
    """Run the seeds that were asked for."""
    parser = argparse.ArgumentParser(description="The learned combiner on the world.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--distil", type=int, default=24)
    parser.add_argument("--safety", action="store_true")
    parser.add_argument("--no-edges", action="store_true", help="nobody is given the edges")
    parser.add_argument("--shots", type=int, nargs="*", default=[])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory() as folder:
            one(Path(folder), seed, chosen)


def one(folder: Path, seed: int, chosen: argparse.Namespace) -> None:
    """One world, one training."""
    train = world.write(fusion_world.make(chosen.train, seed=100 + seed), folder / "train")
    test = world.write(fusion_world.make(chosen.test, seed=200 + seed), folder / "test")
    if chosen.no_edges:
        train, test = replace(train, edges=None), replace(test, edges=None)
    size = train.cells
    settings = Combining(
        epochs=chosen.epochs, distil_epochs=chosen.distil, cells=size, seed=seed, save_every=10_000
    )
    began = time.process_time()
    run = learn_combiner.learn(train, folder / "run", settings, ids=train.source.ids)
    spent = time.process_time() - began
    print(f"\nseed {seed}: learned in {spent:.0f} s of processor time", flush=True)
    closed = closed_forms(test)
    singles = {name: closed[name] for name in SYSTEMS}
    forms = {name: value for name, value in closed.items() if name not in SYSTEMS}
    for title, group in (("best single", singles), ("closed form", forms)):
        for name, (score, threshold, _) in sorted(group.items(), key=lambda item: -item[1][0])[:3]:
            print(f"  {title:12} {name:18} {score:5.1f}  tuned on test truth, at {threshold:.2f}")
    best = max(forms.values(), key=lambda item: item[0])
    combined = judged(run, test, folder / "all")
    row("combiner, label-free", combined, best[2])
    row("  less best single", combined, max(singles.values(), key=lambda item: item[0])[2])
    agreeing = Agreeing(cells=size, seed=seed)
    taught = baselines.learn_or_and(train, folder / "orand", agreeing, ids=train.source.ids)
    agreed = baselines.or_and(taught, test, folder / "all_orand", ids=test.source.ids)
    row("OR→AND, at 0.3", fixed(agreed, test, 0.3), best[2])
    if chosen.safety:
        safety(run, test, folder, best[2], combined)
    for k in chosen.shots:
        shots = FewShot(k, seed=seed)
        tuned = few_shot.fine_tune(run, train, folder / f"k{k}", shots, ids=train.source.ids)
        row(f"combiner, {k} labelled", judged(tuned, test, folder / f"all_k{k}"), best[2])
        weights = baselines.stacking_weights(train, few_shot.drawn(train, shots, train.source.ids))
        stacked = baselines.stack(weights, test, folder / f"stack_k{k}", ids=test.source.ids)
        row(f"logistic, {k} labelled", fixed(stacked, test, 0.5), best[2])


def row(title: str, counts: np.ndarray, against: np.ndarray) -> None:
    """One line of the table."""
    gap = bootstrap_difference(counts, against)
    low, middle, high = (100 * value for value in (gap.low, gap.estimate, gap.high))
    print(f"  {title:31} {miou(counts):5.1f}  {middle:+.1f} ({low:+.1f} … {high:+.1f})", flush=True)


def safety(run: Path, test: Inputs, folder: Path, best: np.ndarray, combined: np.ndarray) -> None:
    """One system missing, one alone, noise added, one distorted."""
    for number, name in enumerate(SYSTEMS):
        rest = replace(test, systems=test.systems[:number] + test.systems[number + 1 :])
        form = max(closed_forms(rest).values(), key=lambda item: item[0])[2]
        row(f"without {name}, less its form", judged(run, rest, folder / f"no_{name}"), form)
    for number, name in enumerate(SYSTEMS):
        alone = replace(test, systems=(test.systems[number],))
        single = closed_forms(alone)[name][2]
        row(f"{name} alone, less itself", judged(run, alone, folder / f"only_{name}"), single)
    random = np.random.default_rng(0)
    changes = {
        "pure noise added": (None, lambda scores: random.random(scores.shape).astype(np.float32)),
        "overctx times 0.2": ("overctx", lambda scores: 0.2 * scores),
        "overctx to the power 3": ("overctx", lambda scores: scores**3),
    }
    for title, (victim, change) in changes.items():
        name = title.replace(" ", "_")
        other = distorted(test, folder, name, victim, change)
        row(f"{title}, less before", judged(run, other, folder / f"f_{name}"), combined)


def distorted(test: Inputs, folder: Path, name: str, victim: str | None, change: Any) -> Inputs:
    """The inputs with one system changed, or one more."""
    place = SYSTEMS.index(victim) if victim else 0
    old = test.systems[place]
    new = world.store(folder / "changed", name, CLASSES, "activation")
    for id in old.ids():
        maps = old.get_scores(id)
        new.put_scores(id, replace(maps, scores=change(maps.scores)))
    systems = list(test.systems)
    if victim:
        systems[place] = new
    else:
        systems.append(new)
    return replace(test, systems=tuple(systems))


def judged(run: Path, inputs: Inputs, folder: Path) -> np.ndarray:
    """Confusions of what a run makes of the inputs, one per image, at its own 1/2."""
    learn_combiner.fuse(run, inputs, folder, ids=inputs.source.ids)
    fused = open_store(folder)
    found = []
    for id in inputs.source.ids:
        maps = fused.get_scores(id)
        rest = 1 - maps.scores.sum(axis=-1, keepdims=True)
        found.append(confusion(inputs, id, np.concatenate([rest, maps.scores], axis=-1)))
    return np.stack(found)


def closed_forms(inputs: Inputs) -> dict[str, tuple[float, float, np.ndarray]]:
    """Each system and closed form: mIoU, threshold and confusions, at its best on this truth."""
    makers: dict[str, Any] = {
        store.folder.name: (lambda e, i=i: ops.normalised(e.scores[:, i]))
        for i, store in enumerate(inputs.systems)
    }
    for name, steps, salient in (("mean", 0, False), ("mean × saliency", 0, True)):
        makers[name] = lambda e, n=steps, s=salient: ops.consensus(
            e, e.available, steps=n, use_saliency=s
        )
    for steps in (8, 16, 32, 64):
        for cut in (False, True) if inputs.edges is not None else (False,):
            name = f"… + walk of {steps}{', cut by edges' * cut}"
            makers[name] = lambda e, n=steps, c=cut: ops.consensus(
                e, e.available, steps=n, use_edges=c
            )
    return {name: _tuned(inputs, jax.jit(maker)) for name, maker in makers.items()}


def _tuned(inputs: Inputs, maker: Any) -> tuple[float, float, np.ndarray]:
    counts = np.zeros((len(THRESHOLDS), len(inputs.source.ids), len(SCORED), len(SCORED)), int)
    order = {id: row for row, id in enumerate(inputs.source.ids)}
    slots = inputs.slots(inputs.source.ids)
    for group in evidence_groups(inputs.read, slots, cells=inputs.cells, skip=print):
        maps = np.asarray(maker(jax.tree.map(jax.numpy.asarray, group.evidence)))
        for row, id in enumerate(group.ids):
            scores = maps[row, ..., : len(group.examples[row].classes)]
            for at, threshold in enumerate(THRESHOLDS):
                rest = np.full_like(scores[..., :1], threshold)
                counts[at, order[id]] = confusion(
                    inputs, id, np.concatenate([rest, scores], axis=-1)
                )
    scores = [miou(one) for one in counts]
    at = int(np.argmax(scores))
    return scores[at], float(THRESHOLDS[at]), counts[at]


def fixed(store: Store, inputs: Inputs, threshold: float) -> np.ndarray:
    """Confusions of a store of maps, one per image, at a threshold set beforehand."""
    found = []
    for id in inputs.source.ids:
        scores = store.get_scores(id).scores
        rest = np.full_like(scores[..., :1], threshold)
        found.append(confusion(inputs, id, np.concatenate([rest, scores], axis=-1)))
    return np.stack(found)


def confusion(inputs: Inputs, id: str, maps: np.ndarray) -> np.ndarray:
    """Counts of one image, from maps over background and its classes."""
    classes = np.flatnonzero(inputs.source.labels(id))
    values = np.concatenate([[0], classes + 1]).astype(np.uint8)
    mask = inputs.source.mask(id)
    assert mask is not None
    return metrics.confusion(mask, values[maps.argmax(axis=-1)], len(CLASSES)).counts


def miou(counts: np.ndarray) -> float:
    """In percent."""
    return 100 * float(metrics.mean_iou(counts.sum(axis=0), SCORED))


if __name__ == "__main__":
    sys.exit(main())
