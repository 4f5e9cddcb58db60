"""The folder of a learned combiner: how it was learned, its probe and its thresholds.

settings.json holds the settings and what it was learned from, probe.npz the linear probe (none
without frozen features), thresholds.json by class where background begins. What is fused with a run
follows its record, whatever is given otherwise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from wsss_jax import config
from wsss_jax.combiner import probes
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.probes import Probe
from wsss_jax.combiner.settings import Combining
from wsss_jax.config import Record
from wsss_jax.data import components, json_records, stores
from wsss_jax.data.classes import difference
from wsss_jax.data.provenance import inherited, recorded
from wsss_jax.data.stores import Store
from wsss_jax.datasets.boxes import BOXES, reader_of
from wsss_jax.datasets.source import digest_of
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.run import folders
from wsss_jax.run.folders import Claim

THRESHOLDS = "thresholds.json"


class Learned(NamedTuple):
    """What a run has learned: the probe, if any, and the threshold of each class's refined map."""

    probe: Probe | None
    thresholds: Float[np.ndarray, " c"]

    def digest(self) -> str:
        """Of all that was learned: what another learning would leave differs in it."""
        told = hashlib.blake2b(self.thresholds.tobytes(), digest_size=8)
        if self.probe is not None:
            told.update(self.probe.kernel.tobytes() + self.probe.offset.tobytes())
        return told.hexdigest()


def claim(run: Path, inputs: Inputs, settings: Combining, *, images: int) -> Claim:
    """Take the run's folder (``folders.claim``). UserError where it holds another, naming what."""
    record = {
        "settings": config.as_json(settings),
        "systems": list(inputs.names()),
        "classes": list(inputs.source.classes.names),
        "saliency": inputs.saliency is not None,
        "features": meaning_of(inputs.features),
        "images": images,
        "photographs": digest_of(inputs.source),
        "labelled": sorted(inputs.labelled),
        "made_of": stores.marks(
            (*inputs.systems, *inputs.features, *filter(None, [inputs.saliency]))
        ),
        **inputs_of(inputs),
    }
    return folders.claim(run, record)


def inputs_of(inputs: Inputs) -> dict[str, object]:
    """True masks, weights and maps of others that what is combined rests on, as it is recorded."""
    given = (*inputs.systems, inputs.saliency, *inputs.features)
    boxes = {} if inputs.boxes is None else recorded(BOXES)
    return inherited(*given, {"labelled": sorted(inputs.labelled)}, boxes)


def save(run: Path, found: Learned, classes: Sequence[str]) -> None:
    """Write all that was learned of these classes."""
    if found.probe is not None:
        found.probe.save(run / "probe.npz")
    by_class = dict(zip(classes, found.thresholds.tolist(), strict=True))
    json_records.write(run / THRESHOLDS, by_class)


def load(run: Path, inputs: Inputs) -> tuple[Combining, Learned, Inputs]:
    """Settings and content of a finished run, and the inputs on its grid and in its units.

    Raises BadFileError where there is no finished run or a file of it is damaged, UserError for
    other classes, other features, or saliency where it was learned without, or the other way round.
    """
    record = record_of(run)
    settings = config.from_json(Combining, record["settings"])
    if record["classes"] != list(inputs.source.classes.names):
        raise UserError(
            f"{run} has learned {difference(record['classes'], inputs.source.classes.names)}; fuse "
            "the classes of its training, or learn in another folder"
        )
    now = {"features": meaning_of(inputs.features), "saliency": inputs.saliency is not None}
    for name, given in now.items():
        if record[name] != given:
            raise UserError(
                f"{run} was learned with {name} {_words(record[name])}, now it is {_words(given)}; "
                f"give the {name} of its training, or learn in another folder"
            )
    path = run / THRESHOLDS
    try:
        by_class = json_records.read(path)
        thresholds = np.array([float(by_class[name]) for name in record["classes"]])
        if not ((thresholds >= 0) & (thresholds <= 1)).all():
            raise ValueError("a threshold is a number from 0 to 1")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BadFileError(f"{path}: {problem!r}; delete {run} and learn it again") from problem
    learned = bool(record["features"]) and settings.rounds > 0
    probe = probes.load(run / "probe.npz") if learned else None
    return settings, Learned(probe, thresholds), prepared(inputs, settings)


def prepared(inputs: Inputs, settings: Combining) -> Inputs:
    """The inputs on the grid of the settings, in their units, with boxes where these are wanted.

    Boxes are those of the data set where no others are given. UserError where it has none.
    """
    boxes = (inputs.boxes or reader_of(inputs.source)) if settings.boxes else None
    return replace(inputs, cells=settings.cells, units=settings.units, boxes=boxes)


def record_of(run: Path) -> Record:
    """What a finished run's folder records. BadFileError where there is no such run."""
    return folders.record_of(run, "run `wsss combine --run`")


def meaning_of(frozen: Sequence[Store]) -> list[list[str | int]]:
    """Of each store of frozen features, in their order: name, channels, and what these mean."""
    return [[store.folder.name, len(store.classes), components.digest(store)] for store in frozen]


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", then ".join(f"{part[0]} ({part[1]} channels)" for part in value) or "none"
    return "given" if value else "none"
