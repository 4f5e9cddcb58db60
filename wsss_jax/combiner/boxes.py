"""Boxes as weak labels: no class outside its boxes, and a share of every box is foreground.

Arrays only. The idea that a box is tight, so that objects fill a least share of it, is that of
Hsu et al. 2019 (Bounding box tightness prior); here it bounds maps and is no loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from wsss_jax.datasets.boxes import Boxes
from wsss_jax.types import Size

ABOVE = 1.01
"""How far above the threshold a cell is lifted, in thresholds."""


class Boxed(NamedTuple):
    """The boxes of an image over m cells: the row of each one's class, and its cells."""

    rows: Int[np.ndarray, " n"]
    inside: Bool[np.ndarray, "n m"]

    def allowed(self, classes: int) -> Bool[np.ndarray, "m k"]:
        """Where each class may be: in its boxes; everywhere for a class without a box."""
        found = np.ones((self.inside.shape[1], classes), bool)
        for row in np.unique(self.rows):
            found[:, row] = self.inside[self.rows == row].any(axis=0)
        return found


def on_grid(boxes: Boxes, names: Sequence[str], grid: Size) -> Boxed | None:
    """The cells that boxes touch, at least one each; None where no box is of one of ``names``."""
    rows, inside = [], []
    for name, (top, left, bottom, right) in zip(boxes.names, boxes.corners.tolist(), strict=True):
        if name in names:
            rows.append(names.index(name))
            down = _touched(top, bottom, grid[0])
            inside.append((down[:, None] & _touched(left, right, grid[1])[None]).ravel())
    return Boxed(np.array(rows), np.stack(inside)) if rows else None


def lifted(
    maps: Float[np.ndarray, "m k"],
    boxed: Boxed,
    *,
    share: float,
    thresholds: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "m k"]:
    """The maps with at least ``share`` of the cells of each box above the threshold of its class.

    Its highest cells are lifted just above; cells that are there already stay.
    """
    maps = maps.copy()
    for row, inside in zip(boxed.rows, boxed.inside, strict=True):
        cells = np.flatnonzero(inside)
        highest = cells[np.argsort(-maps[cells, row], kind="stable")]
        highest = highest[: int(np.ceil(share * len(cells)))]
        maps[highest, row] = np.maximum(maps[highest, row], ABOVE * thresholds[row])
    return maps


def _touched(low: float, high: float, cells: int) -> Bool[np.ndarray, " cells"]:
    first = min(int(np.floor(low * cells + 1e-6)), cells - 1)
    last = max(int(np.ceil(high * cells - 1e-6)), first + 1)
    at = np.arange(cells)
    return (first <= at) & (at < last)
