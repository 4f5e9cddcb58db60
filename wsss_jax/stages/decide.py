"""The last step before a segmentation network: score maps to pseudo-masks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from wsss_jax.data import stores
from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.datasets import Source
from wsss_jax.data.stores import Store
from wsss_jax.ops import masks
from wsss_jax.stages.evaluate import Result, Scoring, evaluate, fixed_threshold, foreground
from wsss_jax.stages.executors import Workers
from wsss_jax.stages.work import each, settle
from wsss_jax.types import ScoreMaps

BINS = 100
"""Of the histogram that a threshold without truth is read off."""


def decide(
    store: Store,
    folder: Path,
    scoring: Scoring,
    *,
    ids: tuple[str, ...],
    workers: Workers | None = None,
) -> Store:
    """Write palette PNGs at the photographs' size, at the threshold that no truth has seen."""
    threshold = fixed_threshold(store, scoring)
    target = stores.create(
        folder,
        holds="masks",
        classes=store.classes,
        made_by={"stage": "decide", "threshold": threshold, "background": scoring.background},
        parents=(store.folder.name,),
    )
    function = partial(_decide_one, store=store, to=target, scoring=scoring)
    missing = target.missing(ids)
    tally = each(f"masks {folder.name}", function, missing, workers=workers or Workers())
    settle(target, tally)
    return target


def label_free_threshold(store: Store, ids: Sequence[str]) -> float | None:
    """Where the store's activations fall apart best: Otsu's threshold over the cells of ``ids``.

    Reads no mask and no label. Of each cell counts its best class, as in ``foreground``: images
    without classes and images without a record do not. None for masks, for probabilities, whose
    threshold is a half by meaning, and where all scores are alike or there are none.
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
    for id in ids:
        if not store.path(id).is_file():
            continue
        maps = store.get_scores(id)
        if len(maps.classes):
            score = foreground(replace(maps, size=maps.scores.shape[:2]))[1]
            counts += np.histogram(score, BINS, (0.0, 1.0))[0]
    return counts


def judged(
    stores: Sequence[Store], source: Source, scoring: Scoring, *, split: str, workers: Workers
) -> list[Result]:
    """Each store against true masks, at Otsu's threshold of its scores on these images too."""
    found = []
    for store in stores:
        otsu = label_free_threshold(store, source.ids) if scoring.background else None
        found.append(evaluate(store, source, scoring, split=split, otsu=otsu, workers=workers))
    return found


def mask_of(maps: ScoreMaps, threshold: float, scoring: Scoring) -> UInt8[np.ndarray, "H W"]:
    """The mask of one image: the best class above the threshold; without background, everywhere."""
    if not len(maps.classes):
        return np.zeros(maps.size, np.uint8)
    winner, score = foreground(maps)
    if scoring.background:
        return masks.decide(winner, score, threshold)
    return to_mask_index(winner).astype(np.uint8)


def _decide_one(id: str, *, store: Store, to: Store, scoring: Scoring) -> None:
    threshold = fixed_threshold(store, scoring)
    to.put_mask(id, mask_of(store.get_scores(id), threshold, scoring))
