"""Training of an affinity network from affinity labels, and the trained network on photographs."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from wsss_jax.config import Record
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.run import folders, training
from wsss_jax.run.training import Training
from wsss_jax.stages import segment
from wsss_jax.systems import affinity
from wsss_jax.systems.affinity import AffinityNet
from wsss_jax.train.state import Weights

_HOW = "run `wsss affinity`"


class Learned(NamedTuple):
    """A trained network: its settings, and (parameters, rest of the state)."""

    model: AffinityNet
    weights: Weights


def learn_affinity(
    source: Source, labels: Store, settings: Training[AffinityNet], folder: Path
) -> Path:
    """Train on the source's photographs and their affinity labels into ``folder``, or go on.

    Raises UserError for labels of other classes or without some of the images, naming them, and
    when the folder holds a run of other settings, data or labels.
    """
    teacher = segment.pseudo_masks(labels, source)
    notes = {"learned_from": teacher.record}
    return training.train(settings, source, folder, affinity.make, notes=notes, masks=teacher.masks)


def run_sources(folder: Path) -> Record:
    """True masks, weights and maps of others that a run rests on, as it is recorded."""
    return inherited(folders.record_of(folder, _HOW))


@cache
def learned(folder: Path) -> Learned:
    """The network of a finished run, read once per process. BadFileError where there is none."""
    record = folders.record_of(folder, _HOW)
    model = training.recorded(record, AffinityNet).model
    state = folders.last_state(folder, affinity.template(model))
    return Learned(model, (state.averaged, state.stats))
