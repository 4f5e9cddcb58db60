"""Fusing the maps of any images with what a run has learned: stores in, stores out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from wsss_jax.combiner import record, refine
from wsss_jax.combiner.batches import Seen, over_images
from wsss_jax.combiner.evidence import Example, Inputs, grid_of, tell_absent
from wsss_jax.combiner.record import Learned
from wsss_jax.combiner.refine import Cells
from wsss_jax.combiner.settings import Combining
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError
from wsss_jax.run.images import settle
from wsss_jax.types import ScoreMaps


class Fused(NamedTuple):
    """The stores that ``fuse`` writes, named after its folder.

    maps: probabilities of the classes, what they leave of 1 is background. trust: each system's
    share of what all systems give the class that wins. uncertainty: entropy, in shares of its
    maximum, and disagreement: standard deviation of systems and probe at the class that wins.
    """

    maps: Store
    trust: Store
    uncertainty: Store


def fuse(run: Path, inputs: Inputs, folder: Path, *, ids: Sequence[str]) -> Fused:
    """Fuse the maps of ``ids`` into a store at ``folder``, with ``_trust`` and ``_uncertainty``.

    Systems may be others than those that the run has learned from, in any order and number. An
    image that shows no class is empty. Images that are there are left as they are. Raises UserError
    for other frozen features than those of the training.
    """
    settings, found, inputs = record.load(run, inputs)
    for name, divisor in zip(inputs.names(), inputs.divisors, strict=True):
        if divisor != 1:
            print(f"{name}: scores reach {divisor:.3g}, and are divided by that")
    stores_made = _stores(run, inputs, settings, found.digest(), folder)
    damaged = _put_empty(stores_made.maps, inputs, ids)

    def use(seen: Seen) -> None:
        _put(stores_made, seen, refine.cells_of(seen, inputs), found, settings)

    lacking = {id for store in stores_made for id in store.missing(ids)}
    missing = [id for id in ids if id in lacking]
    tally = over_images(
        f"combine {folder.name}", inputs, inputs.shown(missing), settings.steps(), use
    )
    tally = replace(tally, skipped={**tally.skipped, **damaged})
    tell_absent(folder, inputs.missing, missing)
    settle(stores_made.maps, tally)
    if tally.done:
        stores_made.trust.gather()
        stores_made.uncertainty.gather()
    return stores_made


def _put(made: Fused, seen: Seen, cells: Cells, found: Learned, settings: Combining) -> None:
    maps, by_probe = refine.refined(cells, found.probe, settings.smoothing)
    thresholds = found.thresholds[cells.labels]
    maps = refine.decided(cells, maps, share=settings.boxes, thresholds=thresholds)
    fused = refine.with_background(maps, thresholds)
    winner = fused.argmax(axis=1)[:, None]
    opinions = refine.opinions(cells, by_probe, thresholds)
    at_winner = [np.take_along_axis(one, winner, axis=1)[:, 0] for one in opinions]
    support = np.zeros((len(fused), len(cells.known)), np.float32)
    for column, one in zip(np.flatnonzero(cells.known), at_winner, strict=False):
        support[:, column] = one
    support /= np.maximum(support.sum(axis=1, keepdims=True), 1e-6)
    p = np.clip(fused, 1e-12, 1)
    entropy = -(p * np.log(p)).sum(axis=1) / np.log(p.shape[1])
    doubt = np.stack([entropy, np.std(at_winner, axis=0)], axis=1)
    _write(made.maps, seen.id, fused[:, 1:], cells.labels, seen.example)
    _write(made.trust, seen.id, support, np.arange(len(cells.known)), seen.example)
    _write(made.uncertainty, seen.id, doubt, np.arange(2), seen.example)


def _write(
    store: Store, id: str, rows: Float[np.ndarray, "m n"], labels: np.ndarray, example: Example
) -> None:
    scores = np.clip(rows, 0, 1).astype(np.float32).reshape(*example.image.shape[:2], -1)
    peak = scores.max(axis=(0, 1))
    numbers = labels.astype(np.int32)
    store.put_scores(id, ScoreMaps(scores, numbers, example.size, peak, store.kind))


def _put_empty(store: Store, inputs: Inputs, ids: Sequence[str]) -> dict[str, str]:
    """Empty records of images that show no class: all is background, as in every other stage.

    Returns those that cannot be read, and why.
    """
    damaged = {}
    for id in store.missing(ids):
        if not inputs.source.labels(id).any():
            try:
                size = inputs.source.size(id)
            except BadFileError as problem:
                damaged[id] = str(problem)
                continue
            empty = np.zeros((*grid_of(size, inputs.cells), 0), np.float32)
            none = np.zeros(0, np.float32)
            store.put_scores(id, ScoreMaps(empty, none.astype(np.int32), size, none, store.kind))
    return damaged


def _stores(run: Path, inputs: Inputs, settings: Combining, learned: str, folder: Path) -> Fused:
    read = inherited(record.record_of(run), record.inputs_of(inputs))
    made_by = {
        "stage": "combine",
        "run": run.name,
        "learned": learned,
        "settings": as_json(settings),
        **read,
    }
    kinds = {
        "": inputs.source.classes.names,
        "_trust": inputs.names(),
        "_uncertainty": ("entropy", "disagreement"),
    }
    given = (*inputs.systems, *inputs.features, *([inputs.saliency] if inputs.saliency else []))
    return Fused(
        *(
            stores.create(
                folder.with_name(folder.name + suffix),
                holds="scores",
                classes=classes,
                kind="probability",
                made_by=made_by,
                parents=given,
            )
            for suffix, classes in kinds.items()
        )
    )
