"""What every training is told, and the one way from photographs to a finished run folder."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import jax

from wsss_jax import config
from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import MaskReader, training_batches
from wsss_jax.config import Record, check_numbers
from wsss_jax.data import json_records, provenance
from wsss_jax.datasets.boxes import Reader
from wsss_jax.datasets.source import digest_of
from wsss_jax.datasets.table import Source
from wsss_jax.models import recognise
from wsss_jax.run import folders
from wsss_jax.train import optimizers
from wsss_jax.train.loop import Loop
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import System

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)
"""Settings of a network: its backbone, weights and optimizer."""

S = TypeVar("S")


@dataclass(frozen=True)
class Training(Generic[M_co]):
    """A network and how it learns.

    Attributes:
        model: the network, its losses and its optimizer.
        augmentation: random changes to training images and their labels.
        epochs: passes over the images.
        batch_size: images per step, over all hosts.
        seed: of initial weights, order and augmentation.
        save_every: steps between checkpoints.
        cache_megabytes: memory for decoded photographs.
        compute: the type in which networks compute; parameters are always float32.
        engine: mesh (one step over all devices) or pmap (a step of each device, averaged).
        sampling: shuffled shows every image once in an epoch; balanced draws a class and then an
            image that shows it, for as many steps.
    """

    model: M_co
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 8
    batch_size: int = 16
    seed: int = 0
    save_every: int = 50
    cache_megabytes: int = 1024
    compute: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["mesh", "pmap"] = "mesh"
    sampling: Literal["shuffled", "balanced"] = "shuffled"

    def __post_init__(self) -> None:
        check_numbers(self, "epochs", "batch_size", "save_every")
        check_numbers(self, "seed", "cache_megabytes", least=0)


def train(
    settings: Training[M],
    source: Source,
    folder: Path,
    make: Callable[..., System],
    *,
    notes: Record,
    masks: MaskReader | None = None,
    boxes: Reader | None = None,
) -> Path:
    """Train into a run folder, or go on with a run that was stopped; returns the folder.

    source: photographs and labels, as the network may see them. make: ``make(model, steps=steps)``
    is the learning problem. notes: what the run's record has beside settings and data. masks: what
    each photograph comes with, by id. boxes: of its objects. Raises UserError when the folder holds
    a run with other settings, data or notes, naming them.
    """
    settings = recognise.settled(settings, needed=not folders.is_finished(folder))
    with folders.claim(folder, record(settings, source, notes)) as run:
        if run.finished:
            return folder
        batches = training_batches(
            source,
            settings.augmentation,
            seed=settings.seed,
            batch_size=settings.batch_size,
            shard=(jax.process_index(), jax.process_count()),
            masks=masks,
            boxes=boxes,
            balanced=settings.sampling == "balanced",
            cache_bytes=settings.cache_megabytes << 20,
        )
        steps = settings.epochs * batches.steps_per_epoch
        loop = Loop(
            steps,
            save_every=settings.save_every,
            compute=settings.compute,
            engine=settings.engine,
            rate=optimizers.rate(_optim(settings.model), steps),
        )
        system = make(settings.model, steps=steps)
        folders.learn(system, batches, loop, folder, seed=settings.seed)
    return folder


def _optim(model: object) -> Optim:
    """The optimizer of a network, or of the classifier that a system wraps."""
    own = getattr(model, "optim", None)
    found = own if own is not None else getattr(getattr(model, "classifier", None), "optim", None)
    if not isinstance(found, Optim):
        raise TypeError(f"{type(model).__name__} has no optimizer")
    return found


def record(settings: Training[M], source: Source, notes: Record) -> Record:
    """What ``settings.json`` of a run holds; files and folders by name, wherever they lie."""
    return {
        "settings": config.as_json(_without_folders(settings)),
        "data": {
            "name": source.name,
            "images": len(source.ids),
            "photographs": digest_of(source),
        },
        **config.as_json(notes),
        **provenance.inherited(
            provenance.recorded(*recognise.provenances(settings)), *_runs_in(settings)
        ),
    }


def recorded(found: Record, kind: type[M]) -> Training[M]:
    """The settings in the record of a run, whose network has settings of this class.

    Raises UserError for a setting that does not exist.
    """
    settings = found["settings"]
    model = config.from_json(kind, settings["model"])
    return config.from_json(Training, {**settings, "model": model})


def _runs_in(settings: object) -> list[Record]:
    """Records of the runs that settings name: of the ordinary classifier of OC-CSE and P-NOC."""
    if isinstance(settings, Path):
        path = settings / "settings.json"
        return [json_records.read(path)] if path.is_file() else []
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return []
    parts = [getattr(settings, one.name) for one in dataclasses.fields(settings)]
    return [found for part in parts for found in _runs_in(part)]


def _without_folders(settings: S) -> S:
    """The settings with every path cut to its last part."""
    if isinstance(settings, Path):
        return type(settings)(settings.name)
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    names = [one.name for one in dataclasses.fields(settings)]
    return replace(settings, **{name: _without_folders(getattr(settings, name)) for name in names})
