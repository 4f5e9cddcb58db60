"""A saliency network of our own, with an edge head beside it, learned from certain masks.

Two stores of masks teach: what is an object (decided from C2AM-H's maps, for instance by
``labels.make_labels``), and which classes meet where (confident pseudo-masks). IGNORE is what they
are not sure of. Two stores of score maps come out, saliency and edges, for the random walk, the
combiner, or other tools.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import expit

from wsss_jax import config
from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import Group, MaskReader, training_batches
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.classes import EDGES, SALIENCY
from wsss_jax.data.photographs import working_size
from wsss_jax.data.provenance import inherited, recorded
from wsss_jax.data.stores import Store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.models import recognise
from wsss_jax.ops import boundaries
from wsss_jax.run import dense, folders
from wsss_jax.run.dense import Dense
from wsss_jax.stages import segment
from wsss_jax.stages.saliency import Looking, check_scores
from wsss_jax.stages.segment import Teacher
from wsss_jax.systems import objects
from wsss_jax.systems.objects import Objects
from wsss_jax.types import IGNORE, ScoreMaps, Size

DRAWN = 0.5
"""Share of people from which on a pixel that they drew is an edge (RCF's η on BSDS)."""


@dataclass(frozen=True)
class ObjectTraining:
    """One network of saliency and edges, and how long it learns.

    Attributes:
        model: the network and its optimizer.
        augmentation: what happens to photographs and masks (PoolNet: mirror images alone).
        epochs: passes over the images (P-NOC: 9).
        batch_size: images per step, over all hosts (PoolNet: 10 one by one).
        seed: of the start, the order and the augmentation.
        save_every: steps between checkpoints.
        cache_megabytes: memory in which decoded photographs are kept.
    """

    model: Objects = field(default_factory=Objects)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 9
    batch_size: int = 10
    seed: int = 0
    save_every: int = 50
    cache_megabytes: int = 1024


def fit(
    source: Source,
    settings: ObjectTraining,
    folder: Path,
    *,
    proposals: Store,
    classes: Store | None = None,
    edges: Store | None = None,
) -> Path:
    """Train on photographs and masks into ``folder``, or go on with a run that was stopped.

    proposals: masks of 1 for objects, 0 for none. classes: masks of classes, whose boundaries
    teach the edges, or edges: boundary maps, which teach them themselves (``drawn_edges``); without
    either the edge head learns nothing. Raises ValueError for both, for stores that hold something
    else or lack images, naming them, and for a folder of other settings.
    """
    if classes is not None and edges is not None:
        raise UserError("edges are taught by classes' masks or by boundary maps; give one of them")
    salient = segment.pseudo_masks(proposals, views.agnostic(source))
    classed = None if classes is None else segment.pseudo_masks(classes, source)
    drawn = None if edges is None else drawn_edges(edges, source)
    settings = recognise.settled(settings, needed=not folders.is_finished(folder))
    chosen = as_json(settings)
    if settings.model.weights is not None:
        chosen["model"]["weights"] = settings.model.weights.name
    record = {
        "settings": chosen,
        "data": {"name": source.name, "images": len(source.ids)},
        "proposals": salient.record,
        "classes": None if classed is None else classed.record,
        **({} if drawn is None else {"edges": drawn.record}),
        **recorded(*recognise.provenances(settings)),
    }
    second = drawn or classed
    masks = _both(salient.masks, None if second is None else second.masks)
    with folders.claim(folder, record) as run:
        if not run.finished:
            _train(source, masks, settings, folder, drawn=drawn is not None)
    return folder


def _train(
    source: Source, masks: MaskReader, settings: ObjectTraining, folder: Path, *, drawn: bool
) -> None:
    batches = training_batches(
        views.agnostic(source),
        settings.augmentation,
        seed=settings.seed,
        batch_size=settings.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        masks=masks,
        cache_bytes=settings.cache_megabytes << 20,
    )
    steps = settings.epochs * batches.steps_per_epoch
    course = folders.Course(steps, settings.seed, settings.save_every)
    system = objects.make(settings.model, steps=steps, drawn=drawn)
    folders.learn(system, batches, course, folder)


def drawn_edges(store: Store, source: Source) -> Teacher:
    """Boundary maps of a store as teacher: one map an image, the share of people who drew a pixel.

    Shares of DRAWN and more are edges, none at all is none, and what few have drawn teaches nothing
    (Liu et al. 2017, RCF, on BSDS). Raises ValueError for a store of masks, logits, several
    classes, or without some images of the source, naming them; reading raises BadFileError for maps
    coarser than the photograph.
    """
    check_scores(store, source, "boundary maps")
    if len(store.classes) != 1:
        raise UserError(f"{store.folder} has {len(store.classes)} classes; wanted one map an image")

    def read(id: str) -> UInt8[np.ndarray, "H W"]:
        maps = store.get_scores(id)
        if maps.scores.shape[:2] not in (maps.size, working_size(maps.size)):
            raise BadFileError(
                f"{store.folder}: the boundary map of {id} has {maps.scores.shape[:2]} cells for "
                f"{maps.size} pixels, where thin lines are lost; import it with --stride 1"
            )
        shares = maps.scores.max(axis=-1, initial=0)
        return np.where(shares >= DRAWN, 1, np.where(shares > 0, IGNORE, 0)).astype(np.uint8)

    record = {"maps": store.folder.name, "made_by": dict(store.made_by)}
    return Teacher(read, record)


def predict(
    run: Path,
    source: Source,
    targets: tuple[Path, Path],
    settings: Looking,
    *,
    ids: tuple[str, ...],
) -> tuple[Store, Store]:
    """Saliency and edges of ``ids`` into two stores of probabilities; finished images are kept.

    Both are the logistic function of the mean logits, whatever ``settings.reading`` says of
    networks that compare. Images that cannot be read are skipped, printed, and listed.
    """
    record = folders.record_of(run, "run `wsss saliency`")
    made_by = {"stage": "objects", **as_json(settings)} | {
        name: record[name] for name in ("proposals", "classes")
    }
    made_by |= inherited(record)
    saliency, edges = (
        stores.create(
            folder,
            holds="scores",
            classes=names,
            kind="probability",
            made_by=made_by,
            parents=(run.name,),
        )
        for folder, names in zip(targets, (SALIENCY.names, EDGES), strict=True)
    )
    if saliency.missing(ids) or edges.missing(ids):
        outputs = [(saliency, partial(_channel, 0)), (edges, partial(_channel, 1))]
        network, seen = _network_of(run, record), views.photographs(source)
        dense.fill(outputs, seen, ids, network=network, asked=settings)
    return saliency, edges


def _both(salient: MaskReader, classed: MaskReader | None) -> MaskReader:
    """One plane of both masks; without classes all of them are unknown."""

    def read(id: str) -> UInt8[np.ndarray, "H W"]:
        first = salient(id)
        second = np.full_like(first, IGNORE) if classed is None else classed(id)
        if first.shape != second.shape:
            raise BadFileError(f"{id}: masks of {first.shape} and of {second.shape}")
        return boundaries.packed(first, second)

    return read


def _network_of(run: Path, record: Mapping[str, Any]) -> Dense:
    model = config.from_json(ObjectTraining, record["settings"]).model
    state = folders.last_state(run, objects.template(model))
    return Dense(partial(objects.logits, model), state, objects.STRIDE, objects.LEAN)


def _channel(
    channel: int, logits: Float[np.ndarray, "h w c"], group: Group, row: int, size: Size
) -> ScoreMaps:
    scores = expit(logits[..., channel : channel + 1]).astype(np.float32)
    return ScoreMaps(scores, np.zeros(1, np.int32), size, scores.max(axis=(0, 1)), "probability")
