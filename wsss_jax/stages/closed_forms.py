"""Closed forms: that which teaches the combiner's students as its rival, and combining by probes.

``learn`` and ``fuse`` combine without a network, in minutes; they are what those of
``stages.learn_combiner`` are to the network. Each system by itself teaches a linear probe over the
whole data set, and what it says is averaged with it: so its errors are mended before it meets the
others. The geometric mean of all is what is fused, with one more probe that learned from that.
"""

from collections.abc import Mapping, Sequence
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
from wsss_jax.data.probe import averaged
from wsss_jax.data.stores import Store
from wsss_jax.models.combiner import CombinerShape
from wsss_jax.ops import evidence as ops
from wsss_jax.stages import combiner_run, probe, runs, teacher
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
    """Learn the probes and read the thresholds off ``ids``, into a run folder, which is returned.

    Reads image labels, photographs and stores, and no mask. Raises ValueError without frozen
    features, for two systems of one name, and where the folder holds a run with other settings.
    """
    if inputs.features is None:
        raise ValueError(
            "without a network only linear probes are learned, and they need frozen features; "
            "make them by `wsss features` and give them with --features"
        )
    inputs = settings.sees(inputs)
    _check_names(inputs)
    record = combiner_run.claim(run, inputs, settings, len(ids))
    if runs.is_finished(run):
        return run
    protocol, usable = settings.on_grid().protocol, list(inputs.slots(ids))
    for one in inputs.systems:
        seen = _seen_by(one, usable)
        if not seen:
            raise ValueError(
                f"{one.folder} has no record of any of the {len(usable)} images that teach; learn "
                "without it (it can be fused all the same)"
            )
        print(f"{one.folder.name}:")
        alone = replace(inputs, systems=(one,))
        teacher.prepared(protocol, alone, seen, run / one.folder.name, otsu=_otsu(settings))
    parts = _mended(run, settings.on_grid(), inputs, run / "average", ids, record)
    probe.conclude(parts, usable, protocol, _pooled, run, keep_share=True)
    write_atomic(run / "finished", b"probes\n")
    return run


def fuse(run: Path, inputs: Inputs, folder: Path, *, ids: Sequence[str]) -> Store:
    """Probabilities of ``ids`` into a store, and those of each system by itself into others.

    ``<folder>_<system>`` holds what a system says together with its own probe. Systems may be
    others than those of the training: the probe of all goes with them. An image without labels is
    empty. Raises ValueError for other frozen features than those of the training.
    """
    _check_names(inputs)
    settings, inputs = combiner_run.alike(run, inputs, network=False)
    combiner_run.tell_divisors(inputs)
    record = combiner_run.record_of(run)
    parts = _mended(run, settings, inputs, folder, ids, record)
    parts = probe.known(parts, replace(settings.protocol, probes=0), run, run)
    names = tuple(store.folder.name for store in inputs.systems)
    target = _store(folder, inputs, settings, names, record)

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            present = cut(rows[0][row], example)[..., : len(example.classes) + 1]
            put(target, id, averaged(present, example.last_probe)[..., 1:], example)

    put_unlabelled(target, inputs, ids)
    title, missing = f"combine {folder.name}", target.missing(ids)
    over_evidence(title, parts, missing, lambda evidence: (_pooled(evidence),), keep, target)
    return target


def _mended(
    run: Path,
    settings: Combining,
    inputs: Inputs,
    folder: Path,
    ids: Sequence[str],
    record: Mapping[str, Any],
) -> Inputs:
    """Each system's maps averaged with its own probe, as stores that take the systems' places.

    Images that a system has not seen it has not seen afterwards.
    """
    made = []
    for one in inputs.systems:
        seen, protocol = _own(run, settings, replace(inputs, systems=(one,)))
        name = one.folder.name
        place = folder.with_name(f"{folder.name}_{name}")
        target = _store(place, seen, settings, (name,), record)
        says = partial(
            _probabilities,
            protocol=replace(protocol, threshold=0.0),
            threshold=jnp.float32(protocol.threshold if protocol.shape.background else 0),
        )
        _put_all(target, seen, says, _seen_by(one, ids), title=f"mend {name}")
        made.append(target)
    return replace(inputs, systems=tuple(made), units="given")


def _own(run: Path, settings: Combining, alone: Inputs) -> tuple[Inputs, Protocol]:
    """One system's inputs with its probe, and the protocol with its threshold.

    A system that the run has not seen has the probe of all, and the mean of their thresholds.
    """
    protocol, home = settings.protocol, run / alone.systems[0].folder.name
    if home.is_dir():
        return probe.known(alone, protocol, home), teacher.known(
            protocol, home, otsu=_otsu(settings)
        )
    names = combiner_run.record_of(run)["systems"]
    all_known = (teacher.known(protocol, run / name, otsu=_otsu(settings)) for name in names)
    threshold = float(np.mean([each.threshold for each in all_known]))
    last = probe.known(alone, replace(protocol, probes=0), run, run).last_probe
    return replace(alone, probe=last), replace(protocol, threshold=threshold)


def _store(
    folder: Path,
    inputs: Inputs,
    settings: Combining,
    parents: tuple[str, ...],
    record: Mapping[str, Any],
) -> Store:
    read = stores.masks_read(record, combiner_run.masks_shown(inputs))
    return stores.create(
        folder,
        holds="scores",
        classes=inputs.source.classes.names,
        kind="probability",
        made_by={"stage": "probes", **read, **as_json(settings)},
        parents=parents,
    )


def _seen_by(one: Store, ids: Sequence[str]) -> list[str]:
    """The ids that the store has a record of."""
    return [id for id in ids if one.path(id).is_file()]


def _check_names(inputs: Inputs) -> None:
    names = [store.folder.name for store in inputs.systems]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(
            f"two systems are called {', '.join(twins)}; their probes are told apart by name, so "
            "rename the folder of one"
        )


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


@jax.jit
def _pooled(evidence: Evidence) -> Float[Array, "b h w n"]:
    return ops.pooled(evidence.scores, evidence.available, evidence.present)
