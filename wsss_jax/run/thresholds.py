"""Where background begins, read off score maps alone: no mask and no label is read."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError
from wsss_jax.ops import masks
from wsss_jax.ops.resize import resize_rows
from wsss_jax.types import ScoreMaps

STRIP = 2**23
"""Scores that are enlarged at once; those of a VOC photograph are far fewer."""

BINS = 100
"""Of the histogram that a threshold is read off."""


def foreground(
    maps: ScoreMaps,
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
    """At full resolution the best class of each pixel and how far it stands above background.

    Activations are compared with a threshold as they are; probabilities as their share beside
    background's, so that a half is the more probable of the two.
    """
    parts = [(winner, score) for _, winner, score in strips(maps)]
    winner, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return winner, score


def strips(
    maps: ScoreMaps,
) -> Iterator[tuple[slice, Int[np.ndarray, "h W"], Float[np.ndarray, "h W"]]]:
    """As ``foreground``, some rows after the other, which bounds memory for large photographs."""
    height, width = maps.size
    count = max(1, STRIP // (width * max(len(maps.classes), 1)))
    for first in range(0, height, count):
        part = slice(first, min(first + count, height))
        scores = resize_rows(maps.scores, maps.size, part)
        winner, score = masks.winners(scores, maps.classes)
        if maps.kind == "probability":
            score = masks.against_rest(scores, score)
        yield part, winner, score


def label_free_threshold(store: Store, ids: Sequence[str]) -> float | None:
    """Where the store's activations fall apart best: Otsu's threshold over the cells of ``ids``.

    Reads no mask and no label. Of each cell counts its best class, as in ``foreground``: images
    without classes and images without a record do not, nor do damaged records, which are named.
    None for masks, for probabilities, whose threshold is a half by meaning, and where all scores
    are equal or there are none.
    """
    counts = _histogram(store, ids)
    return masks.otsu(counts) if (counts > 0).sum() > 1 else None


def label_free_bounds(store: Store, ids: Sequence[str]) -> tuple[float, float] | None:
    """Below which score a cell is surely background, and above which surely foreground.

    The two thresholds that part the activations into three best, read as in
    ``label_free_threshold``; None where that gives None, and where there are no three values.
    """
    counts = _histogram(store, ids)
    return masks.otsu_two(counts) if (counts > 0).sum() > 2 else None


def _histogram(store: Store, ids: Sequence[str]) -> Float[np.ndarray, " bins"]:
    """Of the best class's activation in every cell; empty for masks and probabilities."""
    counts = np.zeros(BINS)
    if store.holds != "scores" or store.kind != "activation":
        return counts
    damaged: list[str] = []
    for id in ids:
        if not store.has(id):
            continue
        try:
            maps = store.get_scores(id)
        except BadFileError as problem:
            damaged.append(str(problem))
            continue
        if len(maps.classes):
            score = foreground(replace(maps, size=maps.scores.shape[:2]))[1]
            counts += np.histogram(score, BINS, (0.0, 1.0))[0]
    if damaged:
        print(f"{store.folder}: its threshold leaves out {len(damaged)} image(s): {damaged[0]}")
    return counts
