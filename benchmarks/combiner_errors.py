"""Where the combiner errs: by class, by size of objects, by how sure it is; what is left to win.

Systems are decided at the threshold that is best on this truth, in their favour; the combination at
1/2. "best system per image" and "per pixel" are perfect choices among the systems: bounds that no
combination of masks reaches without seeing more than they do.

Command: python benchmarks/combiner_errors.py COMBINED SYSTEM [SYSTEM ...] --data DATA --split val
    [--only CLASS ...] [--classes CLASS ...]
"""

import argparse
from pathlib import Path

import numpy as np

from wsss_jax.data.stores import open_store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import open_dataset
from wsss_jax.ops import metrics
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.study import error_counts


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("combined", type=Path)
    parser.add_argument("systems", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--only", nargs="+", default=(), help="classes to keep")
    parser.add_argument("--classes", nargs="+", help="what is averaged over")
    given = parser.parse_args()
    print_tables(given)


def print_tables(given: argparse.Namespace) -> None:
    """Survey the split, and print what was found."""
    source = views.only(open_dataset(given.data, split=given.split), given.only)
    scoring = Scoring(classes=given.classes and tuple(given.classes)).on(source)
    combined = open_store(given.combined)
    systems = [open_store(path) for path in given.systems]
    found = error_counts.survey(systems, combined, source, scoring, split=given.split)
    names = source.classes.mask_names()
    print(f"\n{given.split}: {found.counts.shape[1]} images\n")
    whole = metrics.mean_iou(found.counts.sum(axis=1), found.scored)
    row("store", "at", "mIoU", "small", "middling", "large", *(names[i] for i in found.scored))
    print("|---" + "|--:" * (5 + len(found.scored)) + "|")
    for name, limit, mean, sizes, classes in zip(
        found.names, found.thresholds, whole, found.per_size(), found.per_class(), strict=True
    ):
        cells = (mean, *sizes, *classes[list(found.scored)])
        row(name, f"{limit:.2f}", *(f"{100 * value:.1f}" for value in cells))
    for name, counts in (("image", found.best_system), ("pixel", found.best_pixel)):
        classes = metrics.iou(counts)[list(found.scored)]
        mean = metrics.mean_iou(counts, found.scored)
        shown = [f"{100 * value:.1f}" for value in classes]
        row(f"best system per {name}", "", f"{100 * float(mean):.1f}", "", "", "", *shown)
    sizes = np.bincount(found.size, minlength=3)
    print(f"\nimages by size: {', '.join(map(str, sizes))}")
    print(f"calibration error of the foreground: {found.calibration_error():.3f}\n")
    row("probability", "of pixels", "mean", "foreground")
    print("|--:|--:|--:|--:|")
    for number, (pixels, sure, shown) in enumerate(found.believed):
        span = f"{number / error_counts.BINS:.1f} … {(number + 1) / error_counts.BINS:.1f}"
        share = f"{100 * pixels / found.believed[:, 0].sum():.1f} %"
        row(span, share, *(f"{value / max(pixels, 1):.2f}" for value in (sure, shown)))
    beside = given.combined.with_name(f"{given.combined.name}_trust")
    if beside.is_dir():
        trust = open_store(beside)
        maps = (trust.get_scores(id) for id in source.ids if trust.has(id))
        shares = np.mean([each.scores.mean(axis=(0, 1)) for each in maps], axis=0)
        said = (f"{name} {100 * s:.0f} %" for name, s in zip(trust.classes, shares, strict=True))
        print(f"\ntrust: {', '.join(said)}")


def row(*cells: str) -> None:
    """One row of a table."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
