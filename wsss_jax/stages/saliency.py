"""Saliency of our own: foreground by contrast (C2AM), with hints from score maps (C2AM-H).

What is made are score maps of the one class of ``data.classes.SALIENCY``, so they can stand
wherever another tool's saliency can, and 8-bit grey PNGs for other tools. Hints come from any store
of class scores; labels and true masks are not read.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image
from scipy.special import expit

from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import Group, MaskReader
from wsss_jax.config import Record, as_json
from wsss_jax.data import stores
from wsss_jax.data.classes import SALIENCY
from wsss_jax.data.files import path_of, write_atomic
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.ops.resize import resize
from wsss_jax.run import dense, folders, training
from wsss_jax.run.dense import Asked, Dense
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each
from wsss_jax.run.training import Training
from wsss_jax.systems import on_backbone, saliency
from wsss_jax.systems.saliency import LEVELS, Contrast
from wsss_jax.types import ScoreMaps, Size


def defaults() -> Training[Contrast]:
    """C2AM for ten epochs, as CCAM: no change of colours, crops of 448 from a long side of 512.

    Batches hold 128 images (CCAM); at least 32, since every image is compared with every other.
    """
    view = Augmentation(
        crop=448, long_side=(512, 512), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    )
    return Training(Contrast(), view, epochs=10, batch_size=128)


@dataclass(frozen=True)
class Looking(Asked):
    """How a trained network is asked for saliency.

    Attributes:
        reading: probability is the logistic function of the logits. peak is the positive part of
            the logits divided by its maximum, as in CCAM and P-NOC; their thresholds 0.3 and 0.2
            are of this.
    """

    reading: Literal["probability", "peak"] = "probability"


def fit(source: Source, settings: Training[Contrast], folder: Path, *, hints: Store | None) -> Path:
    """Train on photographs and hints into ``folder``, or go on with a run that was stopped.

    hints: store of class scores for C2AM-H, None for C2AM. Raises UserError where hints and
    ``model.hint_weight`` do not go together, where hints of some images are missing (naming them),
    and when the folder holds a run with other settings.
    """
    notes = notes_of(settings.model, hints)
    masks = None if hints is None else hint_reader(hints, source)
    seen = views.agnostic(source)
    return training.train(settings, seen, folder, saliency.make, notes=notes, masks=masks)


def notes_of(model: Contrast, hints: Store | None) -> Record:
    """What the record of a run has besides its settings: C2AM or C2AM-H, and its hints."""
    if (hints is not None) != (model.hint_weight > 0):
        raise UserError(
            f"model.hint_weight is {model.hint_weight}, and there are "
            f"{'no ' if hints is None else ''}hints; C2AM-H wants both, C2AM neither"
        )
    if hints is None:
        return {"system": "c2am", "hints": None}
    return {"system": "c2am_h", "hints": {"store": hints.folder.name, "by": hints.made_by}}


def hint_reader(hints: Store, source: Source) -> MaskReader:
    """Largest class score per pixel as a byte plane, score × LEVELS, of the photograph's size.

    Raises ValueError for a store of masks or logits, or one that lacks images of the source.
    """
    check_scores(hints, source, "hints")

    def read(id: str) -> UInt8[np.ndarray, "H W"]:
        maps = hints.get_scores(id)
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        most = resize(maps.scores.max(axis=-1, keepdims=True), maps.size)[..., 0]
        return np.round(LEVELS * np.clip(most, 0, 1)).astype(np.uint8)

    return read


def check_scores(store: Store, source: Source, what: str) -> None:
    """ValueError for a store of masks or logits, or one that lacks images of the source.

    what: what its maps are called in the message.
    """
    stores.require_scores(store, f"{what} are activations or probabilities")
    stores.require(store, source.ids, what)


def predict(
    run: Path, source: Source, folder: Path, settings: Looking, *, ids: tuple[str, ...]
) -> Store:
    """Saliency of ``ids`` into a store at ``folder``; finished images are kept.

    Images that cannot be read are skipped, printed, and listed.
    """
    record = folders.record_of(run, "run `wsss saliency`")
    target = stores.create(
        folder,
        holds="scores",
        classes=SALIENCY.names,
        kind="probability",
        made_by={
            "stage": "saliency",
            **as_json(settings),
            "system": record["system"],
            "hints": record["hints"],
            **inherited(record),
        },
        parents=(run.name,),
    )
    if target.missing(ids):
        model = training.recorded(record, Contrast).model
        state = folders.last_state(run, saliency.template(model))
        logits = partial(_logits, model)
        network = Dense(logits, state, model.output_stride, on_backbone.lean(model))
        maps = partial(_read_as, READINGS[settings.reading])
        seen = views.photographs(source)
        dense.fill([(target, maps)], seen, ids, network=network, asked=settings)
    return target


def by_probability(logits: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The logistic function of the logits."""
    return expit(logits)


def by_peak(logits: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The positive part of the logits, divided by its maximum; zero where nothing is positive."""
    positive = np.maximum(logits, 0)
    return positive / (positive.max() + np.float32(1e-5))


READINGS = MappingProxyType({"probability": by_probability, "peak": by_peak})
"""From mean logits to saliency in [0, 1]."""


def write_pngs(
    store: Store, folder: Path, *, ids: tuple[str, ...], workers: Workers | None = None
) -> Path:
    """8-bit grey pictures of the photographs' size, 255 for certain foreground; none twice."""
    missing = [id for id in ids if not path_of(folder, id, ".png").exists()]
    function = partial(_write_png, store=store, folder=folder)
    tally = each(f"png {folder.name}", function, missing, workers=workers or Workers())
    tally.report(folder.name)
    return folder


def _write_png(id: str, *, store: Store, folder: Path) -> None:
    maps = store.get_scores(id)
    whole = resize(maps.scores, maps.size)[..., 0]
    buffer = io.BytesIO()
    grey = np.round(255 * np.clip(whole, 0, 1)).astype(np.uint8)
    Image.fromarray(grey).save(buffer, "PNG")
    write_atomic(path_of(folder, id, ".png"), buffer.getvalue())


def _logits(
    model: Contrast, state: saliency.ContrastState, images: Array, inside: Bool[Array, "b H W"]
) -> Float[Array, "b h w 1"]:
    return saliency.foreground(model, state, images, inside)[..., None]


def _read_as(
    reading: Callable[[np.ndarray], np.ndarray],
    logits: Float[np.ndarray, "h w c"],
    group: Group,
    row: int,
    size: Size,
) -> ScoreMaps:
    scores = reading(logits[..., 0])[..., None].astype(np.float32)
    peak = scores.max(axis=(0, 1))
    return ScoreMaps(scores, np.zeros(1, np.int32), size, peak, "probability")
