"""Training of one system into a run folder: settings.json, metrics.jsonl and checkpoint/."""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, PyTree

from wsss_jax import config
from wsss_jax.config import Record
from wsss_jax.data.classes import ClassList
from wsss_jax.data.provenance import recorded
from wsss_jax.datasets.boxes import BOXES, Reader, reader_of
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.formats.bounded import one_error
from wsss_jax.run import folders, training
from wsss_jax.run.training import Training
from wsss_jax.systems import SYSTEMS, Classifier, Model, name_of


def fit(
    source: Source,
    settings: Training[Model],
    folder: Path,
    *,
    imageless: tuple[str, ...] = (),
    boxes: Reader | None = None,
) -> Path:
    """Train on the source's image labels, or go on with a run that was stopped; returns ``folder``.

    imageless: classes that may be without any image. boxes: of objects, for a system that learns
    from them; the data set's own where none are given. A balanced loss (``ClassLoss``) is told how
    many images show each class. Raises UserError when the folder holds a run with other settings,
    naming them, and when no image shows some other class, naming it.
    """
    settings = replace(settings, model=counted(settings.model, source))
    system = name_of(settings.model)
    if not folders.is_finished(folder):
        _check_classes(source, imageless)
        boxes = (boxes or reader_of(source)) if SYSTEMS[system].boxes else None
    make = partial(SYSTEMS[system].make, classes=len(source.classes))
    notes = notes_of(settings.model, source)
    return training.train(settings, source, folder, make, notes=notes, boxes=boxes)


def counted(model: Model, source: Source) -> Model:
    """The settings whose loss knows how many images show each class, where it asks for that."""
    own = model if isinstance(model, Classifier) else model.classifier
    if own.loss.balance == "none":
        return model
    own = replace(own, loss=own.loss.counted(_labels(source)))
    return own if isinstance(model, Classifier) else replace(model, classifier=own)


def notes_of(model: Model, source: Source) -> Record:
    """What the record of a run has besides its settings: the system and the classes."""
    system = name_of(model)
    given = {"boxes": recorded(BOXES)} if SYSTEMS[system].boxes else {}
    return {"system": system, "classes": list(source.classes.names), **given}


def trained(folder: Path) -> tuple[Training[Model], ClassList, PyTree]:
    """Settings, classes and final state of a finished run. BadFileError where there is none."""
    record = folders.record_of(folder, "run `wsss train`")
    with one_error(folder / "settings.json", "is no record of a training"):
        settings = training_of(record)
        classes = ClassList(tuple(record["classes"]))
        template = SYSTEMS[name_of(settings.model)].template(settings.model, len(classes))
    return settings, classes, folders.last_state(folder, template)


def training_of(record: Record) -> Training[Model]:
    """The settings in the record of a run folder.

    Raises ValueError for a system or a setting that does not exist.
    """
    entry = config.lookup(SYSTEMS, record.get("system", ""), "system")
    return training.recorded(record, entry.settings)


def _labels(source: Source) -> Bool[np.ndarray, "n c"]:
    """The labels of all images that have any; the batches name the others and why."""
    labels = []
    for id in source.ids:
        with suppress(BadFileError):
            labels.append(source.labels(id))
    return np.array(labels, bool).reshape(len(labels), len(source.classes))


def _check_classes(source: Source, allowed: tuple[str, ...]) -> None:
    """ValueError naming the classes that no image shows, unless they are allowed for."""
    for name in allowed:
        config.lookup(dict.fromkeys(source.classes.names), name, "class (imageless)")
    table = _labels(source)
    names = np.asarray(source.classes.names)
    for name in names[table.all(axis=0)] if len(table) else ():
        print(
            f"notice: every photograph of {source.name} shows {name}, so the network cannot learn "
            f"what {name} is; add photographs without it, with labels that leave it out"
        )
    missing = [name for name in names[~table.any(axis=0)].tolist() if name not in allowed]
    if missing:
        raise UserError(
            f"{source.name}: no image shows {', '.join(missing)}, so nothing can be learned of "
            "them; take another split or, where this is meant, name them with --imageless"
        )
