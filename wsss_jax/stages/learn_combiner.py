"""The learned combiner as a stage: stores in, stores out, nothing but image labels to learn from.

``learn`` trains students on restricted views, writes their mean over the training images as a
store, and distils one network from it. ``fuse`` runs that network over any images and writes three
stores: the fused probabilities, which system was trusted where, and how sure the result is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wsss_jax import config
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.evidence import Inputs
from wsss_jax.data.evidence_batches import EvidenceBatches, EvidenceGroup
from wsss_jax.data.files import BadFileError, write_atomic
from wsss_jax.data.probe import averaged
from wsss_jax.data.stores import Store
from wsss_jax.models.combiner import CombinerShape
from wsss_jax.stages import probe, runs, teacher
from wsss_jax.stages.each_group import cut, over_evidence, put, put_unlabelled
from wsss_jax.stages.early_stop import LeftOut, held_out
from wsss_jax.systems import fusion, label_free
from wsss_jax.systems.fusion import Students
from wsss_jax.systems.label_free import Protocol
from wsss_jax.types import Evidence

_HOW = "run `wsss combine --run`"

VERSION = 4
"""Of what a run folder means: 4 since the network weighs systems by their agreement."""


@dataclass(frozen=True)
class Combining:
    """The learned combiner and how long it learns.

    The defaults are what benchmarks/RESULTS.md measures on photographs.

    Attributes:
        protocol: of label-free learning; its teacher walks as far on any grid (``on_grid``).
        epochs: passes over the training images, of the students.
        distil_epochs: passes, of the network that learns from them.
        teacher_threshold: otsu, read off the teacher's own maps of the images that teach
            (``stages.teacher``), or fixed (``protocol.threshold``).
        cells: long side of the grid; VOC at stride 4 has 125.
        seed: of the start, the splits, the order and the distortions.
        save_every: steps between checkpoints.
        patience: 0 distils to the end; more ends it after so many epochs in which systems that are
            left out are predicted no better (``early_stop``), and takes the best state.
        rounds: of students. Those of a further round see what those of the first saw, and learn
            from the last round's mean in place of the closed-form consensus.
        last_probe: whether a linear probe is learned from the network's own maps in the end, and
            what is fused is the geometric mean of both; needs frozen features.
        units: typical divides a system whose scores stay low by what they usually reach
            (``data.units``), when it learns and when it fuses; given does not.
    """

    protocol: Protocol = field(default_factory=Protocol)
    epochs: int = 4
    distil_epochs: int = 12
    teacher_threshold: Literal["otsu", "fixed"] = "otsu"
    cells: int = 64
    seed: int = 0
    save_every: int = 50
    patience: int = 0
    rounds: int = config.since(1)
    last_probe: bool = config.since(False, True)
    units: Literal["typical", "given"] = config.since("given", "typical")

    def __post_init__(self) -> None:
        if min(self.epochs, self.distil_epochs, self.cells, self.rounds) < 1:
            raise ValueError(
                f"{self.epochs} and {self.distil_epochs} epochs on {self.cells} cells in "
                f"{self.rounds} rounds; wanted at least 1 of each"
            )

    def sees(self, inputs: Inputs) -> Inputs:
        """The inputs on its grid and in its units."""
        return replace(inputs, cells=self.cells, units=self.units)

    @property
    def last(self) -> str:
        """What the folders of the last round's students and of their mean end with."""
        return _suffix(self.rounds)


def learn(inputs: Inputs, folder: Path, settings: Combining, *, ids: Sequence[str]) -> Path:
    """Train on the evidence of ``ids``, or go on with a run that was stopped; returns ``folder``.

    Reads image labels, photographs and stores, and no mask. Raises ValueError when the folder holds
    a run with other settings, naming them.
    """
    inputs = settings.sees(inputs)
    record = {
        "version": VERSION,
        "settings": as_json(settings),
        "systems": [store.folder.name for store in inputs.systems],
        "cues": [
            None if store is None else store.folder.name
            for store in (inputs.saliency, inputs.edges, inputs.features)
        ],
        "channels": inputs.channels(),
        "images": len(ids),
        **_shown(inputs),
    }
    runs.claim(folder, record)
    if runs.is_finished(folder):
        return folder
    seen = label_free.splits(len(inputs.systems), settings.protocol.students, settings.seed)
    slots = inputs.slots(ids)
    settings = _on_grid(settings)
    otsu = settings.teacher_threshold == "otsu"
    protocol, inputs = teacher.prepared(settings.protocol, inputs, list(slots), folder, otsu=otsu)
    settings = replace(settings, protocol=protocol)
    taught = inputs
    for number in range(1, settings.rounds + 1):
        own = folder / f"students{_suffix(number)}"
        students = partial(fusion.make_students, settings.protocol, seen=seen)
        trained(own, students, taught, slots, settings, networks=len(seen))
        target = _target(folder / f"average{_suffix(number)}", inputs, record)
        _average(inputs, own, target, settings, ids=ids)
        taught = replace(inputs, target=target)
    again = replace(settings, epochs=settings.distil_epochs)
    make = partial(fusion.make_distilled, settings.protocol)
    watch = None
    if settings.patience:
        teaching, judges = held_out(list(slots))
        slots = {id: slots[id] for id in teaching}
        watch = LeftOut(folder / "distilled", settings.protocol, inputs, judges, settings.patience)
    trained(folder / "distilled", make, taught, slots, again, watch=watch)
    conclude(folder, taught, settings, list(slots))
    write_atomic(folder / "finished", b"distilled\n")
    return folder


def fuse(
    run: Path, inputs: Inputs, folder: Path, *, ids: Sequence[str]
) -> tuple[Store, Store, Store]:
    """Fused probabilities, gates and uncertainty of ``ids``, into three stores named after folder.

    Systems may be others than those of the training, in any order and number. Probabilities are of
    the labelled classes; what they leave of 1 is background. ``<folder>_gates`` holds each system's
    share of trust in the class that wins, ``<folder>_uncertainty`` the entropy (in shares of its
    maximum) and the students' disagreement; an image without labels is empty, and in neither.
    """
    settings, channels = finished(run)
    inputs, record = seen_by(run, inputs), runs.record_of(run, _HOW)
    state = distilled(run)
    own = _home(run, record) / f"students{settings.last}"
    seen = label_free.splits(len(inputs.systems), settings.protocol.students, settings.seed)
    several = _taught(own, settings, channels, len(record["systems"]), seen)
    names = tuple(store.folder.name for store in inputs.systems)
    read = stores.masks_read(record, _shown(inputs))

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
        found = _network(state, evidence, shape=settings.protocol.shape, features=channels)
        return (*found, several(evidence)[1])

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            probabilities, trust, apart = (cut(part[row], example) for part in rows)
            present = probabilities[..., : len(example.classes) + 1]
            probabilities = averaged(present, example.last_probe)
            put(fused, id, probabilities[..., 1:], example)
            winner = probabilities[..., 1:].argmax(axis=-1)[None, ..., None]
            shares = np.take_along_axis(trust, winner, axis=-1)[..., 0].transpose(1, 2, 0)
            put(gates, id, shares, example, np.arange(len(names)))
            entropy = _entropy(probabilities)
            put(doubt, id, np.stack([entropy, apart], axis=-1), example, np.arange(2))

    _tell_divisors(inputs)
    put_unlabelled(fused, inputs, ids)
    lacking = {id for store in (fused, gates, doubt) for id in store.missing(ids)}
    missing = [id for id in ids if id in lacking]
    over_evidence(f"combine {folder.name}", inputs, missing, says, keep, target=doubt)
    return fused, gates, doubt


def seen_by(run: Path, inputs: Inputs) -> Inputs:
    """The inputs on a finished run's grid, in its units and with its probe.

    Raises ValueError for other frozen features than those of its training.
    """
    settings, channels = finished(run)
    if inputs.channels() != channels:
        raise ValueError(
            f"{run} was trained with {channels} frozen channels, now there are "
            f"{inputs.channels()}; give the features of its training"
        )
    home = _home(run, runs.record_of(run, _HOW))
    last = run if settings.last_probe else None
    return probe.known(settings.sees(inputs), settings.protocol, home, last)


def _home(run: Path, record: Mapping[str, Any]) -> Path:
    """The folder of the run that has the students: another's where few labels taught."""
    return run / record.get("students_of", "")


def _tell_divisors(inputs: Inputs) -> None:
    for system, divisor in zip(inputs.systems, inputs.divisors, strict=True):
        if divisor != 1:
            print(f"{system.folder}: scores reach {divisor:.3g}, and are divided by that")


def _shown(inputs: Inputs) -> dict[str, list[str]]:
    """Of which images true masks taught what the combiner looks at."""
    return stores.masks_read(*inputs.systems, inputs.saliency, inputs.edges, inputs.features)


def finished(run: Path) -> tuple[Combining, int]:
    """Settings of a finished run, with the walks of its grid, and its frozen channels.

    BadFileError where there is no such run, or one of an earlier version of this package.
    """
    record = runs.record_of(run, _HOW)
    if record.get("version") != VERSION:
        raise BadFileError(
            f"{run}: learned by an earlier version, whose walks or students were others (version "
            f"{record.get('version', 1)}, wanted {VERSION}); learn it again, in another folder"
        )
    settings = config.from_json(Combining, record["settings"])
    return _on_grid(settings), int(record["channels"])


def _on_grid(settings: Combining) -> Combining:
    return replace(settings, protocol=label_free.on_grid(settings.protocol, settings.cells))


@partial(jax.jit, static_argnames=("shape", "features"))
def _network(
    state: Any, evidence: Evidence, *, shape: CombinerShape, features: int
) -> tuple[Array, Array]:
    """Probabilities and gates; compiled once per shape, whoever is asked and whatever is fused."""
    network = fusion.structure(shape, features)
    combined = fusion.combine(network, state, evidence, evidence.available)
    return combined.probabilities(), combined.gates


_mean = jax.jit(fusion.students_mean, static_argnames=("steps", "cut"))


@dataclass(frozen=True)
class _Taught:
    """Students that have learned: what they say in the mean, and how far they disagree."""

    protocol: Protocol
    states: tuple[Any, ...]
    seen: Any
    features: int

    def __call__(self, evidence: Evidence) -> tuple[Array, Array]:
        views = fusion.views_of(self.protocol, self.seen, evidence)
        how = {"shape": self.protocol.shape, "features": self.features}
        each = [_network(s, v, **how)[0] for s, v in zip(self.states, views, strict=True)]
        protocol = self.protocol
        return _mean(each, views, steps=protocol.average_steps, cut=protocol.shape.cut_walks)


def _taught(
    folder: Path, settings: Combining, channels: int, learned_from: int, seen: Any = None
) -> _Taught:
    """The students of a run folder; seen: which systems they are asked about, if others."""
    protocol = settings.protocol
    template = fusion.students_template(protocol, channels, learned_from)
    learned: Students = runs.last_state(folder, template)
    states = tuple(fusion.one_of(learned.state, i) for i in range(protocol.students))
    return _Taught(protocol, states, learned.seen if seen is None else jnp.asarray(seen), channels)


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
    says = _taught(run, settings, inputs.channels(), len(inputs.systems))

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
    course = runs.Course(steps * networks, settings.seed, every)
    runs.learn(system, batches, course, folder, watch)


def conclude(folder: Path, inputs: Inputs, settings: Combining, ids: Sequence[str]) -> None:
    """Learn the last probe from what the network in ``folder`` says of ``ids``, if there is one."""
    if not settings.last_probe:
        return
    channels = inputs.channels()
    state = runs.chosen_state(folder / "distilled", fusion.template(settings.protocol, channels))

    def says(evidence: Evidence) -> Array:
        return _network(state, evidence, shape=settings.protocol.shape, features=channels)[0]

    probe.conclude(inputs, ids, settings.protocol, says, folder)


def distilled(run: Path) -> Any:
    """The state of the network that a finished run distilled, or chose for it."""
    settings, channels = finished(run)
    return runs.chosen_state(run / "distilled", fusion.template(settings.protocol, channels))


def _suffix(number: int) -> str:
    return "" if number == 1 else f"_{number}"


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    p = np.clip(probabilities, 1e-12, 1)
    return -(p * np.log(p)).sum(axis=-1) / np.log(p.shape[-1])
