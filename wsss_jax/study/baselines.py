"""What the combiner must be better than, and is not a closed form: OR→AND and logistic stacking.

Each reads the same ``Inputs`` as the combiner and writes a store of maps, so that saliency, random
walk, CRF and evaluation follow as for any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from wsss_jax import config
from wsss_jax.combiner.batches import EvidenceGroup
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.each_group import cut, over_evidence, put, put_unlabelled
from wsss_jax.combiner.evidence import Example, Inputs
from wsss_jax.combiner.learn_combiner import trained
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.run import folders
from wsss_jax.run.images import Tally, settle
from wsss_jax.study import orand_system
from wsss_jax.study.orand_system import OrAnd
from wsss_jax.types import Evidence


@dataclass(frozen=True)
class Agreeing:
    """The OR→AND baseline and how long it learns.

    Attributes:
        model: its settings.
        epochs: passes over the training images.
        cells: long side of the grid.
        seed: of the start and the order.
    """

    model: OrAnd = field(default_factory=OrAnd)
    epochs: int = 6
    cells: int = 64
    seed: int = 0


def learn_or_and(inputs: Inputs, run: Path, settings: Agreeing, *, ids: Sequence[str]) -> Path:
    """Learn OR→AND on ``ids`` into the folder ``run``, or go on there; returns it.

    Reads scores alone: neither photographs nor saliency nor masks. Raises ValueError when the
    folder holds a run with other settings.
    """
    inputs = replace(inputs, cells=settings.cells)
    folders.claim(
        run, {"settings": as_json(settings), "systems": _names(inputs), "images": len(ids)}
    )
    if not folders.is_finished(run):
        course = Combining(epochs=settings.epochs, cells=settings.cells, seed=settings.seed)
        make = partial(orand_system.make, settings.model)
        trained(run / "network", make, inputs, inputs.slots(ids), course)
        write_atomic(run / "finished", b"trained\n")
    return run


def or_and(run: Path, inputs: Inputs, folder: Path, *, ids: Sequence[str]) -> Store:
    """Maps of ``ids`` by a run of ``learn_or_and``; the maximum of each class is 1."""
    record = folders.record_of(run, "call baselines.learn_or_and")
    settings = config.from_json(Agreeing, record["settings"])
    inputs = replace(inputs, cells=settings.cells)
    state = folders.last_state(run / "network", orand_system.template(settings.model))
    target = _target(inputs, folder, {"stage": "or and", **as_json(settings)})

    def says(evidence: Evidence) -> tuple[Array]:
        return (_maps(state, evidence, settings=settings.model),)

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            put(target, id, cut(rows[0][row], example)[..., : len(example.classes)], example)

    put_unlabelled(target, inputs, ids)
    over_evidence(f"fuse {folder.name}", inputs, target.missing(ids), says, keep, target)
    return target


def stacking_weights(inputs: Inputs, labelled: Sequence[str]) -> Float[np.ndarray, " k"]:
    """Per-pixel logistic stacking (the k-shot regime), learned from the masks of ``labelled``.

    What it sees of a cell: all systems' scores of the class, the highest of the other classes, how
    far systems differ, saliency, and saliency times scores; nothing around the cell. One
    regression for all classes. Raises ValueError when none of them has a mask and classes.
    """
    taught = replace(inputs, labelled=frozenset(labelled))
    rows, wanted = [], []
    for id in labelled:
        example = taught.read(id)
        assert example.truth is not None
        known = example.truth <= len(example.classes)
        for slot in range(len(example.classes)):
            rows.append(_columns(example, slot)[known])
            wanted.append(example.truth[known] == slot + 1)
    if not sum(map(len, rows)):
        raise UserError("no labelled image has classes and a mask, so stacking learns nothing")
    return logistic(np.concatenate(rows), np.concatenate(wanted).astype(np.float64))


def stack(
    weights: Float[np.ndarray, " k"], inputs: Inputs, folder: Path, *, ids: Sequence[str]
) -> Store:
    """Maps of ``ids`` by stacking: probabilities of each class alone, whose threshold is a half.

    The systems must be those of the training, in the same order.
    """
    target = _target(inputs, folder, {"stage": "stacking", "weights": weights.round(6).tolist()})
    done, skipped = 0, {}
    for id in target.missing(ids):
        try:
            example = inputs.read(id)
        except BadFileError as problem:
            skipped[id] = str(problem)
            continue
        logits = np.zeros((*example.image.shape[:2], len(example.classes)))
        for slot in range(len(example.classes)):
            logits[..., slot] = _columns(example, slot) @ weights
        put(target, id, 1 / (1 + np.exp(-np.clip(logits, -30, 30))), example)
        done += 1
    settle(target, Tally(done, skipped))
    return target


def logistic(
    x: Float[np.ndarray, "n k"], y: Float[np.ndarray, " n"], *, ridge: float = 1e-5, steps: int = 25
) -> Float[np.ndarray, " k"]:
    """Weights of a logistic regression by Newton's method; ``ridge`` is per row."""
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge * len(x) * np.eye(x.shape[1])
        weights += np.linalg.solve(hessian, x.T @ (y - p) - ridge * len(x) * weights)
    return weights


@partial(jax.jit, static_argnames="settings")
def _maps(state: Any, evidence: Evidence, *, settings: OrAnd) -> Float[Array, "b h w k"]:
    return orand_system.combine(orand_system.structure(settings), state, evidence)


def _columns(example: Example, slot: int) -> Float[np.ndarray, "h w k"]:
    own = example.scores[..., slot].transpose(1, 2, 0)
    others = np.delete(example.scores, slot, axis=-1).max(axis=-1, initial=0).transpose(1, 2, 0)
    salient = np.full(own.shape[:2], 0.5) if example.saliency is None else example.saliency
    seen = [np.ones_like(own[..., :1]), own, others, own.std(axis=-1, keepdims=True)]
    parts = [*seen, salient[..., None], own * salient[..., None]]
    return np.concatenate(parts, axis=-1).astype(np.float64)


def _names(inputs: Inputs) -> list[str]:
    return [store.folder.name for store in inputs.systems]


def _target(inputs: Inputs, folder: Path, made_by: dict[str, Any]) -> Store:
    return stores.create(
        folder,
        holds="scores",
        classes=inputs.source.classes.names,
        made_by={**made_by, **stores.masks_read(*inputs.systems, inputs.saliency)},
        parents=tuple(_names(inputs)),
    )
