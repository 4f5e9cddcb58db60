"""``wsss evaluate``: stores against true masks."""

from pathlib import Path

import tyro

from wsss_jax.cli.bare import Bare
from wsss_jax.data.classes import SALIENCY
from wsss_jax.data.stores import open_stores
from wsss_jax.datasets import views
from wsss_jax.datasets.selection import Data
from wsss_jax.datasets.source import PictureFolder
from wsss_jax.recipes import summary
from wsss_jax.run.executors import Workers
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.stages.masks import judged


def command(
    stores: tyro.conf.Positional[tuple[Path, ...]],
    data: Bare[Data],
    out: Path | None = None,
    scoring: Bare[Scoring] = Scoring(),  # noqa: B008
    workers: Workers = Workers(),  # noqa: B008
    tuned_reference: bool = False,
) -> None:
    """Judge score maps or masks against true masks; the first store is the reference.

    Args:
        stores: stores of score maps or masks.
        data: the images with true masks.
        out: folder for results.json and results.md.
        scoring: what counts, and where background begins.
        workers: processes and shards.
        tuned_reference: compare with the first store at the threshold that is best on these true
            masks, which favours it; the others stay at the fixed threshold.
    """
    source, opened = data.open(), open_stores(stores)
    assumed = source.assumed if isinstance(source, PictureFolder) else None
    if all(store.classes == SALIENCY.names for store in opened):
        source = views.agnostic(source)
    scoring = scoring.on(source)
    results = judged(opened, source, scoring, split=data.split, workers=workers)
    rows = summary.against_first(results, tuned=tuned_reference)
    summary.show(rows)
    if assumed is not None:
        print(f"{source.name}: {assumed}")
    if out is not None:
        summary.write(out, rows, source.classes)
        print(out / "results.md")
