"""``wsss report``: one page about stores of score maps."""

from pathlib import Path

import tyro

from wsss_jax.cli.bare import Bare
from wsss_jax.data.stores import open_stores
from wsss_jax.datasets.selection import Data
from wsss_jax.recipes.report import page_of_stores
from wsss_jax.stages.evaluate import Scoring


def command(
    stores: tyro.conf.Positional[tuple[Path, ...]],
    data: Bare[Data],
    out: Path,
    scoring: Bare[Scoring] = Scoring(),  # noqa: B008
    gallery: int = 40,
) -> None:
    """Write one self-contained HTML page about stores of score maps.

    Args:
        stores: stores of score maps, the best last.
        data: the photographs, and true masks where there are any.
        out: the page to write, for example report.html.
        scoring: what counts, and where background begins.
        gallery: number of photographs to show.
    """
    source = data.open()
    print(page_of_stores(out, open_stores(stores), source, scoring.on(source), gallery))
