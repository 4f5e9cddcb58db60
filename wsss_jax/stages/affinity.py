"""Training of an affinity network from affinity labels, and the trained network on photographs."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

from wsss_jax import config
from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import training_batches
from wsss_jax.data.provenance import inherited, recorded
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.models import recognise
from wsss_jax.run import folders
from wsss_jax.stages import segment
from wsss_jax.systems import affinity
from wsss_jax.systems.affinity import AffinityNet

_HOW = "run `wsss affinity`"


@dataclass(frozen=True)
class AffinityTraining:
    """One affinity network and how long it learns.

    Attributes:
        model: the network and its optimizer.
        augmentation: what happens to photographs and labels (IRN: long side scaled by 0.5 to 1.5,
            crop 512; Puzzle-CAM: long side 320 to 640).
        epochs: passes over the images (IRN 3, PSA 8).
        batch_size: images per step, over all hosts (IRN 32, PSA 8).
        seed: of the start, the order and the augmentation.
        save_every: steps between checkpoints.
        cache_megabytes: memory in which decoded photographs are kept.
    """

    model: AffinityNet = field(default_factory=AffinityNet)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 3
    batch_size: int = 16
    seed: int = 0
    save_every: int = 25
    cache_megabytes: int = 1024


class Learned(NamedTuple):
    """A trained network: its settings, and (parameters, rest of the state)."""

    model: AffinityNet
    weights: tuple[Any, Any]


def learn_affinity(source: Source, labels: Store, settings: AffinityTraining, folder: Path) -> Path:
    """Train on the source's photographs and their affinity labels into ``folder``, or go on.

    Raises ValueError for labels of other classes or without some of the images, naming them, and
    when the folder holds a run of other settings, data or labels.
    """
    teacher = segment.pseudo_masks(labels, source)
    settings = recognise.settled(settings, needed=not folders.is_finished(folder))
    model = settings.model
    named = replace(model, weights=None if model.weights is None else Path(model.weights.name))
    record = {
        "settings": config.as_json(replace(settings, model=named)),
        "data": {"name": source.name, "images": len(source.ids)},
        "learned_from": config.as_json(teacher.record),
        **recorded(*recognise.provenances(settings)),
    }
    with folders.claim(folder, record) as run:
        if not run.finished:
            _train(source, teacher, settings, folder)
    return folder


def _train(
    source: Source, teacher: segment.Teacher, settings: AffinityTraining, folder: Path
) -> None:
    batches = training_batches(
        source,
        settings.augmentation,
        seed=settings.seed,
        batch_size=settings.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        masks=teacher.masks,
        cache_bytes=settings.cache_megabytes << 20,
    )
    steps = settings.epochs * batches.steps_per_epoch
    course = folders.Course(steps, settings.seed, settings.save_every)
    system = affinity.make(settings.model, steps=steps)
    folders.learn(system, batches, course, folder)


def run_sources(folder: Path) -> dict[str, Any]:
    """True masks, weights and maps of others that a run rests on, as it is recorded."""
    return inherited(folders.record_of(folder, _HOW))


@cache
def learned(folder: Path) -> Learned:
    """The network of a finished run, read once per process. BadFileError where there is none."""
    record = folders.record_of(folder, _HOW)
    model = config.from_json(AffinityTraining, record["settings"]).model
    state = folders.last_state(folder, affinity.template(model))
    return Learned(model, (state.averaged, state.stats))
