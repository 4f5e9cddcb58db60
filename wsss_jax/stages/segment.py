"""The end of the path: a segmentation network learned from masks, and its predictions.

Masks come from a store that earlier stages made. True masks are another teacher, for the upper
bound of full supervision: every record and store of such a run tells so. Prediction reads
photographs alone, neither labels nor truth, unless it is told to predict the labelled classes only.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import softmax

from wsss_jax.batches.batches import Group, MaskReader
from wsss_jax.config import Record, as_json
from wsss_jax.data import stores
from wsss_jax.data.provenance import NOT_STATED, inherited, recorded
from wsss_jax.data.stores import Store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.run import dense, folders, training
from wsss_jax.run.dense import Asked, Dense
from wsss_jax.run.training import Training
from wsss_jax.systems import on_backbone, pixels
from wsss_jax.systems.pixels import Segmenter
from wsss_jax.types import IGNORE, Provenance, ScoreMaps, Size

TRUTH = "true masks of every pixel: full supervision, an upper bound"
"""What records hold of a network that learned from true masks."""


def defaults() -> Training[Segmenter]:
    """DeepLabV3+ for 15 epochs, as P-NOC (Puzzle-CAM: 50); P-NOC crops 512 of 320 to 640."""
    return Training(Segmenter(), epochs=15)


@dataclass(frozen=True)
class Prediction(Asked):
    """How a trained segmentation network is asked.

    Attributes:
        among: every class, or only those the image is labelled with (for the training images).
    """

    among: Literal["every", "labelled"] = "every"


class Teacher(NamedTuple):
    """Where masks come from, and what records tell of it."""

    masks: MaskReader
    record: Record


def pseudo_masks(store: Store, source: Source) -> Teacher:
    """The masks of a store as teacher of the source's images.

    Raises ValueError for a store of scores, of other classes, or without the masks of some images
    of the source, naming them.
    """
    if store.holds != "masks":
        raise UserError(f"{store.folder} holds {store.holds}; decide masks first (`wsss masks`)")
    stores.require_classes(store, source.classes.names)
    stores.require(store, source.ids, "masks")
    record = {
        "masks": store.folder.name,
        "made_by": dict(store.made_by),
        "parents": list(store.parents),
        "made_of": stores.marks([store]),
    }
    return Teacher(_checked(store.get_mask, len(source.classes)), record)


def truth(source: Source) -> Teacher:
    """The source's own true masks as teacher: not weak supervision, but its upper bound."""

    taught = recorded(Provenance(source.name, NOT_STATED, "true masks"))

    def read(id: str) -> UInt8[np.ndarray, "H W"]:
        mask = source.mask(id)
        if mask is None:
            raise MissingFileError(f"{id}: no true mask, so it cannot be learned from")
        return mask

    return Teacher(_checked(read, len(source.classes)), {"masks": TRUTH, **taught})


def fit(source: Source, teacher: Teacher, settings: Training[Segmenter], folder: Path) -> Path:
    """Train on the source's photographs and the teacher's masks into ``folder``, or go on with it.

    Raises UserError when the folder holds a run of other settings, data or teacher, naming them.
    """
    make = partial(pixels.make, classes=len(source.classes))
    notes = notes_of(source, teacher)
    return training.train(settings, source, folder, make, notes=notes, masks=teacher.masks)


def notes_of(source: Source, teacher: Teacher) -> Record:
    """What the record of a run has besides its settings: the classes, and where masks came from."""
    return {"classes": list(source.classes.names), "learned_from": teacher.record}


def predict(
    run: Path,
    source: Source,
    folder: Path,
    settings: Prediction,
    *,
    ids: tuple[str, ...],
    shard: tuple[int, int] = (0, 1),
) -> Store:
    """Probabilities of the classes on ``ids`` into a store at ``folder``; finished ones are kept.

    Background is what the classes leave of 1. A class is kept where it could win a pixel: where
    its probability is at least 1 / (C + 1) somewhere. The others' share is dealt out over what is
    kept, background included, so that no decision changes. The peak is a class's largest
    probability before that. Images that cannot be read are skipped, printed, and listed. shard:
    (index, count) of the share of all images that ``ids`` are.
    """
    record = folders.record_of(run, "run `wsss segment`")
    if tuple(record["classes"]) != source.classes.names:
        raise UserError(
            f"{run} was trained on {len(record['classes'])} classes, the data set has "
            f"{len(source.classes)}; predict on the data set it was trained for"
        )
    asked = as_json(settings)
    del asked["batch_size"]  # which may be lowered where memory ran out
    made_by = {"stage": "segment", **asked, "learned_from": record["learned_from"]}
    made_by |= inherited(record)
    target = stores.create(
        folder,
        holds="scores",
        classes=source.classes.names,
        kind="probability",
        made_by=made_by,
        parents=(run.name,),
    )
    if target.missing(ids):
        seen = source if settings.among == "labelled" else views.photographs(source)
        maps = _labelled if settings.among == "labelled" else _every
        network = _network_of(run, record)
        dense.fill([(target, maps)], seen, ids, network=network, asked=settings, shard=shard)
    return target


def probabilities(
    shares: Float[np.ndarray, "h w c"], size: Size, among: np.ndarray | None = None
) -> ScoreMaps:
    """Score maps from probabilities over background (the first) and all classes, as ``predict``.

    among: (C,) bool, the classes an image may show; by default those that could win a pixel.
    """
    peaks = shares[..., 1:].max(axis=(0, 1))
    chosen = peaks >= 1 / shares.shape[-1] if among is None else among
    classes = np.flatnonzero(chosen).astype(np.int32)
    kept = shares[..., 1:][..., classes]
    total = shares[..., :1] + kept.sum(axis=-1, keepdims=True)
    scores = kept / np.maximum(total, np.finfo(np.float32).tiny)
    return ScoreMaps(scores, classes, size, peaks[classes], "probability")


def _checked(read: MaskReader, classes: int) -> MaskReader:
    """The same reader, which refuses values that are no class."""

    def mask(id: str) -> UInt8[np.ndarray, "H W"]:
        found = read(id)
        wrong = (found > classes) & (found != IGNORE)
        if wrong.any():
            raise BadFileError(f"{id}: mask value {found[wrong].max()} of {classes} classes")
        return found

    return mask


def _every(logits: Float[np.ndarray, "h w c"], group: Group, row: int, size: Size) -> ScoreMaps:
    return probabilities(softmax(logits, axis=-1), size)


def _labelled(logits: Float[np.ndarray, "h w c"], group: Group, row: int, size: Size) -> ScoreMaps:
    return probabilities(softmax(logits, axis=-1), size, group.labels[row])


def _network_of(run: Path, record: Record) -> Dense:
    model = training.recorded(record, Segmenter).model
    classes = len(record["classes"])
    state = folders.last_state(run, pixels.template(model, classes))
    logits = partial(pixels.scores, pixels.structure(model, classes))
    return Dense(logits, (state.averaged, state.stats), pixels.STRIDE, on_backbone.lean(model))
