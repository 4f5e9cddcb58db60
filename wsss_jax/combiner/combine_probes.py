"""Combining by linear probes alone: minutes, and no network.

Each system by itself teaches a linear probe over the whole data set, and what it says is averaged
with it: so it is *mended*, its errors are taken back before it meets the others. The geometric mean
of all is what is fused, with one more probe that learned from that. ``learn`` and ``fuse`` are what
those of ``combiner.learn_combiner`` are to the network, which ``taught`` can teach.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.combiner import combiner_run, fusion, probe, teacher
from wsss_jax.combiner import consensus as ops
from wsss_jax.combiner.batches import EvidenceGroup
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.each_group import cut, over_evidence, put, put_all, put_unlabelled
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.probe_maps import averaged
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.errors import UserError
from wsss_jax.run import folders
from wsss_jax.types import Evidence

Place = Callable[[str], Path]
"""From a system's name to the folder of the store of what it says, mended."""


def learn(inputs: Inputs, run: Path, settings: Combining, *, ids: Sequence[str]) -> Path:
    """Learn the probes and read the thresholds off ``ids``, into a run folder, which is returned.

    Reads image labels, photographs and stores, and no mask. Raises ValueError without frozen
    features, for two systems of one name, for one that has seen none of the images, and where the
    folder holds a run with other settings.
    """
    if inputs.features is None:
        raise UserError(
            "without a network only linear probes are learned, and they need frozen features; "
            "make them by `wsss features` and give them with --features"
        )
    inputs = settings.sees(inputs)
    usable = list(inputs.slots(ids))
    of_each = records_that_teach(inputs, usable)
    record = combiner_run.claim(run, inputs, settings, len(ids))
    if folders.is_finished(run):
        return run
    settings = settings.on_grid()
    for one, its in zip(inputs.systems, of_each, strict=True):
        print(f"{one.folder.name}:")
        alone, otsu = replace(inputs, systems=(one,)), _otsu(settings)
        teacher.prepared(settings.protocol, alone, its, _home(run, one.folder.name), otsu=otsu)
    parts = _mended(run, settings, inputs, lambda name: run / "mended" / name, ids, record)
    probe.conclude(parts, usable, settings.protocol, _pooled, run, keep_share=True)
    write_atomic(run / "finished", b"probes\n")
    return run


def records_that_teach(inputs: Inputs, ids: Sequence[str]) -> list[list[str]]:
    """Of each system those of ``ids``, images with labels, that it has a record of.

    Raises ValueError for two systems of one name, and for one that has none.
    """
    _check_names(inputs)
    found = [_recorded(one, ids) for one in inputs.systems]
    for one, its in zip(inputs.systems, found, strict=True):
        if not its:
            raise UserError(
                f"{one.folder} has no record of any of the {len(ids)} images that teach; learn "
                "without it (it can be fused all the same)"
            )
    return found


def fuse(run: Path, inputs: Inputs, folder: Path, *, ids: Sequence[str]) -> Store:
    """Probabilities of ``ids`` into a store, and those of each system by itself into others.

    ``<folder>_<system>`` (``beside``) holds what a system says together with its own probe. Systems
    may be others than those of the training: the probe of all goes with them. An image without
    labels is empty. Raises ValueError for other frozen features than those of the training.
    """
    return _fused(run, inputs, folder, partial(beside, folder), ids)


def beside(folder: Path, name: str) -> Path:
    """The folder, beside a fused store's, of what a part of it says by itself."""
    return folder.with_name(f"{folder.name}_{name}")


def taught(inputs: Inputs, run: Path, settings: Combining, *, ids: Sequence[str]) -> Store:
    """What the probes say of the images that they learned from, as a store in their run's folder.

    It can teach a network. Raises ValueError as ``learn``.
    """
    learn(inputs, run, settings, ids=ids)
    return _fused(run, inputs, run / "maps", lambda name: run / "mended" / name, ids)


def _fused(run: Path, inputs: Inputs, folder: Path, place: Place, ids: Sequence[str]) -> Store:
    _check_names(inputs)
    settings, inputs = combiner_run.alike(run, inputs, network=False)
    combiner_run.tell_divisors(inputs)
    record = combiner_run.record_of(run)
    parts = _mended(run, settings, inputs, place, ids, record)
    parts = probe.known(parts, replace(settings.protocol, probes=0), run, run)
    names = tuple(store.folder.name for store in inputs.systems)
    target = _store(folder, inputs, settings, names, run, record)

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
    place: Place,
    ids: Sequence[str],
    record: Mapping[str, Any],
) -> Inputs:
    """Each system's maps averaged with its own probe, as stores that take the systems' places.

    Images that a system has not seen it has not seen afterwards.
    """
    made = []
    for one in inputs.systems:
        name = one.folder.name
        seen, protocol = _own(run, settings, replace(inputs, systems=(one,)), record)
        target = _store(place(name), seen, settings, (name,), run, record)
        says = partial(
            _probabilities,
            protocol=replace(protocol, threshold=0.0),
            threshold=jnp.float32(protocol.threshold if protocol.shape.background else 0),
        )
        put_all(target, seen, says, _recorded(one, ids), title=f"mend {name}")
        made.append(target)
    return replace(inputs, systems=tuple(made), units="given")


def _own(
    run: Path, settings: Combining, alone: Inputs, record: Mapping[str, Any]
) -> tuple[Inputs, Protocol]:
    """One system's inputs with its probe, and the protocol with its threshold.

    A system that the run has not seen has the probe of all, and the mean of their thresholds.
    """
    protocol, name = settings.protocol, alone.systems[0].folder.name
    known = partial(teacher.known, protocol, otsu=_otsu(settings))
    if name in record["systems"]:
        return probe.known(alone, protocol, _home(run, name)), known(_home(run, name))
    threshold = float(np.mean([known(_home(run, each)).threshold for each in record["systems"]]))
    last = probe.known(alone, replace(protocol, probes=0), run, run).last_probe
    return replace(alone, probe=last), replace(protocol, threshold=threshold)


def _home(run: Path, name: str) -> Path:
    """Where a system's own probes are."""
    return run / "systems" / name


def _store(
    folder: Path,
    inputs: Inputs,
    settings: Combining,
    parents: tuple[str, ...],
    run: Path,
    record: Mapping[str, Any],
) -> Store:
    read = stores.masks_read(record, combiner_run.masks_shown(inputs))
    return stores.create(
        folder,
        holds="scores",
        classes=inputs.source.classes.names,
        kind="probability",
        made_by={"stage": "probes", "run": run.name, **read, **as_json(settings)},
        parents=parents,
    )


def _recorded(one: Store, ids: Sequence[str]) -> list[str]:
    """The ids that the store has a record of."""
    return [id for id in ids if one.path(id).is_file()]


def _check_names(inputs: Inputs) -> None:
    names = [store.folder.name for store in inputs.systems]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise UserError(
            f"two systems are called {', '.join(twins)}; their probes are told apart by name, so "
            "rename the folder of one"
        )


def _otsu(settings: Combining) -> bool:
    return settings.teacher_threshold == "otsu"


@partial(jax.jit, static_argnames="protocol")
def _probabilities(
    evidence: Evidence, *, protocol: Protocol, threshold: Float[Array, ""]
) -> tuple[Float[Array, "b h w k"]]:
    maps = fusion.consensus(protocol, evidence, evidence.available)
    return (ops.beside_background(maps, evidence.present, threshold),)


@jax.jit
def _pooled(evidence: Evidence) -> Float[Array, "b h w n"]:
    return ops.pooled(evidence.scores, evidence.available, evidence.present)
