"""The last step before a segmentation network: score maps to pseudo-masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import UInt8

from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.ops import masks
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each, settle
from wsss_jax.run.thresholds import label_free_threshold, strips
from wsss_jax.stages.evaluate import Result, Scoring, evaluate, fixed_threshold
from wsss_jax.types import IGNORE, ScoreMaps


@dataclass(frozen=True)
class Masking:
    """Where a mask has background, and what it leaves open.

    Attributes:
        threshold: score that a pixel's best class must exceed. otsu is Otsu's threshold of the
            store's activations, and a half for probabilities; neither reads a mask.
        certain: of probabilities: pixels become 255, which training ignores, if neither background
            nor the best class has this share of the sum of both (CLIP-ES: 0.95).
        background: whether pixels may show no class; without it every pixel gets its best class.
    """

    threshold: float | Literal["otsu"] = "otsu"
    certain: float = 0.0
    background: bool = True

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("certain", self.certain)):
            if not isinstance(value, str) and not 0 <= value < 1:
                raise UserError(f"{name} is {value}; wanted a share in [0, 1)")
        if self.certain and not self.background:
            raise UserError("certainty is told from background, and there is to be none")


def command(
    store: tyro.conf.Positional[Path],
    out: Path,
    settings: Annotated[Masking, tyro.conf.arg(name="")] = Masking(),
    workers: Workers = Workers(),  # noqa: B008
) -> None:
    """Write the pseudo-masks of a store of score maps: palette PNGs at the photographs' size.

    Args:
        store: score maps, of one system or combined.
        out: store of masks to write, for `wsss segment` or `wsss export`.
        settings: where background begins, and which pixels are left open.
        workers: processes and shards.
    """
    maps = open_store(store)
    stores.require_scores(maps, "wanted activations or probabilities")
    if not maps.ids():
        raise UserError(f"{store}: no records in it; run the stage that makes it")
    if settings.threshold == "otsu":
        found = 0.5 if maps.kind == "probability" else label_free_threshold(maps, maps.ids())
        if found is None:
            raise UserError(f"{store}: all scores are equal; give --threshold a number")
        settings = replace(settings, threshold=round(found, 2))
    print(decide(maps, out, settings, ids=maps.ids(), workers=workers).folder)


def fixed(store: Store, scoring: Scoring) -> Masking:
    """Masks as they are judged: at the threshold that no truth has seen."""
    return Masking(fixed_threshold(store, scoring), background=scoring.background)


def decide(
    store: Store,
    folder: Path,
    settings: Masking,
    *,
    ids: tuple[str, ...],
    workers: Workers | None = None,
) -> Store:
    """Write palette PNGs at the photographs' size; ``settings.threshold`` is a number.

    Raises ValueError where activations are asked to be certain.
    """
    if settings.certain and store.kind != "probability":
        raise UserError(
            f"{store.folder} holds activations, which tell nothing about certainty; combine them, "
            "or leave `certain` out"
        )
    target = stores.create(
        folder,
        holds="masks",
        classes=store.classes,
        made_by={"stage": "decide", **as_json(settings), **inherited(store)},
        parents=(store,),
    )
    function = partial(_decide_one, store=store, to=target, settings=settings)
    missing = target.missing(ids)
    tally = each(f"masks {folder.name}", function, missing, workers=workers or Workers())
    settle(target, tally)
    return target


def judged(
    stores: Sequence[Store], source: Source, scoring: Scoring, *, split: str, workers: Workers
) -> list[Result]:
    """Each store against true masks, at Otsu's threshold of its scores on these images too."""
    found = []
    for store in stores:
        otsu = label_free_threshold(store, source.ids) if scoring.background else None
        found.append(evaluate(store, source, scoring, split=split, otsu=otsu, workers=workers))
    return found


def mask_of(maps: ScoreMaps, settings: Masking) -> UInt8[np.ndarray, "H W"]:
    """The mask of one image: the best class above the threshold; without background, everywhere.

    Raises ValueError for a threshold that only a whole store can tell.
    """
    if settings.threshold == "otsu":
        raise UserError("one image tells no threshold; give a number")
    if not len(maps.classes):
        return np.zeros(maps.size, np.uint8)
    mask = np.empty(maps.size, np.uint8)
    for part, winner, score in strips(maps):
        if not settings.background:
            mask[part] = to_mask_index(winner)
            continue
        decided = masks.decide(winner, score, settings.threshold)
        unsure = np.maximum(score, 1 - score) < settings.certain
        mask[part] = np.where(unsure, np.uint8(IGNORE), decided)
    return mask


def _decide_one(id: str, *, store: Store, to: Store, settings: Masking) -> None:
    to.put_mask(id, mask_of(store.get_scores(id), settings))
