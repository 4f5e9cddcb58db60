"""Confusion matrices of very many images: of each, only the cells that are not 0 are kept.

An image shows few classes, so a matrix of 81 × 81 classes has some ten cells; all cells of 40,000
images would take 2 GB. Not here: what is read off the matrices (``metrics``, ``intervals``).
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer

GROUPS = 2000
"""Rows of ``grouped``, at most: so many bound the memory of a bootstrap over any number of images.
"""


class Cells(NamedTuple):
    """The cells of one image that are not 0 at every threshold: flat places, and values there."""

    places: Int[np.ndarray, " m"]
    values: Int[np.ndarray, "t m"]


class ImageCounts(NamedTuple):
    """Confusion matrices of n images at one threshold.

    size: rows of a matrix. starts: where the cells of each image begin; the last is their number.
    places: row × size + column of each cell. values: what stands there.
    """

    ids: tuple[str, ...]
    size: int
    starts: Int[np.ndarray, " n"]
    places: Int[np.ndarray, " m"]
    values: Int[np.ndarray, " m"]

    def total(self) -> Int[np.ndarray, "n n"]:
        """The sum over all images."""
        return _dense(self.places, self.values, self.size**2).reshape(self.size, self.size)

    def grouped(self, ids: Sequence[str] | None = None) -> Int[np.ndarray, "g n n"]:
        """A matrix for each image of ``ids``, in their order; of more than GROUPS, sums over random
        groups of them, which depend on the ids alone. None: all images.
        """
        chosen = np.arange(len(self.ids))
        if ids is not None:
            place = {id: row for row, id in enumerate(self.ids)}
            chosen = np.array([place[id] for id in ids], int)
        count, group = len(chosen), np.arange(len(chosen))
        if count > GROUPS:
            group = np.array([zlib.crc32(self.ids[row].encode()) % GROUPS for row in chosen])
            count = GROUPS
        of_image = np.full(len(self.ids), -1)
        of_image[chosen] = group
        of_cell = np.repeat(of_image, np.diff(self.starts))
        used = of_cell >= 0
        flat = of_cell[used] * self.size**2 + self.places[used]
        whole = _dense(flat, self.values[used], count * self.size**2)
        return whole.reshape(count, self.size, self.size)


def cells_of(counts: Integer[np.ndarray, "t n n"]) -> Cells:
    """What is kept of an image's counts at every threshold."""
    flat = counts.reshape(len(counts), -1)
    places = np.flatnonzero(flat.any(axis=0)).astype(np.int32)
    return Cells(places, flat[:, places].astype(np.int32))


def gathered(found: Mapping[str, Cells], size: int, threshold: int) -> ImageCounts:
    """The counts of all images at one threshold, sorted by id."""
    ids = tuple(sorted(found))
    lengths = [len(found[id].places) for id in ids]
    return ImageCounts(
        ids,
        size,
        np.cumsum([0, *lengths]),
        np.concatenate([found[id].places for id in ids]),
        np.concatenate([found[id].values[threshold] for id in ids]),
    )


def _dense(places: np.ndarray, values: np.ndarray, length: int) -> Int[np.ndarray, " length"]:
    """Values added up at their places; doubles are exact for pixels of any data set (2 ** 53)."""
    return np.bincount(places, values, minlength=length).astype(np.int64)
