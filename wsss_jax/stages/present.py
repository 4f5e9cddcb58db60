"""The report page of a run: its numbers as charts, its stores as a gallery."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss_jax.data.datasets import Source
from wsss_jax.data.files import BadFileError
from wsss_jax.data.stores import Store
from wsss_jax.ops import masks, metrics
from wsss_jax.report import Gain, Picture, Report, StageScore, write_page
from wsss_jax.stages.evaluate import GRID, Scoring, evaluate, fixed_threshold, foreground
from wsss_jax.stages.fit import versions
from wsss_jax.stages.progress import meter
from wsss_jax.stages.recipe import Made, Recipe
from wsss_jax.stages.summary import EXPLANATION, Row, against_first


@dataclass(frozen=True)
class Gallery:
    """What the pictures show: maps by name, decided masks by name (the best last), and a cue."""

    maps: Mapping[str, Store]
    masks: Mapping[str, Store]
    cue: Store | None
    scoring: Scoring


def page(path: Path, recipe: Recipe, made: Made, rows: Sequence[Row], source: Source) -> Path:
    """The page of a whole run; ``source`` is the split whose first photographs are shown."""
    shown = [n for n in made.stores if n.startswith("cam_") or n in ("fuse_mean", made.final)]
    decided = {name: made.stores[name] for name in made.stores if not name.startswith("fuse_")}
    gallery = Gallery(
        {name: made.stores[name] for name in shown},
        {**decided, made.masks.folder.name: made.masks},
        made.saliency,
        recipe.scoring.on(source),
    )
    settings = {
        "systems": ", ".join(recipe.systems),
        "explanation": str(recipe.explanation),
        "walk": str(recipe.walk),
        "dense CRF": str(recipe.crf),
    }
    report = _report(recipe.name, rows, source, settings)
    return write_page(path, report, _pictures(gallery, source, recipe.gallery))


def page_of_stores(
    path: Path, stores: Sequence[Store], source: Source, scoring: Scoring, count: int
) -> Path:
    """The page of any stores of score maps; judged where the source has true masks."""
    rows: list[Row] = []
    if any(source.mask(id) is not None for id in source.ids[:1]):
        rows = against_first(
            [evaluate(store, source, scoring, split=source.name) for store in stores]
        )
    by_name = {store.folder.name: store for store in stores}
    gallery = Gallery(by_name, by_name, None, scoring)
    report = _report(path.stem, rows, source, {})
    return write_page(path, report, _pictures(gallery, source, count))


def _report(title: str, rows: Sequence[Row], source: Source, settings: Mapping[str, str]) -> Report:
    return Report(
        title=title,
        classes=source.classes.mask_names(),
        stages=[score for row in rows for score in _scores(row, len(source.classes) + 1)],
        curves={
            f"{row.result.name} ({row.result.split})": (np.asarray(GRID), row.result.curve)
            for row in rows
            if len(row.result.curve) == len(GRID)
            and row.result.split == rows[-1].result.split
            and (row.result.name == "fuse_mean" or not row.result.name.startswith("fuse_"))
        },
        settings={"data": source.name, **settings, **versions()},
        notes=(EXPLANATION,) if rows else ("There are no true masks to judge by.",),
        scored=rows[0].result.scored if rows else (),
    )


def _scores(row: Row, size: int) -> list[StageScore]:
    result, own = row.result, row.result.interval()
    gain = None
    if row.gain is not None:
        gain = Gain(row.reference, *(float(value) for value in row.gain))
    fixed = StageScore(
        name=result.name,
        split=result.split,
        miou=result.miou(),
        low=float(own.low),
        high=float(own.high),
        per_class=_per_class(result.counts, result.scored, size),
        threshold=result.fixed,
        threshold_source="fixed",
        group=row.group,
        gain=gain,
    )
    tuned = StageScore(
        name=result.name,
        split=result.split,
        miou=result.miou(tuned=True),
        low=None,
        high=None,
        per_class=_per_class(result.counts_tuned, result.scored, size),
        threshold=result.tuned,
        threshold_source="tuned on truth",
        group=row.group,
    )
    return [fixed, tuned]


def _per_class(counts: np.ndarray, scored: Sequence[int], size: int) -> np.ndarray:
    """IoU of the scored classes, NaN for the others."""
    values = np.full(size, np.nan)
    values[list(scored)] = metrics.iou(counts.sum(axis=0))[list(scored)]
    return values


def _pictures(gallery: Gallery, source: Source, count: int) -> Iterator[Picture]:
    ids = source.ids[:count]
    with meter("report", len(ids)) as bar:
        for id in ids:
            try:
                yield _picture(id, gallery, source)
            except BadFileError as problem:
                print(f"report: left out {id}: {problem}")
            bar.advance()


def _picture(id: str, gallery: Gallery, source: Source) -> Picture:
    present = np.flatnonzero(source.labels(id))
    maps = {name: _rows(store, id, present) for name, store in gallery.maps.items()}
    if gallery.cue is not None:
        maps["saliency"] = gallery.cue.get_scores(id).scores
    decided = {name: _mask(store, id, gallery.scoring) for name, store in gallery.masks.items()}
    return Picture(
        id=id,
        photo=source.image(id),
        labels=tuple(source.classes.names[label] for label in present),
        maps=maps,
        masks=decided,
        truth=source.mask(id),
    )


def _rows(store: Store, id: str, present: np.ndarray) -> np.ndarray:
    """One map per label, zero for a label the system has no map of."""
    maps = store.get_scores(id)
    scores = np.zeros((*maps.scores.shape[:2], len(present)), np.float32)
    for column, label in enumerate(present):
        found = np.flatnonzero(maps.classes == label)
        if len(found):
            scores[..., column] = np.clip(maps.scores[..., found[0]], 0, 1)
    return scores


def _mask(store: Store, id: str, scoring: Scoring) -> np.ndarray:
    if store.holds == "masks":
        return store.get_mask(id)
    maps = store.get_scores(id)
    if not len(maps.classes):
        return np.zeros(maps.size, np.uint8)
    winner, score = foreground(maps)
    threshold = fixed_threshold(store, scoring) if scoring.background else -1.0
    return masks.decide(winner, score, threshold)
