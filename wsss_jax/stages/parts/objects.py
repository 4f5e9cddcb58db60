"""A saliency network of our own, with an edge head, learned from certain masks.

Two stores of masks teach: what is an object (decided from C2AM-H's maps, for instance by
``labels.make_labels``), and which classes meet where (confident pseudo-masks). IGNORE is what they
are not sure of. Two stores of score maps come out, saliency and edges, for the random walk, the
combiner, or other tools.
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import expit

from wsss_jax.batches.batches import Group, MaskReader
from wsss_jax.config import Record, as_json
from wsss_jax.data import stores
from wsss_jax.data.classes import EDGES, SALIENCY
from wsss_jax.data.photographs import working_size
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops import boundaries
from wsss_jax.run import dense, folders, training
from wsss_jax.run.dense import Dense
from wsss_jax.run.training import Training
from wsss_jax.stages import segment
from wsss_jax.stages.saliency import Looking, check_scores
from wsss_jax.stages.segment import Teacher
from wsss_jax.systems import objects
from wsss_jax.systems.objects import Objects
from wsss_jax.types import IGNORE, ScoreMaps, Size

DRAWN = 0.5
"""Share of people from which on a pixel that they drew is an edge (RCF's η on BSDS)."""


def defaults() -> Training[Objects]:
    """The network for nine epochs in batches of ten (P-NOC's PoolNet: 10 images one by one).

    PoolNet's only augmentation are mirror images.
    """
    return Training(Objects(), epochs=9, batch_size=10)


def fit(
    source: Source,
    settings: Training[Objects],
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
        raise UserError(
            "edges are learned from masks of classes or from boundary maps; give one of them"
        )
    salient = segment.pseudo_masks(proposals, views.agnostic(source))
    classed = None if classes is None else segment.pseudo_masks(classes, source)
    drawn = None if edges is None else drawn_edges(edges, source)
    notes = {
        "proposals": salient.record,
        "classes": None if classed is None else classed.record,
        **({} if drawn is None else {"edges": drawn.record}),
    }
    second = drawn or classed
    masks = _both(salient.masks, None if second is None else second.masks)
    make = partial(objects.make, drawn=drawn is not None)
    seen = views.agnostic(source)
    return training.train(settings, seen, folder, make, notes=notes, masks=masks)


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

    Both are the logistic function of the mean logits, whatever ``settings.reading`` asks of
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


def _network_of(run: Path, record: Record) -> Dense:
    model = training.recorded(record, Objects).model
    state = folders.last_state(run, objects.template(model))
    return Dense(partial(objects.logits, model), state, objects.STRIDE, objects.LEAN)


def _channel(
    channel: int, logits: Float[np.ndarray, "h w c"], group: Group, row: int, size: Size
) -> ScoreMaps:
    scores = expit(logits[..., channel : channel + 1]).astype(np.float32)
    return ScoreMaps(scores, np.zeros(1, np.int32), size, scores.max(axis=(0, 1)), "probability")
