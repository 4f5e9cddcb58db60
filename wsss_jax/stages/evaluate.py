"""Evaluation of stores against true masks: the only stage that may read them.

One integer confusion matrix per image and threshold; every number is read off their sums. The
fixed threshold never saw a mask. Nor did the one that parts the scores themselves best, where it is
given (``run.thresholds.label_free_threshold``). The tuned one is the best on the truth of the very
split it is reported for, as the papers' tables have it: an upper bound, in a column of its own.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float, Int

from wsss_jax.config import Record, as_json
from wsss_jax.data.classes import BACKGROUND, ClassList, to_mask_index
from wsss_jax.data.files import write_atomic
from wsss_jax.data.provenance import inherited, recorded, sources_of
from wsss_jax.data.stores import Store, require_classes
from wsss_jax.datasets import numbering
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops import image_counts, intervals, metrics
from wsss_jax.ops.image_counts import Cells, ImageCounts
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import Tally, each
from wsss_jax.run.thresholds import strips
from wsss_jax.types import IGNORE, Provenance

GRID = tuple(round(0.02 * step, 2) for step in range(1, 50))
"""Thresholds of the curve; the tuned threshold is one of them."""


@dataclass(frozen=True)
class Scoring:
    """What counts, and where background begins.

    Attributes:
        classes: names of classes to average over; None: all, and background if there is one.
        background: whether pixels may show no class; without it every pixel gets a class.
        threshold: of activations, in [0, 1]; that of probabilities is a half.
    """

    classes: tuple[str, ...] | None = None
    background: bool = True
    threshold: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold}; wanted a score in [0, 1]")

    def on(self, source: Source) -> "Scoring":
        """The same for this data set: without background where it has none."""
        return replace(self, background=self.background and source.has_background)

    def indices(self, classes: ClassList) -> tuple[int, ...]:
        """The scored classes as mask indices. ValueError for a name the data set lacks."""
        names = self.classes or (BACKGROUND, *classes.names)
        wanted = [name for name in names if self.background or name != BACKGROUND]
        if not wanted:
            raise UserError("background alone is to be judged, and there is none; name classes")
        known = [0 if name == BACKGROUND else classes.index(name) + 1 for name in wanted]
        return tuple(known)


@dataclass(frozen=True)
class Result:
    """One store on one split: counts of each image at both thresholds, and the curve.

    otsu: the threshold of the curve that is nearest to the one read off the scores, if any.
    labelled: of how many images true masks were read to make it (the k-shot regime). sources: the
    weights and maps of others that it rests on.
    """

    name: str
    split: str
    fixed: float
    tuned: float
    at_fixed: ImageCounts
    at_tuned: ImageCounts
    curve: Float[np.ndarray, " t"]
    scored: tuple[int, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    otsu: float | None = None
    labelled: int = 0
    sources: tuple[Provenance, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The images that were judged, sorted."""
        return self.at_fixed.ids

    @property
    def counts(self) -> Int[np.ndarray, "images n n"]:
        """(C+1, C+1) of each image at the fixed threshold; of more than 2,000, of random groups."""
        return self.at_fixed.grouped()

    @property
    def counts_tuned(self) -> Int[np.ndarray, "images n n"]:
        """As ``counts``, at the tuned threshold."""
        return self.at_tuned.grouped()

    @property
    def supervision(self) -> str:
        """What people provided for the weights and maps of others, in a few words."""
        return "; ".join(dict.fromkeys(s.supervision for s in self.sources)) or "none recorded"

    def miou(self, *, tuned: bool = False) -> float:
        """Mean IoU over the scored classes, in [0, 1]."""
        counts = self.at_tuned if tuned else self.at_fixed
        return float(metrics.mean_iou(counts.total(), self.scored))

    def miou_at(self, threshold: float) -> float:
        """Mean IoU at the threshold of the curve that is nearest to this one, in [0, 1]."""
        return float(self.curve[_nearest(threshold)]) if len(self.curve) > 1 else self.miou()

    def interval(self) -> intervals.Interval:
        """Bootstrap interval of the mean IoU at the fixed threshold, over images."""
        metric = partial(metrics.mean_iou, scored=self.scored)
        return intervals.bootstrap_interval(self.counts, metric=metric)

    def gain(self, other: "Result", *, tuned: bool = False) -> intervals.Interval:
        """Paired bootstrap interval of our mean IoU less the other's, on the images both have."""
        shared = sorted(set(self.ids) & set(other.ids))
        pair = [
            (result.at_tuned if tuned else result.at_fixed).grouped(shared)
            for result in (self, other)
        ]
        metric = partial(metrics.mean_iou, scored=self.scored)
        return intervals.bootstrap_difference(pair[0], pair[1], metric=metric)


def evaluate(
    store: Store,
    source: Source,
    scoring: Scoring,
    *,
    split: str,
    otsu: float | None = None,
    workers: Workers | None = None,
) -> Result:
    """Judge the store's maps or masks on those images of the source that have truth.

    otsu: a threshold read off the scores, which is reported with the other two. Images without
    truth do not count; images without a record are skipped and named. Raises BadFileError when not
    one image could be judged, UserError where the store has other classes.
    """
    require_classes(store, source.classes.names)
    count = len(source.classes)
    thresholds = (0.5,) if store.holds == "masks" or not scoring.background else GRID
    found: dict[str, Cells] = {}
    function = partial(_judged, store=store, source=source, scoring=scoring, thresholds=thresholds)

    def keep(id: str, cells: Cells | None) -> None:
        if cells is not None:
            found[id] = cells

    tally = each(
        f"evaluate {store.folder.name} on {split}",
        function,
        source.ids,
        # The numbers are of the whole split, so a job array must not take a share of it each.
        workers=replace(workers or Workers(), shard=(0, 1)),
        collect=keep,
    )
    tally.report(f"{store.folder.name} on {split}", store.folder / split)
    _check_numbering(source, found, count + 1)
    return _result(
        found,
        thresholds,
        tally,
        store=store,
        scoring=scoring,
        split=split,
        count=count,
        classes=source.classes,
        otsu=otsu,
    )


def judge(
    id: str, *, store: Store, source: Source, scoring: Scoring, thresholds: Sequence[float]
) -> Int[np.ndarray, "t n n"] | None:
    """Counts of one image at every threshold; None where the image has no truth."""
    truth = source.mask(id)
    if truth is None:
        return None
    count = len(source.classes)
    if store.holds == "masks":
        mask = store.get_mask(id)
        if (mask == IGNORE).any():
            raise BadFileError(
                f"{store.folder}: {id}: pixels that are not decided (255); evaluate the maps that "
                "the masks are of, or masks without them"
            )
        return metrics.confusion(truth, mask, count).counts[None]
    maps = store.get_scores(id)
    if maps.size != truth.shape:
        raise BadFileError(f"{store.folder}: {id}: scores of size {maps.size}, truth {truth.shape}")
    if not len(maps.classes):
        empty = metrics.confusion(truth, np.zeros_like(truth), count).counts
        return np.broadcast_to(empty, (len(thresholds), *empty.shape))
    total = np.zeros((), np.int64)
    for part, winner, score in strips(maps):
        if scoring.background:
            own = metrics.threshold_confusions(
                truth[part], winner, score, thresholds, classes=count
            )
        else:
            everywhere = to_mask_index(winner).astype(np.uint8)
            own = metrics.confusion(truth[part], everywhere, count).counts[None]
        total = total + own
    return total


def _judged(
    id: str, *, store: Store, source: Source, scoring: Scoring, thresholds: Sequence[float]
) -> Cells | None:
    counts = judge(id, store=store, source=source, scoring=scoring, thresholds=thresholds)
    return None if counts is None else image_counts.cells_of(counts)


def _check_numbering(source: Source, found: Mapping[str, Cells], size: int) -> None:
    """BadFileError where true masks and image labels number the classes differently.

    Then a number would come out, and mean nothing.
    """
    labels: dict[str, np.ndarray] = {}
    for id in found:
        with suppress(BadFileError):  # without labels there is nothing to compare
            labels[id] = source.labels(id)
    occur = {id: np.unique(found[id].places // size).tolist() for id in labels}
    wrong = numbering.mistake(*numbering.table_of(occur, labels), source.classes)
    if wrong is not None:
        raise BadFileError(f"{source.name}: no number would mean anything: {wrong} (`wsss check`)")


def fixed_threshold(store: Store, scoring: Scoring) -> float:
    """The threshold no truth has seen: the setting for activations, 1/2 for probabilities."""
    return 0.5 if store.kind == "probability" else scoring.threshold


def _result(
    found: Mapping[str, Cells],
    thresholds: Sequence[float],
    tally: Tally,
    *,
    store: Store,
    scoring: Scoring,
    split: str,
    count: int,
    classes: ClassList,
    otsu: float | None,
) -> Result:
    if not found:
        reasons = "; ".join(f"{id}: {why}" for id, why in list(tally.skipped.items())[:3])
        raise BadFileError(
            f"no image of split {split} could be judged ({reasons or 'there are no true masks'})"
        )
    total = np.zeros((len(thresholds), (count + 1) ** 2), np.int64)
    for cells in found.values():
        total[:, cells.places] += cells.values
    scored = scoring.indices(classes)
    curve = metrics.mean_iou(total.reshape(-1, count + 1, count + 1), scored)
    if np.isnan(curve).all():
        names = ", ".join(classes.mask_names()[place] for place in scored)
        raise UserError(
            f"{names}: shown by no true mask of split {split} and by no map; name others"
        )
    fixed = fixed_threshold(store, scoring)
    at = int(np.argmin(np.abs(np.asarray(thresholds) - fixed)))
    best = int(np.nanargmax(curve))
    return Result(
        name=store.folder.name,
        split=split,
        fixed=float(thresholds[at]),
        tuned=float(thresholds[best]),
        at_fixed=image_counts.gathered(found, count + 1, at),
        at_tuned=image_counts.gathered(found, count + 1, best),
        curve=np.asarray(curve),
        scored=scored,
        skipped=dict(tally.skipped),
        otsu=None if otsu is None or len(thresholds) == 1 else GRID[_nearest(otsu)],
        labelled=len(inherited(store).get("labelled", ())),
        sources=sources_of(store),
    )


def _nearest(threshold: float) -> int:
    return int(np.argmin(np.abs(np.asarray(GRID) - threshold)))


def as_record(result: Result, classes: ClassList) -> Record:
    """The numbers of a result as JSON values, percent nowhere: fractions of 1."""
    names = classes.mask_names()
    interval = result.interval()

    def numbers(counts: ImageCounts) -> Record:
        total = counts.total()
        per_class = {
            name: {names[i]: _plain(values[i]) for i in result.scored}
            for name, values in (
                ("iou", metrics.iou(total)),
                ("precision", metrics.precision(total)),
                ("recall", metrics.recall(total)),
                ("f1", metrics.f1(total)),
            )
        }
        return {
            "miou": _plain(metrics.mean_iou(total, result.scored)),
            "pixel_accuracy": _plain(metrics.pixel_accuracy(total, result.scored)),
            "mean_f1": _plain(metrics.mean_over(metrics.f1(total), result.scored)),
            "per_class": per_class,
        }

    free = {}
    if result.otsu is not None:
        found = {"threshold": result.otsu, "source": "Otsu's, of the scores"}
        free = {"otsu": {**found, "miou": _plain(result.miou_at(result.otsu))}}
    return {
        "name": result.name,
        "split": result.split,
        "images": len(result.ids),
        "skipped": dict(result.skipped),
        "fixed": {
            "threshold": result.fixed,
            "source": "fixed",
            **numbers(result.at_fixed),
            "interval": [_plain(interval.low), _plain(interval.high)],
        },
        "tuned": {
            "threshold": result.tuned,
            "source": "tuned on the truth of this split",
            **numbers(result.at_tuned),
        },
        **free,
        **({"labelled": result.labelled} if result.labelled else {}),
        **recorded(*result.sources),
        "curve": [_plain(value) for value in result.curve],
    }


def write_results(
    path: Path, results: Sequence[Result], classes: ClassList, **extra: object
) -> None:
    """All numbers as JSON."""
    records = [as_record(result, classes) for result in results]
    content = {"results": records, "thresholds": list(GRID), **as_json(extra)}
    write_atomic(path, json.dumps(content, indent=1).encode())


def _plain(value: SupportsFloat) -> float | None:
    number = float(value)
    return None if np.isnan(number) else round(number, 6)
