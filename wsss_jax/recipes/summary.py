"""What a run found, as a table for the terminal and as results.json and results.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.ops.intervals import Interval
from wsss_jax.run.executors import Workers
from wsss_jax.stages.evaluate import Result, Scoring, write_results
from wsss_jax.stages.masks import judged

_FIXED = (
    "mIoU in percent over the scored classes. Fixed: the threshold was set before any mask was "
    "read."
)
_OTSU = "Otsu: Otsu's threshold of the scores, which reads no mask."
_TUNED = "Tuned: the best threshold on this split's true masks, an upper bound."
_SHOTS = "Not from image labels alone, but also from true masks of some images:"
_SOURCES = "Supervision besides this data set's labels, and licence:"
_INTERVAL = "with the 95 % interval of a paired bootstrap over images."
_BEST_SINGLE = (
    "Gain: against the best single system on this split (picked by true masks, which favours it), "
    f"both at fixed thresholds, {_INTERVAL}"
)
_FIRST = f"Gain: against the first store, both at fixed thresholds, {_INTERVAL}"
_FIRST_TUNED = (
    "Gain: of a store at its fixed threshold against the first store at its best threshold on "
    f"these true masks, which favours it, {_INTERVAL}"
)


@dataclass(frozen=True)
class Row:
    """One store on one split, compared with another; ``gained`` explains the gain in a sentence."""

    result: Result
    group: str
    reference: str
    gain: Interval | None
    gained: str


def rows(groups: Mapping[str, str], results: Sequence[Result]) -> list[Row]:
    """Results by step, then in pipeline order, with their gain over the best single system.

    groups: of each store by name; those of single systems begin with "single".
    """
    found = []
    steps = list(dict.fromkeys(groups.values()))
    results = sorted(results, key=lambda result: steps.index(groups[result.name]))
    single = {name for name, group in groups.items() if group.startswith("single")}
    for result in results:
        singles = [r for r in results if r.split == result.split and r.name in single]
        best = max(singles, key=lambda r: r.miou())
        gain = None if result.name in single else result.gain(best)
        found.append(Row(result, groups[result.name], best.name, gain, _BEST_SINGLE))
    return found


def against_first(results: Sequence[Result], *, tuned: bool = False) -> list[Row]:
    """Results with their paired gain over the first of them.

    tuned: over the first at its best threshold on the truth; the others stay at their fixed ones.
    """
    first = results[0]
    rival = replace(first, at_fixed=first.at_tuned) if tuned else first
    said = _FIRST_TUNED if tuned else _FIRST
    others = [Row(result, "", first.name, result.gain(rival), said) for result in results[1:]]
    return [Row(first, "", first.name, None, said), *others]


def of_splits(
    made: Sequence[Store], sources: Mapping[str, Source], scoring: Scoring, workers: Workers
) -> list[Row]:
    """The stores on every split that has true masks, beside the first of them."""
    found = []
    for split, source in sources.items():
        if any(source.mask(id) is not None for id in source.ids):
            on = scoring.on(source)
            found += against_first(judged(made, source, on, split=split, workers=workers))
    return found


def explanation(table_rows: Sequence[Row]) -> str:
    """What the columns of a table mean."""
    otsu = any(row.result.otsu is not None for row in table_rows)
    shots = {row.result.name: row.result.labelled for row in table_rows if row.result.labelled}
    listed = ", ".join(f"{name} ({count})" for name, count in shots.items())
    regime = [f"{_SHOTS} {listed}."] if shots else []
    parts = [_FIXED, *([_OTSU] if otsu else []), _TUNED, *regime, table_rows[0].gained]
    return " ".join([*parts, *_sources(table_rows)])


def _sources(table_rows: Sequence[Row]) -> list[str]:
    """Whose weights and maps the rows rest on, in a sentence; none where none is recorded."""
    found = dict.fromkeys(source for row in table_rows for source in row.result.sources)
    told = [f"{one.name} ({one.supervision}; licence {one.licence})" for one in found]
    return [f"{_SOURCES} {', '.join(told)}."] if told else []


def show(table_rows: Sequence[Row], *, width: int | None = None) -> None:
    """Print one table per split, of at most 80 columns; a group's name stands above its rows.

    A long name takes two lines, so that no number is cut.
    """
    console = Console(width=width, highlight=False)
    for split in dict.fromkeys(row.result.split for row in table_rows):
        chosen = [row for row in table_rows if row.result.split == split]
        count, reference = len(chosen[0].result.ids), chosen[0].reference
        title = f"{split}: {count} images, gain against {reference}"
        table = Table(title=title, box=box.HORIZONTALS, show_edge=False, padding=(0, 1, 0, 0))
        lines = [[_cells(row)[column] for column in _SHOWN] for row in chosen]
        for number, column in enumerate(_SHOWN):
            name = _HEAD[column]
            longest = max(len(name), *(len(line[number]) for line in lines))
            table.add_column(
                name,
                justify="left" if name in _LEFT else "right",
                overflow="fold",
                min_width=longest if number else None,
            )
        above = ""
        for row, line in zip(chosen, lines, strict=True):
            if row.group != above:
                table.add_row(f"[dim]{row.group}[/dim]")
                above = row.group
            table.add_row(*line)
        console.print(table)
        print()
    console.print(explanation(table_rows))


def conclude(
    made: Sequence[Store],
    sources: Mapping[str, Source],
    scoring: Scoring,
    workers: Workers,
    out: Path,
    plan: object,
) -> None:
    """Judge what a plan made on every split that has true masks, print it, and write it to ``out``.

    Nothing is printed or written where no split has any.
    """
    found = of_splits(made, sources, scoring, workers)
    if found:
        show(found)
        write(out, found, next(iter(sources.values())).classes, plan=plan)


def write(out: Path, table_rows: Sequence[Row], classes: ClassList, **extra: object) -> None:
    """results.json with every number, results.md with the tables."""
    write_results(out / "results.json", [row.result for row in table_rows], classes, **extra)
    lines = ["# Results", "", explanation(table_rows), ""]
    for split in dict.fromkeys(row.result.split for row in table_rows):
        lines += [f"## {split}", "", "| " + " | ".join(_HEAD) + " |"]
        lines += ["|" + "|".join("---" if name in _LEFT else "--:" for name in _HEAD) + "|"]
        lines += [
            "| " + " | ".join(_cells(row)) + " |" for row in table_rows if row.result.split == split
        ]
        lines += [""]
    write_atomic(out / "results.md", "\n".join(lines).encode())


_HEAD = (
    *("step", "store", "fixed", "95 %", "at", "Otsu", "at", "tuned", "at", "gain", "95 %"),
    "supervision",
)
_SHOWN = (1, 2, 3, 5, 7, 9, 10)  # on a terminal; the files have the thresholds too
_LEFT = ("step", "store", "95 %", "supervision")


def _cells(row: Row) -> tuple[str, ...]:
    result, own = row.result, row.result.interval()
    gain, spread, otsu, there = "", "", "", ""
    if result.otsu is not None:
        otsu, there = f"{100 * result.miou_at(result.otsu):.1f}", f"{result.otsu:.2f}"
    if row.gain is not None:
        gain = f"{100 * float(row.gain.estimate):+.1f}"
        spread = f"{100 * float(row.gain.low):+.1f} … {100 * float(row.gain.high):+.1f}"
    return (
        row.group,
        result.name,
        f"{100 * result.miou():.1f}",
        f"{100 * float(own.low):.1f} … {100 * float(own.high):.1f}",
        f"{result.fixed:.2f}",
        otsu,
        there,
        f"{100 * result.miou(tuned=True):.1f}",
        f"{result.tuned:.2f}",
        gain,
        spread,
        row.result.supervision,
    )
