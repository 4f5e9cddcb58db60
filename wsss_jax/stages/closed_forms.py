"""The closed form that teaches the combiner's students: by itself, and as a rival of the combiner.

With its linear probe it needs no network and little time: ``learn`` and ``fuse`` are to it what
those of ``stages.learn_combiner`` are to the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.config import as_json, since
from wsss_jax.data import stores
from wsss_jax.data.evidence import Inputs
from wsss_jax.data.evidence_batches import EvidenceGroup
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.models.combiner import CombinerShape
from wsss_jax.ops import evidence as ops
from wsss_jax.stages import combiner_run, runs, teacher
from wsss_jax.stages.combiner_run import Combining
from wsss_jax.stages.each_group import cut, over_evidence, put, put_unlabelled
from wsss_jax.systems import fusion
from wsss_jax.systems.label_free import Protocol
from wsss_jax.types import Evidence


@dataclass(frozen=True)
class Closed:
    """Mean, × saliency, random walk, and the mean of that and a linear probe, at a threshold.

    steps: of the walk, 0 for none. saliency: whether the mean is multiplied by it. threshold: on
    maps whose maximum is 1; with a probe Otsu's instead, of the images that teach it. cells: long
    side of the grid. cut: whether edges cut the walk. probes: how often a probe is learned.
    """

    systems: tuple[str, ...]
    steps: int
    saliency: bool
    threshold: float
    cells: int
    cut: bool = since(True, False)
    probes: int = since(0)


def combine(
    way: Closed, inputs: Inputs, folder: Path, *, ids: Sequence[str], teaching: Sequence[str]
) -> tuple[Store, float]:
    """The closed form of ``ids`` as a store of maps, and its threshold.

    teaching: the ids whose maps teach the probe, which is kept beside the store.
    """
    protocol = Protocol(
        CombinerShape(cut_walks=way.cut),
        walk_steps=way.steps,
        saliency=way.saliency,
        threshold=way.threshold,
        probes=way.probes,
    )
    if way.probes:
        slots = list(inputs.slots(teaching))
        protocol, inputs = teacher.prepared(protocol, inputs, slots, folder.parent, otsu=True)
    target = stores.create(
        folder,
        holds="scores",
        classes=inputs.source.classes.names,
        made_by={"stage": "closed form", **as_json(way)},
        parents=way.systems,
    )
    says = partial(_consensus, protocol=replace(protocol, threshold=0.0))
    _put_all(target, inputs, says, ids, title=f"fuse {folder.parent.name}")
    return target, protocol.threshold


def learn(inputs: Inputs, run: Path, settings: Combining, *, ids: Sequence[str]) -> Path:
    """Learn the probe and read the threshold of the closed form off ``ids``; returns ``run``.

    Reads image labels, photographs and stores, and no mask. Raises ValueError without frozen
    features, and where the folder holds a run with other settings, naming them.
    """
    if inputs.features is None:
        raise ValueError(
            "without a network only the linear probe is learned, and it needs frozen features; "
            "make them by `wsss features` and give them with --features"
        )
    inputs = settings.sees(inputs)
    combiner_run.claim(run, inputs, settings, len(ids))
    if runs.is_finished(run):
        return run
    protocol, usable = settings.on_grid().protocol, list(inputs.slots(ids))
    teacher.prepared(protocol, inputs, usable, run, otsu=_otsu(settings))
    write_atomic(run / "finished", b"probe\n")
    return run


def fuse(run: Path, inputs: Inputs, folder: Path, *, ids: Sequence[str]) -> Store:
    """The closed form of ``ids`` with the probe of ``run``, as probabilities, into a store.

    Background is as probable as a class at the run's threshold. Systems may be others than those of
    the training; an image without labels is empty.
    """
    settings, _ = combiner_run.finished(run, network=False)
    inputs = combiner_run.seen_by(run, inputs, network=False)
    protocol = teacher.known(settings.protocol, run, otsu=_otsu(settings))
    read = stores.masks_read(combiner_run.record_of(run), combiner_run.masks_shown(inputs))
    target = stores.create(
        folder,
        holds="scores",
        classes=inputs.source.classes.names,
        kind="probability",
        made_by={"stage": "closed form", "run": run.name, **read, **as_json(settings)},
        parents=tuple(store.folder.name for store in inputs.systems),
    )
    says = partial(
        _probabilities,
        protocol=replace(protocol, threshold=0.0),
        threshold=jnp.float32(protocol.threshold if protocol.shape.background else 0),
    )
    combiner_run.tell_divisors(inputs)
    _put_all(target, inputs, says, ids, title=f"combine {folder.name}")
    return target


def _put_all(target: Store, inputs: Inputs, says: Any, ids: Sequence[str], *, title: str) -> None:
    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            put(target, id, cut(rows[0][row], example)[..., : len(example.classes)], example)

    put_unlabelled(target, inputs, ids)
    over_evidence(title, inputs, target.missing(ids), says, keep, target)


def _otsu(settings: Combining) -> bool:
    return settings.teacher_threshold == "otsu"


@partial(jax.jit, static_argnames="protocol")
def _consensus(evidence: Evidence, *, protocol: Protocol) -> tuple[Float[Array, "b h w k"]]:
    return (fusion.consensus(protocol, evidence, evidence.available),)


@partial(jax.jit, static_argnames="protocol")
def _probabilities(
    evidence: Evidence, *, protocol: Protocol, threshold: Float[Array, ""]
) -> tuple[Float[Array, "b h w k"]]:
    maps = fusion.consensus(protocol, evidence, evidence.available)
    return (ops.beside_background(maps, evidence.present, threshold),)
