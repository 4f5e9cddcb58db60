"""Fusion of several systems' score maps, by a closed-form rule and with a saliency cue."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from wsss_jax.config import as_json, lookup
from wsss_jax.data import stores
from wsss_jax.data.datasets import Source
from wsss_jax.data.stores import Store
from wsss_jax.errors import UserError
from wsss_jax.ops import fuse
from wsss_jax.ops.resize import resize
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each, settle
from wsss_jax.types import ScoreMaps, Size


@dataclass(frozen=True)
class Fusion:
    """How maps become one.

    Attributes:
        rule: a name of FUSIONS.
        renormalise: divide each fused class by its maximum, so that one fixed threshold suits
            every rule; votes and posteriors are better left as they are.
    """

    rule: str = "mean"
    renormalise: bool = True


def combine(
    systems: Sequence[Store],
    source: Source,
    folder: Path,
    fusion: Fusion,
    *,
    ids: tuple[str, ...],
    saliency: Store | None = None,
    workers: Workers | None = None,
) -> Store:
    """Fuse the systems' maps of ``ids`` into a store at ``folder``.

    The classes of an image are its labels; a system that lacks one has no say in it. With
    ``saliency`` the fused scores are multiplied by 0.5 + 0.5 saliency; an image without saliency is
    skipped and listed, since its scores would not compare with the others'.
    """
    lookup(fuse.FUSIONS, fusion.rule, "fusion rule")
    stores.check_systems(systems, source.classes.names)
    cue = (saliency.folder.name,) if saliency else ()
    target = stores.create(
        folder,
        holds="scores",
        classes=systems[0].classes,
        made_by={
            "stage": "combine",
            **as_json(fusion),
            "saliency": list(cue),
            **stores.masks_read(*systems, saliency),
        },
        parents=(*(store.folder.name for store in systems), *cue),
    )
    function = partial(
        _fuse_one, systems=tuple(systems), source=source, to=target, fusion=fusion, cue=saliency
    )
    missing = target.missing(ids)
    tally = each(f"fuse {folder.name}", function, missing, workers=workers or Workers())
    settle(target, tally)
    return target


def _fuse_one(
    id: str,
    *,
    systems: tuple[Store, ...],
    source: Source,
    to: Store,
    fusion: Fusion,
    cue: Store | None,
) -> None:
    classes = np.flatnonzero(source.labels(id)).astype(np.int32)
    maps = [store.get_scores(id) for store in systems]
    scores, available = stacked(maps, classes)
    fused = scores[0] if len(maps) == 1 else fuse.apply(fusion.rule, scores, available)
    if cue is not None and len(classes):
        saliency = resize(cue.get_scores(id).scores, fused.shape[:2])[..., 0]
        fused = np.asarray(fuse.with_saliency(fused, saliency), np.float32)
    if fusion.renormalise and fused.size:
        peaks = fused.max(axis=(0, 1), keepdims=True)
        fused = fused / np.where(peaks > 0, peaks, 1)
    peak = _mean_peak(maps, classes)
    to.put_scores(id, ScoreMaps(fused.astype(np.float32), classes, maps[0].size, peak))


def stacked(
    maps: Sequence[ScoreMaps], classes: np.ndarray
) -> tuple[Float[np.ndarray, "s h w k"], Bool[np.ndarray, "s k"]]:
    """All systems' scores of the given classes on the finest grid, and who has which class.

    Raises ValueError when the maps are of photographs of different sizes.
    """
    sizes = {item.size for item in maps}
    if len(sizes) > 1:
        raise UserError(f"systems disagree about the photograph's size: {sorted(sizes)}")
    grid: Size = max((item.scores.shape[:2] for item in maps), key=lambda s: s[0] * s[1])
    scores = np.zeros((len(maps), *grid, len(classes)), np.float32)
    available = np.zeros((len(maps), len(classes)), bool)
    for row, item in enumerate(maps):
        enlarged = resize(item.scores, grid)
        for column, label in enumerate(classes):
            found = np.flatnonzero(item.classes == label)
            if len(found):
                scores[row, ..., column] = np.clip(enlarged[..., found[0]], 0, 1)
                available[row, column] = True
    return scores, available


def _mean_peak(maps: Sequence[ScoreMaps], classes: np.ndarray) -> Float[np.ndarray, " k"]:
    peaks = [
        [float(item.peak[item.classes == label][0]) for item in maps if label in item.classes]
        for label in classes
    ]
    return np.asarray([np.mean(values) if values else 0.0 for values in peaks], np.float32)
