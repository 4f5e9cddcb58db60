"""Which classes photographs show, as trained classifiers tell: one probability for each class."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.batches.batches import Group
from wsss_jax.data.classes import difference
from wsss_jax.data.photographs import working_size
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.explain.faithfulness import Logits
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import record_skipped
from wsss_jax.run.photographs import over_photographs
from wsss_jax.stages.parts.subject import subject_of
from wsss_jax.train.state import Weights


class Asking(NamedTuple):
    """How classifiers are asked: scale of the photographs, images per call, this job's share."""

    scale: float
    batch_size: int
    share: Workers


def chances(
    runs: Sequence[Path], source: Source, asked: Asking, folder: Path, *, ids: tuple[str, ...]
) -> dict[str, Float[np.ndarray, " c"]]:
    """The probability of each class in each photograph, the mean over the classifiers of ``runs``.

    Photographs that cannot be read are left out, and listed in ``folder``. BadFileError where none
    can, UserError for classifiers of other classes than the source's.
    """
    subjects = [subject_of(run) for run in runs]
    for run, subject in zip(runs, subjects, strict=True):
        if subject.classes.names != source.classes.names:
            raise UserError(
                f"{run} was trained with "
                f"{difference(subject.classes.names, source.classes.names)}; give classifiers of "
                "these classes, in this order"
            )
    ready = [
        (jax.jit(partial(_logits, ask=subject.logits)), subject.weights) for subject in subjects
    ]
    found: dict[str, np.ndarray] = {}

    def write(group: Group) -> int:
        batch = group.scaled[0]
        views = [np.asarray(ask(held, batch.images, batch.inside)) for ask, held in ready]
        mean = np.mean([1 / (1 + np.exp(-view)) for view in views], axis=0)
        found.update(zip(group.ids, mean, strict=False))
        return len(group.ids)

    tally = over_photographs(
        "find classes", source, ids, write, scales=(asked.scale,), batch_size=asked.batch_size
    )
    tally = replace(tally, shard=asked.share.share_number())
    tally.report("find classes")
    record_skipped(folder, tally)
    if ids and not found:
        id, reason = min(tally.skipped.items())
        raise BadFileError(f"all {len(tally.skipped)} photographs failed, first {id}: {reason}")
    return {id: found[id] for id in ids if id in found}


def scale_to(source: Source, side: float) -> float:
    """Of photographs whose median long side is to be ``side`` pixels; at most twice their size."""
    sides = []
    for id in source.ids:
        try:
            sides.append(max(working_size(source.size(id))))
        except BadFileError:
            continue  # named when its turn comes
    if not sides:
        raise BadFileError(f"{source.name}: none of {len(source.ids)} photographs can be read")
    return round(min(side / float(np.median(sides)), 2.0), 3)


def _logits(weights: Weights, images: Array, inside: Array, *, ask: Callable[..., Logits]) -> Array:
    return ask(weights, inside)(images)
