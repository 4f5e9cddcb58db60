"""The learned combiner as a stage: stores in, stores out, nothing but image labels to learn from.

``learn`` writes what is to teach over the training images as a store, and distils one network from
it: what linear probes make of the systems (``combiner.combine_probes``), or the mean of students
that learned on restricted views. ``fuse`` runs that network over any images, averages it with the
probes where they taught it, and writes three stores: the fused probabilities, which system was
trusted where, and how sure the result is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from wsss_jax.combiner import combine_probes, fusion, label_free, probe, teacher
from wsss_jax.combiner import combiner_networks as networks
from wsss_jax.combiner.batches import EvidenceBatches, EvidenceGroup
from wsss_jax.combiner.combiner_run import (
    Combining,
    claim,
    finished,
    home,
    masks_shown,
    record_of,
    seen_by,
    suffix,
    tell_divisors,
)
from wsss_jax.combiner.each_group import cut, over_evidence, put, put_unlabelled
from wsss_jax.combiner.early_stop import LeftOut, held_out
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.probe_maps import averaged
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.run import folders
from wsss_jax.types import Evidence


def learn(inputs: Inputs, folder: Path, settings: Combining, *, ids: Sequence[str]) -> Path:
    """Train on the evidence of ``ids``, or go on with a run that was stopped; returns ``folder``.

    Reads image labels, photographs and stores, and no mask. Raises ValueError when the folder holds
    a run with other settings, naming them, and, where probes are to teach, for two systems of one
    name and for one that has seen none of the images.
    """
    inputs = settings.sees(inputs)
    slots, probes = inputs.slots(ids), settings.probes_teach(inputs.channels())
    if probes:
        combine_probes.records_that_teach(inputs, list(slots))
    record = claim(folder, inputs, settings, len(ids))
    if folders.is_finished(folder):
        return folder
    if probes:
        target = combine_probes.taught(inputs, folder / "teacher", settings.alone(), ids=ids)
        settings, taught = settings.on_grid(), replace(inputs, target=target)
    else:
        settings, taught = _by_students(inputs, folder, settings, record, ids=ids)
    again = replace(settings, epochs=settings.distil_epochs)
    make = partial(fusion.make_distilled, settings.protocol)
    watch = None
    if settings.patience:
        teaching, judges = held_out(list(slots))
        slots = {id: slots[id] for id in teaching}
        watch = LeftOut(folder / "distilled", settings.protocol, taught, judges, settings.patience)
    trained(folder / "distilled", make, taught, slots, again, watch=watch)
    conclude(folder, taught, settings, list(slots))
    write_atomic(folder / "finished", b"distilled\n")
    return folder


def _by_students(
    inputs: Inputs,
    folder: Path,
    settings: Combining,
    record: Mapping[str, Any],
    *,
    ids: Sequence[str],
) -> tuple[Combining, Inputs]:
    """Settings with the teacher's threshold, and inputs with its probe and the students' mean."""
    seen = label_free.splits(len(inputs.systems), settings.protocol.students, settings.seed)
    slots = inputs.slots(ids)
    settings = settings.on_grid()
    otsu = settings.teacher_threshold == "otsu"
    protocol, inputs = teacher.prepared(settings.protocol, inputs, list(slots), folder, otsu=otsu)
    settings, taught = replace(settings, protocol=protocol), inputs
    for number in range(1, settings.rounds + 1):
        own = folder / f"students{suffix(number)}"
        students = partial(fusion.make_students, settings.protocol, seen=seen)
        trained(own, students, taught, slots, settings, networks=len(seen))
        target = _target(folder / f"average{suffix(number)}", inputs, record)
        _average(inputs, own, target, settings, ids=ids)
        taught = replace(inputs, target=target)
    return settings, taught


def fuse(
    run: Path, inputs: Inputs, folder: Path, *, ids: Sequence[str]
) -> tuple[Store, Store, Store]:
    """Fused probabilities, gates and uncertainty of ``ids``, into three stores named after folder.

    Systems may be others than those of the training, in any order and number. Probabilities are of
    the labelled classes; what they leave of 1 is background. ``<folder>_gates`` holds each system's
    share of trust in the class that wins, ``<folder>_uncertainty`` the entropy (in shares of its
    maximum) and how far students disagree, or, where probes taught, the network with itself when
    it is shown different parts of the systems. An image without labels is empty, and in neither.
    Where the network is averaged with the probes that taught it, what they make of all systems is
    in ``<folder>_probes``, and of each system in ``<folder>_probes_<system>``.
    """
    settings, channels = finished(run)
    inputs, record = _beside_probes(run, inputs, folder, ids), record_of(run)
    state = networks.distilled(run)
    several = networks.several(run, state, settings, channels, len(inputs.systems))
    names = tuple(store.folder.name for store in inputs.systems)
    read = stores.masks_read(record, masks_shown(inputs))

    def store(suffix: str, classes: tuple[str, ...], kind: Any) -> Store:
        return stores.create(
            folder.with_name(folder.name + suffix),
            holds="scores",
            classes=classes,
            kind=kind,
            made_by={"stage": "learned combiner", "run": run.name, **read, **as_json(settings)},
            parents=names,
        )

    fused = store("", inputs.source.classes.names, "probability")
    gates = store("_gates", names, "probability")
    doubt = store("_uncertainty", ("entropy", "disagreement"), "probability")

    def says(evidence: Evidence) -> tuple[Array, Array, Array]:
        found = networks.asked(state, evidence, shape=settings.protocol.shape, features=channels)
        return (*found, several(evidence)[1])

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            probabilities, trust, apart = (cut(part[row], example) for part in rows)
            present = probabilities[..., : len(example.classes) + 1]
            beside = None if example.target is None else example.target[..., 1:]
            probabilities = averaged(averaged(present, example.last_probe), beside)
            put(fused, id, probabilities[..., 1:], example)
            winner = probabilities[..., 1:].argmax(axis=-1)[None, ..., None]
            shares = np.take_along_axis(trust, winner, axis=-1)[..., 0].transpose(1, 2, 0)
            put(gates, id, shares, example, np.arange(len(names)))
            entropy = _entropy(probabilities)
            put(doubt, id, np.stack([entropy, apart], axis=-1), example, np.arange(2))

    put_unlabelled(fused, inputs, ids)
    lacking = {id for store in (fused, gates, doubt) for id in store.missing(ids)}
    missing = [id for id in ids if id in lacking]
    over_evidence(f"combine {folder.name}", inputs, missing, says, keep, target=doubt)
    return fused, gates, doubt


def _beside_probes(run: Path, inputs: Inputs, folder: Path, ids: Sequence[str]) -> Inputs:
    """What the network sees; their target is what probes fuse, where it is averaged with that."""
    (settings, channels), seen = finished(run), seen_by(run, inputs)
    if not settings.averages_probes(channels):
        tell_divisors(seen)
        return seen
    probes = home(run, record_of(run)) / "teacher"
    theirs = combine_probes.beside(folder, "probes")
    return replace(seen, target=combine_probes.fuse(probes, inputs, theirs, ids=ids))


def _target(folder: Path, inputs: Inputs, record: Mapping[str, Any]) -> Store:
    return stores.create(
        folder,
        holds="scores",
        classes=inputs.source.classes.names,
        kind="probability",
        made_by={"stage": "students", **record},
        parents=tuple(record["systems"]),
    )


def _average(
    inputs: Inputs,
    run: Path,
    target: Store,
    settings: Combining,
    *,
    ids: Sequence[str],
) -> None:
    says = networks.students(run, settings, inputs.channels(), len(inputs.systems))

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            maps = cut(rows[0][row], example)[..., 1 : len(example.classes) + 1]
            put(target, id, maps, example)

    over_evidence(
        f"average {target.folder.parent.name}", inputs, target.missing(ids), says, keep, target
    )


def trained(
    folder: Path,
    make: Any,
    inputs: Inputs,
    slots: Mapping[str, int],
    settings: Combining,
    networks: int = 1,
    times: Mapping[str, int] = MappingProxyType({}),
    watch: LeftOut | None = None,
) -> None:
    """Train what ``make(features=, steps=)`` gives for ``settings.epochs`` into a run folder.

    networks: how many take turns at the steps. times: how often an image comes in an epoch, where
    that is not once. watch: looks after each epoch, and may end the training.
    """
    batches = EvidenceBatches(
        inputs.read,
        slots,
        cells=settings.cells,
        seed=settings.seed,
        multiple=jax.device_count(),
        times=times,
    )
    steps = settings.epochs * batches.steps_per_epoch
    system = make(features=inputs.channels(), steps=steps)
    every = settings.save_every if watch is None else batches.steps_per_epoch
    course = folders.Course(steps * networks, settings.seed, every)
    folders.learn(system, batches, course, folder, watch)


def conclude(
    folder: Path, inputs: Inputs, settings: Combining, ids: Sequence[str], *, share: float = 0.0
) -> None:
    """Learn the last probe from what the network in ``folder`` says of ``ids``, if there is one.

    share: of ``inputs.labelled`` in it, whose true masks count in place of the network's.
    """
    if not settings.last_probe:
        return
    channels = inputs.channels()
    state = folders.chosen_state(folder / "distilled", fusion.template(settings.protocol, channels))

    def says(evidence: Evidence) -> Array:
        return networks.asked(state, evidence, shape=settings.protocol.shape, features=channels)[0]

    how = {"share": share, "keep_share": settings.keep_share}
    probe.conclude(inputs, ids, settings.protocol, says, folder, **how)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    p = np.clip(probabilities, 1e-12, 1)
    return -(p * np.log(p)).sum(axis=-1) / np.log(p.shape[-1])
