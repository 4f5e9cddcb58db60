"""Ablations of the combiner: named variants are learned, fused and judged, and stand in tables.

A ``Variant`` is a way to combine; a ``Table`` is a list of variants that are compared with its
first. ``run`` makes what is missing and writes ``ablation.md`` and ``ablation.png`` after every
table, so the same call goes on where it was stopped. Each variant has a folder of its own under
``variants/``; those that learn the same thing share the run of the first of them. The lists of
variants themselves: ``study.ablation_tables``.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from wsss_jax.combiner import combine_learned, few_shot
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.few_shot import FewShot
from wsss_jax.config import as_json, fingerprint, lookup
from wsss_jax.data.datasets import Source
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store, read_npz
from wsss_jax.errors import UserError
from wsss_jax.ops.intervals import Interval
from wsss_jax.run import folders
from wsss_jax.run.executors import Workers
from wsss_jax.stages.evaluate import Result, Scoring, evaluate
from wsss_jax.study import closed_forms
from wsss_jax.study.closed_forms import Closed

CUES = ("saliency", "edges", "features")
"""What a combiner sees beside the systems, where there is any."""


@dataclass(frozen=True)
class Learnt:
    """A learned combiner.

    settings: of its learning; the seed is the study's. systems: those it learns from. tested: those
    it fuses, if others. cues: names of CUES that it is given. shots: images whose pixels are
    labelled, 0 for none.
    """

    settings: Combining
    systems: tuple[str, ...]
    tested: tuple[str, ...] = ()
    cues: tuple[str, ...] = CUES
    shots: int = 0


@dataclass(frozen=True)
class Variant:
    """A way to combine and what it is called; its folder is named after it."""

    name: str
    way: Learnt | Closed


@dataclass(frozen=True)
class Table:
    """Variants that are compared with the first of them, and a sentence on how to read it."""

    title: str
    rows: tuple[Variant, ...]
    note: str = ""


@dataclass(frozen=True)
class Study:
    """What all variants share.

    source: photographs and labels of all images. teaching: ids that combiners learn from; their
    masks are read for ``shots`` alone. judged: a source with true masks. systems, cues: stores by
    name. scoring: what counts. seeds: each variant is learned once for each. shots: how few labels
    teach (the number of images is the variant's). workers: that judge.
    """

    source: Source
    teaching: tuple[str, ...]
    judged: Source
    systems: Mapping[str, Store]
    cues: Mapping[str, Store]
    scoring: Scoring = field(default_factory=Scoring)
    seeds: tuple[int, ...] = (0,)
    shots: FewShot = field(default_factory=FewShot)
    workers: Workers = field(default_factory=Workers)

    def inputs(self, systems: Sequence[str], cues: Sequence[str], cells: int) -> Inputs:
        """Evidence of these systems and cues. ValueError for a system that is not there."""
        chosen = tuple(lookup(self.systems, name, "system") for name in systems)
        saliency, edges, features = (self.cues.get(name) if name in cues else None for name in CUES)
        return Inputs(self.source, chosen, saliency, edges, features, cells=cells)


@dataclass(frozen=True)
class Outcome:
    """A variant judged: counts of all seeds added, and the mean IoU of each seed."""

    result: Result
    seeds: tuple[float, ...]


def run(
    tables: Sequence[Table], study: Study, folder: Path, *, chosen: Sequence[str] = ()
) -> dict[str, Outcome]:
    """Make the tables, or those whose titles are ``chosen``, and write them into ``folder``.

    Returns the outcomes by the variants' names. Raises ValueError for two variants of one name or
    one folder, an unknown title, or a folder that holds a variant with other settings.
    """
    first = _first_learning(tables)
    for title in chosen:
        lookup({table.title: table for table in tables}, title, "table")
    wanted = [table for table in tables if not chosen or table.title in chosen]
    found: dict[str, Outcome] = {}
    for table in wanted:
        for variant in table.rows:
            if variant.name not in found:
                found[variant.name] = _outcome(variant, study, folder, first)
                jax.clear_caches()  # each has programs of its own; after 60 their memory ends
                print(
                    f"  {100 * found[variant.name].result.miou():5.1f}  {variant.name}", flush=True
                )
        done = [one for one in wanted if all(row.name in found for row in one.rows)]
        write_atomic(folder / "ablation.md", markdown(done, found, study).encode())
        draw(done, found, folder / "ablation.png")
    return found


def part(tables: Sequence[Table], rows: Sequence[str]) -> tuple[Table, ...]:
    """The tables with these rows alone, where two or more are left to be compared.

    A row that would so be in no table stands alone in the first that has it. Raises ValueError for
    a row that no table has.
    """
    known = {row.name: row for table in tables for row in table.rows}
    for name in rows:
        lookup(known, name, "row")
    cut = [
        replace(table, rows=tuple(row for row in table.rows if row.name in rows))
        for table in tables
    ]
    shown = {row for table in cut if len(table.rows) > 1 for row in table.rows}
    kept = []
    for table in cut:
        if len(table.rows) > 1 or not shown.issuperset(table.rows):
            kept.append(table)
            shown.update(table.rows)
    return tuple(kept)


def markdown(tables: Sequence[Table], found: Mapping[str, Outcome], study: Study) -> str:
    """All tables; numbers in percent, differences to the first row with their paired interval."""
    images = len(next(iter(found.values())).result.ids)
    lines = [
        "# Ablation of the combiner",
        "",
        f"Learned from {len(study.teaching)} images, judged on {images} of {study.judged.name}, "
        f"{len(study.seeds)} seed(s). mIoU in percent at thresholds that were set before any mask "
        "was read; *tuned*: the best threshold on this very truth, an upper bound. *Difference*: "
        "to the first row of the table, with the 95 % interval of a paired bootstrap over images; "
        "counts of all seeds are added. One that holds 0 tells nothing apart.",
    ]
    return "\n".join([*lines, "", *(section(table, found) for table in tables)])


def section(table: Table, found: Mapping[str, Outcome]) -> str:
    """One table under its title; the column of seeds only where there are several."""
    several = any(len(found[row.name].seeds) > 1 for row in table.rows)
    head = ["variant", "mIoU", "95 %", *(["seeds"] if several else []), "tuned"]
    head += ["difference", "95 %"]
    lines = [f"## {table.title}", "", *([table.note, ""] if table.note else [])]
    lines += [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for row, gap in _compared(table, found):
        lines.append(f"| {' | '.join(_cells(row.name, found[row.name], gap, several))} |")
    return "\n".join([*lines, ""])


def draw(tables: Sequence[Table], found: Mapping[str, Outcome], path: Path) -> None:
    """Every table as bars of the difference to its first row, with their paired intervals."""
    heights = [0.32 * len(table.rows) + 0.9 for table in tables]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, table in zip(axes, tables, strict=True):
        _bars(axis, table, found)
    axes[-1].set_xlabel(
        "difference in mIoU to the first row, in points, with its paired 95 % interval; "
        "right: mIoU",
        fontsize=8,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())


Learning = tuple[Combining, tuple[str, ...], tuple[str, ...]]


def _first_learning(tables: Sequence[Table]) -> dict[Learning, str]:
    """Who learns first what others learn too; checks that a name is one variant and one folder."""
    seen: dict[str, Variant] = {}
    first: dict[Learning, str] = {}
    for variant in (row for table in tables for row in table.rows):
        other = seen.setdefault(_folder_name(variant), variant)
        if other != variant:
            raise UserError(
                f"variants {other.name!r} and {variant.name!r} differ, but would share the folder "
                f"{_folder_name(variant)}; give each a name of its own"
            )
        if isinstance(variant.way, Learnt):
            first.setdefault(_learning(variant.way), _folder_name(variant))
    return first


def _learning(way: Learnt) -> Learning:
    return way.settings, way.systems, way.cues


def _outcome(
    variant: Variant, study: Study, folder: Path, first: Mapping[Learning, str]
) -> Outcome:
    each = [_of_seed(variant, study, folder, first, seed) for seed in _seeds(variant, study)]
    whole = each[0]
    for other in each[1:]:
        whole = replace(
            whole,
            counts=whole.counts + other.counts,
            counts_tuned=whole.counts_tuned + other.counts_tuned,
        )
    return Outcome(whole, tuple(one.miou() for one in each))


def _seeds(variant: Variant, study: Study) -> tuple[int, ...]:
    """A closed form has no seed; its counts stand once beside sums over seeds."""
    return study.seeds if isinstance(variant.way, Learnt) else study.seeds[:1]


def _of_seed(
    variant: Variant, study: Study, folder: Path, first: Mapping[Learning, str], seed: int
) -> Result:
    """One variant and seed, read back where it was judged before."""
    home = folder / "variants" / _folder_name(variant) / f"seed_{seed}"
    ids = tuple(sorted(study.judged.ids))
    record = {
        "variant": as_json(variant),
        "shots": as_json(study.shots),
        "scoring": as_json(study.scoring),
        "teaching": fingerprint(study.teaching),
        "judged": fingerprint(ids),
    }
    folders.claim(home, record)
    if not (home / "judged.npz").is_file():
        store, threshold = _combined(variant.way, study, folder, first, seed, home)
        scoring = replace(study.scoring.on(study.judged), threshold=threshold)
        split = study.judged.name
        result = evaluate(store, study.judged, scoring, split=split, workers=study.workers)
        _write(home / "judged.npz", result, ids)
    return _read(home / "judged.npz", variant.name, study, ids)


def _combined(
    way: Learnt | Closed,
    study: Study,
    folder: Path,
    first: Mapping[Learning, str],
    seed: int,
    home: Path,
) -> tuple[Store, float]:
    """The fused store of the judged images, and the threshold of its activations."""
    ids = study.judged.ids
    if isinstance(way, Closed):
        inputs = study.inputs(way.systems, CUES, way.cells)
        return closed_forms.combine(way, inputs, home / "fused", ids=ids, teaching=study.teaching)
    shared = folder / "variants" / first[_learning(way)] / f"seed_{seed}" / "run"
    settings = replace(way.settings, seed=seed)
    inputs = study.inputs(way.systems, way.cues, settings.cells)
    learned = combine_learned.learn(inputs, shared, settings, ids=study.teaching)
    if way.shots:
        few = replace(study.shots, images=way.shots, seed=seed)
        learned = few_shot.fine_tune(learned, inputs, home / "tuned", few, ids=study.teaching)
    tested = study.inputs(way.tested or way.systems, way.cues, settings.cells)
    fused = combine_learned.fuse(learned, tested, home / "fused", ids=ids, network=settings.network)
    return fused, 0.5


def _write(path: Path, result: Result, ids: Sequence[str]) -> None:
    rows = np.array([ids.index(id) for id in result.ids], np.int64)
    buffer = io.BytesIO()
    at = np.array([result.fixed, result.tuned])
    np.savez_compressed(buffer, rows=rows, at=at, fixed=result.counts, tuned=result.counts_tuned)
    write_atomic(path, buffer.getvalue())


def _read(path: Path, name: str, study: Study, ids: tuple[str, ...]) -> Result:
    arrays = read_npz(path, {"rows": "i", "at": "f", "fixed": "i", "tuned": "i"})
    return Result(
        name=name,
        split=study.judged.name,
        ids=tuple(str(ids[row]) for row in arrays["rows"]),
        fixed=float(arrays["at"][0]),
        tuned=float(arrays["at"][1]),
        counts=arrays["fixed"],
        counts_tuned=arrays["tuned"],
        curve=np.zeros(0),
        scored=study.scoring.on(study.judged).indices(study.judged.classes),
    )


def _compared(
    table: Table, found: Mapping[str, Outcome]
) -> Iterator[tuple[Variant, Interval | None]]:
    reference = found[table.rows[0].name].result
    for row in table.rows:
        same = row == table.rows[0]
        yield row, None if same else found[row.name].result.gain(reference)


def _cells(name: str, outcome: Outcome, gap: Interval | None, several: bool) -> list[str]:
    own = outcome.result.interval()
    ends = [f"{100 * min(outcome.seeds):.1f} … {100 * max(outcome.seeds):.1f}"]
    return [
        name,
        f"{100 * outcome.result.miou():.1f}",
        f"{100 * float(own.low):.1f} … {100 * float(own.high):.1f}",
        *(ends if several else []),
        f"{100 * outcome.result.miou(tuned=True):.1f}",
        "" if gap is None else f"{100 * float(gap.estimate):+.1f}",
        "" if gap is None else f"{100 * float(gap.low):+.1f} … {100 * float(gap.high):+.1f}",
    ]


def _bars(axis: Any, table: Table, found: Mapping[str, Outcome]) -> None:
    """One table; its first row is the line at 0."""
    gaps = [gap or Interval(0.0, 0.0, 0.0) for _, gap in _compared(table, found)]
    middle, low, high = 100 * np.array([[float(end) for end in gap] for gap in gaps]).T
    places = np.arange(len(gaps))
    colours = np.where(middle < 0, "#c4561a", "#2a78b8").tolist()
    axis.barh(places, middle, color=colours, height=0.65)
    around = np.stack([middle - low, high - middle])[:, 1:]
    axis.errorbar(
        middle[1:], places[1:], np.zeros_like(around), around, "none", ecolor="#1b1f27", capsize=2
    )
    axis.axvline(0, color="#5b6472", lw=0.8)
    reach = max(1.0, 1.05 * float(np.nanmax(np.abs([low, high]))))
    axis.set_xlim(-reach, reach)
    axis.set_yticks(places, [row.name for row in table.rows])
    for place, row in zip(places, table.rows, strict=True):
        text = f"{100 * found[row.name].result.miou():.1f}"
        axis.text(1.01 * reach, place, text, va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_title(table.title, loc="left", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _folder_name(variant: Variant) -> str:
    return re.sub(r"[^a-z0-9]+", "_", variant.name.lower()).strip("_") or "variant"
