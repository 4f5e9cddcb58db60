"""From a trained classifier to score maps of every image: scales, mirror images, one grid."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.batches.batches import Group
from wsss_jax.config import as_json, check_numbers, lookup
from wsss_jax.data import stores
from wsss_jax.data.classes import difference
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.explain import multiscale, normalise
from wsss_jax.ops.resize import grid_size
from wsss_jax.run import folders
from wsss_jax.run.images import settle
from wsss_jax.run.photographs import over_photographs
from wsss_jax.stages.parts.subject import Method, subject_of
from wsss_jax.train.state import Weights
from wsss_jax.types import Batch, ScoreMaps, Size


@dataclass(frozen=True)
class Explanation:
    """Which maps are made.

    Attributes:
        method: a name of EXPLAINERS; of a class token, one of ATTENTION_EXPLAINERS, or one that
            needs only features and head, or the image alone.
        scales: of the photograph's size; maps are summed over them.
            Photographs above 724×724 pixels are limited to 2 megapixels at every scale.
        flip: add the mirror image at each scale.
        batch_size: images per call.
    """

    method: str = "cam"
    scales: tuple[float, ...] = (0.5, 1.0, 1.5)
    flip: bool = True
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_numbers(self, "batch_size")
        check_numbers(self, "scales", least=0.01)
        if not self.scales:
            raise UserError("scales are none; wanted one or more")


def explain(
    run: Path, source: Source, folder: Path, settings: Explanation, *, ids: tuple[str, ...]
) -> Store:
    """Explain the labels of ``ids`` by a trained run into a store at ``folder``.

    Scores have maximum 1 per class, their maximum before that is kept as the peak. Images that
    cannot be read are skipped, printed, and listed; finished ones are kept.
    """
    record = folders.record_of(run, "run `wsss train`")
    target = stores.create(
        folder,
        holds="scores",
        classes=source.classes.names,
        made_by={
            "stage": "explain",
            "run": folders.ending(run),
            **as_json(settings),
            **inherited(record),
        },
        parents=(run.name,),
    )
    missing = target.missing(ids)
    if not missing:
        return target
    maps_of = _explainer_of(run, source, settings)

    def write(group: Group) -> int:
        for id, maps in zip(group.ids, maps_of(group), strict=True):
            target.put_scores(id, maps)
        return len(group.ids)

    tally = over_photographs(
        f"explain {folder.name}",
        source,
        missing,
        write,
        scales=settings.scales,
        batch_size=settings.batch_size,
    )
    settle(target, tally)
    return target


def _explainer_of(
    run: Path, source: Source, settings: Explanation
) -> Callable[[Group], list[ScoreMaps]]:
    asked = subject_of(run)
    classes = asked.classes
    if classes.names != source.classes.names:
        raise UserError(
            f"{run} was trained with {difference(classes.names, source.classes.names)}; explain "
            "with the data set it was trained on"
        )
    method = lookup(asked.methods, settings.method, "explanation method of this network")
    step = jax.jit(
        partial(_scale, method=method, lean=asked.lean, flip=settings.flip),
        static_argnames="canvas",
    )
    return lambda group: _explained(group, partial(step, asked.weights))


def _scale(
    weights: Weights,
    batch: Batch,
    photographs: Array,
    *,
    canvas: Size,
    method: Method,
    lean: float,
    flip: bool,
) -> Float[Array, "b h w c"]:
    return multiscale.explain_scale(
        partial(method, weights),
        batch.images,
        batch.inside,
        batch.labels,
        photographs=photographs,
        canvas=canvas,
        lean=lean,
        flip=flip,
    )


def _explained(group: Group, scale: Callable[..., Array]) -> list[ScoreMaps]:
    grids = [grid_size((int(h), int(w))) for h, w in group.sizes]
    photographs = jnp.asarray(group.sizes, jnp.int32)
    canvas = multiscale.full_canvas(group.scaled[0].images.shape[1:3], group.scales[0])
    parts = [scale(batch, photographs, canvas=canvas) for batch in group.scaled]
    scores, peaks = normalise.by_peak(multiscale.sum_of(parts))
    return [_score_maps(row, scores, peaks, group, grids[row]) for row in range(len(group.ids))]


def _score_maps(
    row: int, scores: np.ndarray, peaks: np.ndarray, group: Group, grid: Size
) -> ScoreMaps:
    classes = np.flatnonzero(group.labels[row]).astype(np.int32)
    height, width = int(group.full[row][0]), int(group.full[row][1])
    kept = scores[row, : grid[0], : grid[1]][..., classes]
    return ScoreMaps(np.ascontiguousarray(kept), classes, (height, width), peaks[row][classes])
