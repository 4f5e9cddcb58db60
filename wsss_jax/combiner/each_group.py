"""A jitted function over the evidence of many images, group by group, in bounded memory."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax.combiner.batches import EvidenceGroup, evidence_groups
from wsss_jax.combiner.evidence import Example, Inputs, grid_of
from wsss_jax.data.stores import Store
from wsss_jax.run.images import Tally, settle
from wsss_jax.run.progress import meter
from wsss_jax.signals import stop_signals
from wsss_jax.types import ScoreMaps


def over_evidence(
    title: str, inputs: Inputs, ids: Sequence[str], says: Any, keep: Any, target: Store | None
) -> None:
    """Run a jitted function over all evidence; memory does not grow with the number of images.

    says: from ``Evidence`` to a tuple of arrays, row by row. keep: takes a group and those. target:
    where images that cannot be used are listed; None prints them alone.
    """
    if not ids:
        return
    skipped: dict[str, str] = {}
    slots = inputs.slots(ids)
    done = 0
    with stop_signals() as stop, meter(title, len(slots)) as bar:
        for group in evidence_groups(
            inputs.read, slots, cells=inputs.cells, skip=skipped.__setitem__
        ):
            evidence = jax.tree.map(jnp.asarray, group.evidence)  # once, for all who are asked
            keep(group, tuple(np.asarray(part) for part in says(evidence)))
            done += len(group.ids)
            bar.advance(len(group.ids))
            stop.check()
    if target is None:
        Tally(done, skipped).report(title)
    else:
        settle(target, Tally(done, skipped))


def cut(rows: np.ndarray, example: Example) -> np.ndarray:
    """Without the padding; the grid is axes 0 and 1, or 1 and 2 where systems come first."""
    height, width = example.image.shape[:2]
    if rows.ndim == 4:
        return rows[:, :height, :width]
    return rows[:height, :width]


def put(
    store: Store, id: str, scores: np.ndarray, example: Example, classes: np.ndarray | None = None
) -> None:
    """Keep scores (h,w,n) in [0, 1] of the image's classes, or of those given."""
    numbers = example.classes if classes is None else classes.astype(np.int32)
    kept = np.clip(scores, 0, 1).astype(np.float32)
    store.put_scores(id, ScoreMaps(kept, numbers, example.size, kept.max(axis=(0, 1)), store.kind))


def put_unlabelled(store: Store, inputs: Inputs, ids: Sequence[str]) -> None:
    """Empty records of images without labels: nothing is fused, all is background, as elsewhere."""
    for id in store.missing(ids):
        if not inputs.source.labels(id).any():
            size = inputs.source.size(id)
            empty = np.zeros((*grid_of(size, inputs.cells), 0), np.float32)
            none = ScoreMaps(empty, np.zeros(0, np.int32), size, empty[0, 0], store.kind)
            store.put_scores(id, none)


def put_all(store: Store, inputs: Inputs, says: Any, ids: Sequence[str], *, title: str) -> None:
    """Keep what a function makes of evidence: of each image the maps of its classes.

    says: from evidence to maps (b,h,w,k) in a tuple. Images without labels get empty records.
    """

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            put(store, id, cut(rows[0][row], example)[..., : len(example.classes)], example)

    put_unlabelled(store, inputs, ids)
    over_evidence(title, inputs, store.missing(ids), says, keep, store)
