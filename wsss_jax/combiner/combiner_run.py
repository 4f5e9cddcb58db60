"""What a combiner's run is told, and what its folder records, with a network or without.

``combiner.learn_combiner`` learns the network, ``combiner.combine_probes`` does without one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from wsss_jax import config
from wsss_jax.combiner import label_free, probe
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.components import digest
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.run import folders

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
            (``combiner.teacher``), or fixed (``protocol.threshold``).
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
        network: False learns no network but linear probes alone, a minute for each system, and
            fuses what each says with its own (``combine_probes``); needs frozen features.
        teacher: of the network. probes: what would be fused without one. students: of a closed
            form, with restricted views (``combiner.fusion``); they teach too where there are no
            frozen features, or no probe is to be learned.
        keep_share: whether the last probe calls as much background as its labels do.
        with_probes: whether the network, where probes taught it, is averaged with what they make of
            the systems (geometric mean; the network with its last probe counts as much as they).
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
    network: bool = config.since(True)
    teacher: Literal["students", "probes"] = config.since("students", "probes")
    keep_share: bool = config.since(False, True)
    with_probes: bool = config.since(False, True)

    def __post_init__(self) -> None:
        if min(self.epochs, self.distil_epochs, self.cells, self.rounds) < 1:
            raise UserError(
                f"{self.epochs} and {self.distil_epochs} epochs on {self.cells} cells in "
                f"{self.rounds} rounds; wanted at least 1 of each"
            )
        if not self.network and not self.protocol.probes:
            raise UserError(
                "neither a network nor a probe is to be learned; wanted protocol.probes of at "
                "least 1, or leave out --run for a closed form alone"
            )

    def sees(self, inputs: Inputs) -> Inputs:
        """The inputs on its grid and in its units."""
        return replace(inputs, cells=self.cells, units=self.units)

    def on_grid(self) -> "Combining":
        """With the walks of its grid."""
        return replace(self, protocol=label_free.on_grid(self.protocol, self.cells))

    def probes_teach(self, channels: int) -> bool:
        """Whether probes teach the network, of so many frozen channels."""
        return self.teacher == "probes" and self.protocol.probes > 0 and channels > 0

    def averages_probes(self, channels: int) -> bool:
        """Whether what is fused is the mean of the network and of the probes that taught it."""
        return self.with_probes and self.probes_teach(channels)

    def alone(self) -> "Combining":
        """Of the probes that teach, what concerns them: they are the same for any seed."""
        same = {name: getattr(self, name) for name in ("teacher_threshold", "cells", "units")}
        return Combining(self.protocol, network=False, **same)

    def target(self, channels: int) -> Path:
        """Where in a run's folder that is which teaches the distilled network."""
        if self.probes_teach(channels):
            return Path("teacher", "maps")
        return Path(f"average{self.last}")

    @property
    def last(self) -> str:
        """What the folders of the last round's students and of their mean end with."""
        return suffix(self.rounds)


def suffix(number: int) -> str:
    """What the folders of a round of students end with."""
    return "" if number == 1 else f"_{number}"


def claim(folder: Path, inputs: Inputs, settings: Combining, images: int) -> dict[str, Any]:
    """The record of a run that learns from so many images, into its folder or found there.

    Raises ValueError where the folder holds another, naming what differs.
    """
    record = {
        "version": VERSION,
        "settings": as_json(settings),
        "systems": [store.folder.name for store in inputs.systems],
        "cues": [
            None if store is None else store.folder.name
            for store in (inputs.saliency, inputs.edges, inputs.features)
        ],
        "channels": inputs.channels(),
        "images": images,
        **_components(inputs),
        **masks_shown(inputs),
    }
    folders.claim(folder, record)
    return record


def _components(inputs: Inputs) -> dict[str, str]:
    """What the channels of the frozen features mean, where their store keeps it."""
    found = digest(inputs.features) if inputs.features is not None else ""
    return {"components": found} if found else {}


def masks_shown(inputs: Inputs) -> dict[str, list[str]]:
    """Of which images true masks taught what the combiner looks at."""
    return stores.masks_read(*inputs.systems, inputs.saliency, inputs.edges, inputs.features)


def record_of(run: Path) -> dict[str, Any]:
    """What a finished run's folder records. BadFileError where there is no such run."""
    return folders.record_of(run, _HOW)


def finished(run: Path, *, network: bool = True) -> tuple[Combining, int]:
    """Settings of a finished run, with the walks of its grid, and its frozen channels.

    network: whether it is to have learned one. BadFileError where there is no such run, or one of
    an earlier version of this package.
    """
    record = record_of(run)
    if record.get("version") != VERSION:
        raise BadFileError(
            f"{run}: learned by an earlier version, whose walks or students were others (version "
            f"{record.get('version', 1)}, wanted {VERSION}); learn it again, in another folder"
        )
    settings = config.from_json(Combining, record["settings"])
    if settings.network != network:
        was, wanted = ("with", "one without") if settings.network else ("without", "one with")
        raise BadFileError(
            f"{run}: learned {was} a network, wanted {wanted}; learn it in another folder"
        )
    return settings.on_grid(), int(record["channels"])


def alike(run: Path, inputs: Inputs, *, network: bool = True) -> tuple[Combining, Inputs]:
    """Settings of a finished run, and the inputs on its grid and in its units.

    network: whether it is to have learned one. Raises ValueError for other frozen features than
    those of its training.
    """
    settings, channels = finished(run, network=network)
    if inputs.channels() != channels:
        raise UserError(
            f"{run} was trained with {channels} frozen channels, now there are "
            f"{inputs.channels()}; give the features of its training"
        )
    record, found = record_of(run), _components(inputs)
    learned = {name: record[name] for name in ("components",) if name in record}
    if inputs.features is not None and learned and found != learned:
        raise UserError(
            f"{inputs.features.folder}: its channels mean something else than those that {run} "
            "learned from; make them by `wsss features --like` with the store of its training"
        )
    return settings, settings.sees(inputs)


def seen_by(run: Path, inputs: Inputs) -> Inputs:
    """The inputs on the grid of a finished run of a network, in its units and with its probes.

    Raises ValueError as ``alike``.
    """
    settings, seen = alike(run, inputs)
    last = run if settings.last_probe else None
    protocol = settings.protocol
    if settings.probes_teach(inputs.channels()):
        protocol = replace(protocol, probes=0)
    return probe.known(seen, protocol, home(run, record_of(run)), last)


def home(run: Path, record: Mapping[str, Any]) -> Path:
    """The folder of the run that has the students: another's where few labels taught."""
    return run / record.get("students_of", "")


def tell_divisors(inputs: Inputs) -> None:
    """Print which systems' scores are divided, and by what."""
    for system, divisor in zip(inputs.systems, inputs.divisors, strict=True):
        if divisor != 1:
            print(f"{system.folder}: scores reach {divisor:.3g}, and are divided by that")
