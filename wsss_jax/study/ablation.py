"""What each part of the combiner is worth: named variants are learned, fused and judged.

``standard`` gives the variants: the whole combiner, each step and input taken out, each system
taken out or alone, and a system of noise added. ``run`` makes what is missing and writes
``ablation.md`` after every row, so the same call resumes a stopped one.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.run.executors import Workers
from wsss_jax.stages.evaluate import Result, Scoring, evaluate


@dataclass(frozen=True)
class Variant:
    """A way to combine: what it learns from, what it fuses, and its settings.

    systems, features: names of stores. saliency: whether it is given. tested: the systems that it
    fuses, if others than those it learned from.
    """

    name: str
    systems: tuple[str, ...]
    features: tuple[str, ...]
    settings: Combining = field(default_factory=Combining)
    saliency: bool = True
    tested: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """What all variants share.

    source: photographs and labels of all images. teaching: ids that combiners learn from. judged:
    sources with true masks, by the name of their split. systems, features: stores by name.
    """

    source: Source
    teaching: tuple[str, ...]
    judged: Mapping[str, Source]
    systems: Mapping[str, Store]
    features: Mapping[str, Store]
    saliency: Store | None = None
    scoring: Scoring = field(default_factory=Scoring)
    workers: Workers = field(default_factory=Workers)

    def inputs(self, variant: Variant, systems: Sequence[str]) -> Inputs:
        """The stores that a variant combines."""
        return Inputs(
            self.source,
            tuple(self.systems[name] for name in systems),
            self.saliency if variant.saliency else None,
            tuple(self.features[name] for name in variant.features),
        )


def standard(
    systems: Sequence[str],
    features: Sequence[str],
    settings: Combining,
    *,
    saliency: bool,
    noise: str | None = None,
) -> tuple[Variant, ...]:
    """The whole combiner first, then one thing at a time is other.

    noise: a system of noise, which is added in one row. Raises UserError for fewer than two
    systems.
    """
    if len(systems) < 2:
        raise UserError(f"{len(systems)} system to take apart; wanted at least two")
    whole = Variant("all", tuple(systems), tuple(features), settings, saliency)

    def other(name: str, **changes: object) -> Variant:
        return replace(whole, name=name, settings=replace(settings, **changes))

    rows = [
        whole,
        other("without the probe", rounds=0),
        other("without smoothing", smoothing=0.0),
        other("without probe and smoothing", rounds=0, smoothing=0.0),
        other("without the walk", walk_steps=0),
        other("one threshold for all classes", thresholds="shared"),
        other("one round", rounds=1),
        other("three rounds", rounds=3),
        other("wider smoothing", smoothing=1.4 * settings.smoothing),
        other("narrower smoothing", smoothing=settings.smoothing / 1.4),
        other("ten times the penalty", penalty=10 * settings.penalty),
        other("a tenth of the penalty", penalty=settings.penalty / 10),
    ]
    if saliency:
        rows.append(replace(whole, name="without saliency", saliency=False))
    if len(features) > 1:
        rows += [replace(whole, name=f"features of {f} alone", features=(f,)) for f in features]
        turned = (*features[1:], features[0])
        rows.append(replace(whole, name=f"{turned[0]} first", features=turned))
    for name in systems:
        rest = tuple(one for one in systems if one != name)
        rows.append(replace(whole, name=f"{name} alone", systems=(name,)))
        if len(rest) > 1:
            rows.append(replace(whole, name=f"without {name}", systems=rest))
        rows.append(replace(whole, name=f"{name} missing when fused", tested=rest))
    if noise is not None:
        rows.append(replace(whole, name="a system of noise added", systems=(*systems, noise)))
    return tuple(rows)


def noise_system(like: Store, folder: Path, *, ids: Sequence[str]) -> Store:
    """A store in which each cell is drawn by itself; classes and grids are those of ``like``."""
    target = stores.create(
        folder, holds="scores", classes=like.classes, made_by={"stage": "noise"}, parents=()
    )
    for id in target.missing(ids):
        if like.has(id):
            maps = like.get_scores(id)
            random = np.random.default_rng(zlib.crc32(id.encode()))
            drawn = random.random(maps.scores.shape, np.float32)
            target.put_scores(id, replace(maps, scores=drawn, kind="activation"))
    return target


def run(variants: Sequence[Variant], study: Study, folder: Path) -> dict[str, dict[str, Result]]:
    """Make the rows and write ``ablation.md`` into ``folder``; results by variant and split.

    The first variant is what the others are compared with. Raises UserError for two variants of one
    folder.
    """
    folders = [folder_of(variant) for variant in variants]
    twins = sorted({name for name in folders if folders.count(name) > 1})
    if twins:
        raise UserError(f"two variants share the folder {', '.join(twins)}; rename one")
    found: dict[str, dict[str, Result]] = {}
    for variant in variants:
        found[variant.name] = _outcome(variant, study, folder / folder_of(variant))
        numbers = "  ".join(f"{s} {100 * r.miou():.1f}" for s, r in found[variant.name].items())
        print(f"{variant.name}: {numbers}", flush=True)
        write_atomic(folder / "ablation.md", markdown(found).encode())
    return found


def markdown(found: Mapping[str, Mapping[str, Result]]) -> str:
    """The table: mIoU of each split, and the difference to the first row with its interval."""
    first = next(iter(found.values()))
    splits = list(first)
    head = ["variant", *(column for split in splits for column in (split, "difference"))]
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for name, results in found.items():
        cells = [name]
        for split in splits:
            cells.append(f"{100 * results[split].miou():.1f}")
            gap = results[split].gain(first[split])
            low, middle, high = (100 * float(v) for v in (gap.low, gap.estimate, gap.high))
            same = results is first
            cells.append("" if same else f"{middle:+.1f} ({low:+.1f} … {high:+.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _outcome(variant: Variant, study: Study, folder: Path) -> dict[str, Result]:
    inputs = study.inputs(variant, variant.systems)
    learned = learn(inputs, folder / "run", variant.settings, ids=study.teaching)
    tested = study.inputs(variant, variant.tested or variant.systems)
    fused = fuse(learned, tested, folder / "fused", ids=study.source.ids).maps
    return {
        split: evaluate(fused, source, study.scoring, split=split, workers=study.workers)
        for split, source in study.judged.items()
    }


def folder_of(variant: Variant) -> str:
    """The name of the folder that a variant is made in."""
    return re.sub(r"\W+", "_", variant.name).strip("_").lower()
