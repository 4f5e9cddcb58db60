"""The ordinary classifier that judges erased images: a plain classifier, trained before.

Source: OC-CSE (Kweon et al. 2021). Its run folder is read once, when training starts; from then on
it is part of the state, so that a finished run does not depend on that folder.
"""

from pathlib import Path
from typing import NamedTuple

from wsss_jax import config
from wsss_jax.data import json_records
from wsss_jax.errors import UserError
from wsss_jax.systems import classifier
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train import checkpoint
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.types import Variables


class Judge(NamedTuple):
    """Parameters and statistics of a network that does not learn."""

    params: Variables
    stats: Variables


def read(run: Path, wanted: Classifier, classes: int) -> Judge:
    """The trained network of a run. Its structure has to be that of ``wanted``.

    Raises ValueError where there is no finished run of a plain classifier, or one of another
    structure or number of classes, naming what differs.
    """
    path = run / "settings.json"
    if not path.is_file() or not (run / checkpoint.FINISHED).exists():
        raise UserError(
            f"{run}: no finished training run; train a plain classifier there first, it is the "
            "ordinary classifier that judges the erased images"
        )
    record = json_records.read(path, "settings", "classes")
    if record.get("system") != "vanilla":
        what = record.get("system", "no classifier")
        raise UserError(f"{run} trained {what}, wanted the run of a plain classifier")
    found = config.from_json(Classifier, record["settings"]["model"])
    differences = [
        f"{name} {getattr(found, name)!r}, wanted {getattr(wanted, name)!r}"
        for name in ("backbone", "output_stride", "head")
        if getattr(found, name) != getattr(wanted, name)
    ]
    if len(record["classes"]) != classes:
        differences.append(f"{len(record['classes'])} classes, wanted {classes}")
    if differences:
        raise UserError(
            f"{run} holds another network: {'; '.join(differences)}; say which with the setting "
            "ordinary_network, or train one that fits"
        )
    restored = Checkpoints(run / checkpoint.FOLDER).last(classifier.template(found, classes))
    damage = checkpoint.ended(run)
    if restored is None or damage is not None:
        raise UserError(f"{run}: {damage or 'finished, but without a checkpoint'}; train it again")
    return Judge(restored.state.averaged, restored.state.stats)


def shape(wanted: Classifier, classes: int) -> Judge:
    """The shapes of what ``read`` gives; reads nothing."""
    network = classifier.structure(wanted, classes)
    return Judge(network.params, network.stats)
