"""Do five masks that ``wsss suggest`` names gain as much as five drawn at random?

Reads the class maps (cam_*), the saliency and the frozen features (features*) of a run folder that
a recipe made. The combiner is learned without true masks, with five that are suggested from what
that gave, and with five drawn at random, for each of three seeds. Judged on val, and on train
without the photographs that it learned from.

Command: python experiments/voc12_animals_suggest.py RUN --data DATA/voc12_animals
    [--systems cam_a cam_b] [--features features_a features_b] [--seeds 3] --out FOLDER
The same command goes on where it was stopped. The table is FOLDER/suggest.md.
Results: benchmarks/RESULTS.md.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from wsss_jax import xla
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import Source, open_dataset, open_together
from wsss_jax.datasets.views import View
from wsss_jax.stages.evaluate import Result, Scoring, evaluate
from wsss_jax.stages.suggest import Suggestion, suggest

COUNT = 5

SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description="Suggested masks against masks at random.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=[])
    parser.add_argument("--features", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    xla.keep_compiled()
    whole = open_together(chosen.data, ("train", "val"))
    train = open_dataset(chosen.data, split="train")
    saliency = chosen.run / "saliency"
    inputs = Inputs(
        whole,
        tuple(_found(chosen.run, chosen.systems, "cam_*")),
        saliency=open_store(saliency) if saliency.is_dir() else None,
        features=tuple(_found(chosen.run, chosen.features, "features*")),
    )
    lines = ["| masks | seed | val | gain | train | gain |", "|---|--:|--:|--:|--:|--:|"]
    for seed in range(chosen.seeds):
        folder = chosen.out / f"seed_{seed}"
        plain = _fused(inputs, (), seed, train.ids, folder / "none")
        named = suggest(plain, train, folder, Suggestion(COUNT), features=inputs.features[0])
        sets = {"suggested": tuple(one.id for one in named), "random": _drawn(train, seed)}
        taught = {id for ids in sets.values() for id in ids}
        before = _judged(plain, chosen.data, taught)
        lines.append(_line("none", seed, before, before))
        for name, ids in sets.items():
            maps = _fused(inputs, ids, seed, train.ids, folder / name)
            lines.append(_line(name, seed, _judged(maps, chosen.data, taught), before))
        write_atomic(chosen.out / "suggest.md", "\n".join([*lines, ""]).encode())
        print("\n".join(lines[-3:]), flush=True)


def _fused(
    inputs: Inputs, known: tuple[str, ...], seed: int, teaching: tuple[str, ...], folder: Path
) -> Store:
    """Maps of a combiner that learns from the true masks of ``known`` too."""
    source = inputs.source
    truth = partial(_truth, source, frozenset(known))
    given = Inputs(
        View(source, source.classes, source.labels, truth),
        inputs.systems,
        saliency=inputs.saliency,
        features=inputs.features,
    )
    settings = Combining(labelled=len(known), seed=seed)
    run = learn(given, folder / "run", settings, ids=teaching)
    return fuse(run, given, folder / "fused", ids=source.ids).maps


def _truth(source: Source, known: frozenset[str], id: str):
    return source.mask(id) if id in known else None


def _drawn(source: Source, seed: int) -> tuple[str, ...]:
    """Photographs at random, of those that show a class."""
    able = [id for id in source.ids if source.labels(id).any()]
    return tuple(np.random.default_rng(seed).permutation(able)[:COUNT].tolist())


def _judged(maps: Store, data: Path, taught: set[str]) -> dict[str, Result]:
    """Results on val and on train, both without photographs that taught anybody."""
    found = {}
    for split in ("val", "train"):
        source = open_dataset(data, split=split)
        source = open_dataset(
            data, split=split, ids=tuple(id for id in source.ids if id not in taught)
        )
        found[split] = evaluate(maps, source, Scoring(classes=SCORED).on(source), split=split)
    return found


def _line(name: str, seed: int, now: dict[str, Result], before: dict[str, Result]) -> str:
    cells = [name, str(seed)]
    for split, result in now.items():
        gain = result.gain(before[split])
        low, middle, high = (100 * float(v) for v in (gain.low, gain.estimate, gain.high))
        cells += [f"{100 * result.miou():.1f}", f"{middle:+.1f} ({low:+.1f} … {high:+.1f})"]
    return f"| {' | '.join(cells)} |"


def _found(run: Path, names: list[str], pattern: str) -> list[Store]:
    chosen = names or [path.parent.name for path in sorted(run.glob(f"{pattern}/index.json"))]
    return [open_store(run / name) for name in chosen]


if __name__ == "__main__":
    main()
