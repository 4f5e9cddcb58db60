"""``wsss compare``: runs side by side, by the settings that differ, their curves and their results.

A run is a folder that `wsss train` made, or a folder of `wsss run` and its like with several of
them inside. It reads JSON alone and imports no jax.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from wsss_jax.data import json_records
from wsss_jax.data.texts import read_json, read_text
from wsss_jax.errors import BadFileError, UserError

WIDTH = 24
"""Characters of a curve."""

_LEVELS = "▁▂▃▄▅▆▇█"
_COUNTS = ("step", "skipped", "bad_in_a_row")


@dataclass(frozen=True)
class Run:
    """What is told of a run.

    settings: by dotted name. curves: of each metric, (step, value) in order. Both are called
    part/name where they belong to a training inside the folder, or to the recipe. results: mIoU by
    store and split, a fraction of 1.
    """

    name: str
    settings: Mapping[str, object]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    results: Mapping[tuple[str, str], float]


def command(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Show runs side by side: the settings that differ, their curves, and their results.

    Args:
        runs: folders of `wsss train`, `wsss run` or another verb that trains, two or more.
    """
    if len(runs) < 2:
        raise UserError("one run alone differs from nothing; give two folders or more")
    names = short_names(runs)
    read = [read_run(folder, name) for folder, name in zip(runs, names, strict=True)]
    console = Console(highlight=False)
    tables = (settings_table(read), curves_table(read), results_table(read))
    for table in (one for one in tables if one.row_count):
        console.print(table)
        console.print()
    if not any(table.row_count for table in tables):
        print("the settings are the same, and there are no curves or results")


def short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' last parts, or as many as tell them apart."""
    paths = [folder.resolve() for folder in folders]
    for count in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def read_run(folder: Path, name: str) -> Run:
    """Settings, curves and results of a folder. Raises BadFileError where it is no run."""
    settings, curves, results = {}, {}, {}
    parts = sorted(path.parent for path in folder.glob("*/settings.json"))
    for part in [folder, *parts]:
        prefix = "" if part == folder else f"{part.name}/"
        if (part / "settings.json").is_file():
            settings |= _named(prefix, json_records.read(part / "settings.json"))
        if (part / "metrics.jsonl").is_file():
            found = _curves(part / "metrics.jsonl")
            curves |= {f"{prefix}{metric}": points for metric, points in found.items()}
    if (folder / "results.json").is_file():
        content = read_json(folder / "results.json")
        recipe = content.get("recipe", {})
        settings |= _named("recipe/", {k: v for k, v in recipe.items() if k != "systems"})
        results = {(one["name"], one["split"]): one["fixed"]["miou"] for one in content["results"]}
    if not settings:
        raise BadFileError(f"{folder}: no run (neither settings.json nor results.json)")
    return Run(name, settings, curves, results)


def settings_table(runs: Sequence[Run]) -> Table:
    """Settings that differ between the runs that have them, and parts that some runs lack."""
    table = _table("settings that differ", runs)
    parts = [{_part(key) for key in run.settings} for run in runs]
    for part in dict.fromkeys(_part(key) for run in runs for key in run.settings):
        held = [part in those for those in parts]
        if not all(held):
            table.add_row(part or "trained here", *("yes" if there else "–" for there in held))
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        cells = [
            str(run.settings.get(key, "–")) if _part(key) in those else ""
            for run, those in zip(runs, parts, strict=True)
        ]
        if len(set(filter(None, cells))) > 1:
            table.add_row(key, *cells)
    return table


def curves_table(runs: Sequence[Run]) -> Table:
    """Every metric of each run: its curve on a scale that the runs share, first and last value."""
    table = _table("curves, all runs on one scale: first … last", runs)
    for metric in dict.fromkeys(metric for run in runs for metric in run.curves):
        known = [run.curves.get(metric, ()) for run in runs]
        values = [value for points in known for _, value in points]
        steps = max((points[-1][0] for points in known if points), default=1)
        bounds = min(values), max(values)
        table.add_row(metric, *(_curve(points, steps, bounds) for points in known))
    return table


def results_table(runs: Sequence[Run]) -> Table:
    """MIoU of each store at its fixed threshold."""
    table = _table("mIoU in percent, at fixed thresholds", runs)
    for key in dict.fromkeys(key for run in runs for key in run.results):
        found = [run.results.get(key) for run in runs]
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in found]
        table.add_row(f"{key[0]} on {key[1]}", *cells)
    return table


def sparkline(points: Sequence[tuple[int, float]], steps: int, bounds: tuple[float, float]) -> str:
    """A curve of WIDTH characters over ``steps``: the mean of the values that fall on each.

    bounds: the values drawn lowest and highest. A character without a value repeats the last one;
    the line ends where the points do.
    """
    low, high = bounds
    bins: list[list[float]] = [[] for _ in range(WIDTH)]
    for step, value in points:
        bins[min(max(step - 1, 0) * WIDTH // max(steps, 1), WIDTH - 1)].append(value)
    drawn, last = "", " "
    for held in bins[: max((n + 1 for n, held in enumerate(bins) if held), default=0)]:
        if held:
            share = (sum(held) / len(held) - low) / (high - low) if high > low else 0.5
            last = _LEVELS[round(share * (len(_LEVELS) - 1))]
        drawn += last
    return drawn


def _curve(points: Sequence[tuple[int, float]], steps: int, bounds: tuple[float, float]) -> str:
    if not points:
        return "–"
    ends = f"{points[0][1]:.3g} … {points[-1][1]:.3g} at {points[-1][0]}"
    return f"{sparkline(points, steps, bounds)}\n{ends}"


def _table(title: str, runs: Sequence[Run]) -> Table:
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS, show_edge=False)
    for name in ("", *(run.name for run in runs)):
        table.add_column(name, overflow="fold")
    return table


def _part(key: str) -> str:
    return key.rpartition("/")[0]


def _named(prefix: str, content: Mapping[str, object]) -> dict[str, object]:
    """Settings by name; versions differ between any two days and stand in settings.json."""
    return {
        prefix + key.removeprefix("settings."): value
        for key, value in _flat(content)
        if not key.startswith("versions.")
    }


def _flat(value: object, name: str = "") -> list[tuple[str, object]]:
    """Every value below nested objects, by its dotted name."""
    if not isinstance(value, Mapping):
        return [(name, value)]
    return [
        pair
        for key, inner in value.items()
        for pair in _flat(inner, f"{name}.{key}" if name else key)
    ]


def _curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of each metric; a last line that is cut off counts for nothing."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_text(path)[0].splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        for metric, value in entry.items():
            if metric not in _COUNTS and math.isfinite(value):  # a skipped step has no loss
                found.setdefault(metric, []).append((int(entry["step"]), float(value)))
    return found
