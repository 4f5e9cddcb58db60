"""Training of one system into a run folder: settings.json, metrics.jsonl and checkpoint/."""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from wsss_jax import config
from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import training_batches
from wsss_jax.data.classes import ClassList
from wsss_jax.data.provenance import inherited, recorded
from wsss_jax.data.texts import read_json
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.models import recognise
from wsss_jax.run import folders
from wsss_jax.systems import SYSTEMS, Classifier, Model, name_of


@dataclass(frozen=True)
class Training:
    """One system and how long it learns.

    Attributes:
        model: the network and its losses; other systems are chosen in an experiment file.
        augmentation: what happens to training images.
        epochs: passes over the labelled images.
        batch_size: images per step, over all hosts.
        seed: of the start, the order and the augmentation.
        save_every: steps between checkpoints.
        cache_megabytes: memory in which decoded photographs are kept.
        compute: the type in which networks compute; parameters are float32 all the same.
        engine: mesh (one step over all devices) or pmap (a step of each device, averaged).
        imageless: classes that may be without any image. Any other such class stops training.
    """

    # Flags change the settings of the system that is there; another system is a Python file.
    model: Annotated[Model, tyro.conf.AvoidSubcommands] = field(default_factory=Classifier)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 8
    batch_size: int = 16
    seed: int = 0
    save_every: int = 25
    cache_megabytes: int = 1024
    compute: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["mesh", "pmap"] = "mesh"
    imageless: tuple[str, ...] = ()


def fit(source: Source, settings: Training, folder: Path) -> Path:
    """Train on the source's image labels, or go on with a run that was stopped; returns ``folder``.

    Raises ValueError when the folder holds a run with other settings, naming them, and when no
    image shows a class, naming it.
    """
    settings = recognise.settled(settings, needed=not folders.is_finished(folder))
    with folders.claim(folder, run_record(settings, source)) as run:
        if not run.finished:
            _check_classes(source, settings.imageless)
            _train(source, settings, folder)
    return folder


def _train(source: Source, settings: Training, folder: Path) -> None:
    batches = training_batches(
        source,
        settings.augmentation,
        seed=settings.seed,
        batch_size=settings.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        cache_bytes=settings.cache_megabytes << 20,
    )
    steps = settings.epochs * batches.steps_per_epoch
    make = SYSTEMS[name_of(settings.model)].make
    system = make(settings.model, classes=len(source.classes), steps=steps)
    course = folders.Course(
        steps,
        settings.seed,
        settings.save_every,
        compute=settings.compute,
        engine=settings.engine,
    )
    folders.learn(system, batches, course, folder)


def run_record(settings: Training, source: Source) -> dict[str, Any]:
    """What a run folder says of how it was made; files and folders by name, wherever they lie."""
    chosen = config.as_json(_without_folders(settings))
    del chosen["imageless"]  # says what is no mistake, and changes nothing that is learned
    return {
        "system": name_of(settings.model),
        "settings": chosen,
        "data": {"name": source.name, "images": len(source.ids)},
        "classes": list(source.classes.names),
        **inherited(recorded(*recognise.provenances(settings)), *_records_of_runs(settings)),
    }


def trained(folder: Path) -> tuple[Training, ClassList, Any]:
    """Settings, classes and final state of a finished run. BadFileError where there is none."""
    record = folders.record_of(folder, "run `wsss train`")
    settings = training_of(record)
    classes = ClassList(tuple(record["classes"]))
    template = SYSTEMS[name_of(settings.model)].template(settings.model, len(classes))
    return settings, classes, folders.last_state(folder, template)


def training_of(record: Mapping[str, Any]) -> Training:
    """The settings in the record of a run folder.

    Raises ValueError for a system or a setting that does not exist.
    """
    entry = config.lookup(SYSTEMS, record.get("system", ""), "system")
    rest = {name: value for name, value in record["settings"].items() if name != "model"}
    model = config.from_json(entry.settings, record["settings"]["model"])
    return replace(config.from_json(Training, rest), model=model)


def _without_folders(settings: Any) -> Any:
    """The settings with every path cut to its last part."""
    if isinstance(settings, Path):
        return Path(settings.name)
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    names = [field.name for field in dataclasses.fields(settings)]
    return replace(settings, **{n: _without_folders(getattr(settings, n)) for n in names})


def _records_of_runs(settings: Any) -> list[dict[str, Any]]:
    """Records of the runs that settings name: of the ordinary classifier of OC-CSE and P-NOC."""
    if isinstance(settings, Path):
        path = settings / "settings.json"
        return [read_json(path)] if path.is_file() else []
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return []
    parts = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    return [record for part in parts for record in _records_of_runs(part)]


def _check_classes(source: Source, allowed: tuple[str, ...]) -> None:
    """ValueError naming the classes that no image shows, unless they are allowed for."""
    for name in allowed:
        config.lookup(dict.fromkeys(source.classes.names), name, "class (setting imageless)")
    labels = []
    for id in source.ids:
        with suppress(BadFileError):  # the batches name it and why
            labels.append(source.labels(id))
    table = np.array(labels, bool).reshape(len(labels), len(source.classes))
    names = np.asarray(source.classes.names)
    for name in names[table.all(axis=0)] if len(table) else ():
        print(
            f"notice: every photograph of {source.name} shows {name}, so nothing teaches what is "
            f"not {name}; add photographs without it, with labels that leave it out"
        )
    missing = [name for name in names[~table.any(axis=0)].tolist() if name not in allowed]
    if missing:
        raise UserError(
            f"{source.name}: no image shows {', '.join(missing)}, so nothing can be learned of "
            "them; take another split or, where this is meant, name them in the setting imageless"
        )
