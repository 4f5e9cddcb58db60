"""The report page of a run: its numbers as charts, its stores as a gallery."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from wsss_jax.data.classes import difference
from wsss_jax.data.photographs import fit_mask
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.export.exported import photograph_names
from wsss_jax.ops import masks, metrics
from wsss_jax.ops.image_counts import ImageCounts
from wsss_jax.recipes.recipe import VOTES, Made, Recipe
from wsss_jax.recipes.summary import Row, against_first, explanation
from wsss_jax.report import Gain, Picture, Report, Rule, StageScore, write_page
from wsss_jax.run.executors import Workers
from wsss_jax.run.folders import versions
from wsss_jax.run.progress import meter
from wsss_jax.run.thresholds import foreground
from wsss_jax.stages.evaluate import GRID, Scoring, fixed_threshold
from wsss_jax.stages.masks import judged


@dataclass(frozen=True)
class Gallery:
    """What the pictures show.

    maps: by name. masks: decided, by name, the best last. rules: what the reader may switch
    between, by name. trust, doubts: who is trusted and how unsure it is, by the name of the
    combination they belong to.
    """

    maps: Mapping[str, Store]
    masks: Mapping[str, Store]
    cue: Store | None
    scoring: Scoring
    rules: Mapping[str, Store] = field(default_factory=dict)
    trust: Mapping[str, Store] = field(default_factory=dict)
    doubts: Mapping[str, Store] = field(default_factory=dict)

    def systems(self) -> tuple[str, ...]:
        """All systems that any combination trusts, in order."""
        return tuple(dict.fromkeys(n for store in self.trust.values() for n in store.classes))


def page(path: Path, recipe: Recipe, made: Made, rows: Sequence[Row], source: Source) -> Path:
    """The page of a whole run; ``source`` is the split whose first photographs are shown."""
    shown = [n for n in made.stores if n.startswith("cam_") or n in ("fuse_mean", made.final)]
    decided = {name: made.stores[name] for name in made.stores if not name.startswith("fuse_")}
    gallery = Gallery(
        {name: made.stores[name] for name in shown},
        {**decided, made.masks.folder.name: made.masks},
        made.saliency,
        recipe.scoring.on(source),
        made.stores,
        _companions(made.stores.values(), "trust"),
        _companions(made.stores.values(), "uncertainty"),
    )
    settings = {
        "systems": ", ".join(recipe.systems),
        "explanation": str(recipe.explanation),
        "refinements": ", ".join(recipe.refinements) or "none",
        "walk": str(recipe.walk),
        "dense CRF": str(recipe.crf) if "crf" in recipe.refinements else "none",
    }
    if recipe.combiner is not None:
        settings["dense CRF after the combiner"] = str(recipe.last or "none")
    report = _report(recipe.name, rows, source, settings, gallery=gallery, groups=made.groups)
    return write_page(path, report, _pictures(gallery, source, source.ids[: recipe.gallery]))


@dataclass(frozen=True)
class Shown:
    """A run on somebody's own photographs, to be shown.

    rows: numbers, none without true masks. order: photographs and their uncertainty in [0, 1], the
    least certain first.
    """

    made: Made
    rows: Sequence[Row]
    source: Source
    scoring: Scoring
    order: Sequence[tuple[str, float]]


def page_of_photographs(
    path: Path, shown: Shown, *, lead: Sequence[str], count: int, settings: Mapping[str, str]
) -> Path:
    """The page of a run on somebody's own photographs: the least certain pictures first.

    lead: sentences that open the page. count: of photographs on it.
    """
    made = shown.made
    final = made.stores[made.final]
    gallery = Gallery(
        {
            name.removeprefix("cam_"): store
            for name, store in made.stores.items()
            if name.startswith("cam_")
        },
        {"mask": made.masks},
        made.saliency,
        shown.scoring,
        {made.final: final},
        doubts=_companions([store for store in made.stores.values()], "uncertainty"),
    )
    title = f"Masks of {shown.source.name}"
    report = _report(title, shown.rows, shown.source, settings, gallery=gallery, groups=made.groups)
    chosen = dict(shown.order[:count])
    names = photograph_names(shown.source, chosen)
    pictures = (
        replace(
            one,
            name=str(names.get(one.id, one.id)),
            uncertainty=chosen[one.id],
            doubts=dict(zip(["uncertainty"], one.doubts.values(), strict=False)),
        )
        for one in _pictures(gallery, shown.source, tuple(chosen))
    )
    return write_page(path, replace(report, lead=tuple(lead)), pictures)


def page_of_stores(
    path: Path, stores: Sequence[Store], source: Source, scoring: Scoring, count: int
) -> Path:
    """The page of any stores of score maps; judged where the source has true masks.

    Trust and uncertainty that lie beside a learned combination come along. Raises ValueError for a
    store of other classes than the data set's.
    """
    for store in stores:
        if store.classes != source.classes.names:
            told = difference(store.classes, source.classes.names)
            raise UserError(
                f"{store.folder} holds {told}; trust and uncertainty are shown with the store they "
                "belong to"
            )
    rows: list[Row] = []
    if any(source.mask(id) is not None for id in source.ids[:1]):
        rows = against_first(judged(stores, source, scoring, split=source.name, workers=Workers()))
    by_name = {store.folder.name: store for store in stores}
    gallery = Gallery(
        by_name,
        by_name,
        None,
        scoring,
        {name: store for name, store in by_name.items() if store.holds == "scores"},
        _companions(stores, "trust"),
        _companions(stores, "uncertainty"),
    )
    report = _report(path.stem, rows, source, {}, gallery=gallery, groups={})
    return write_page(path, report, _pictures(gallery, source, source.ids[:count]))


def _companions(stores: Iterable[Store], kind: str) -> dict[str, Store]:
    """What ``combiner.fuse.fuse`` wrote beside those of the stores that it made."""
    found = {}
    for store in stores:
        folder = store.folder.with_name(f"{store.folder.name}_{kind}")
        if (folder / "index.json").is_file():
            found[store.folder.name] = open_store(folder)
    return found


def _report(
    title: str,
    rows: Sequence[Row],
    source: Source,
    settings: Mapping[str, str],
    *,
    gallery: Gallery,
    groups: Mapping[str, str],
) -> Report:
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
        notes=(explanation(rows),) if rows else ("There are no true masks to judge by.",),
        scored=rows[0].result.scored if rows else (),
        rules={
            name: Rule(groups.get(name, "stores"), _threshold(store, gallery.scoring))
            for name, store in gallery.rules.items()
        },
        systems=gallery.systems(),
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
        per_class=_per_class(result.at_fixed, result.scored, size),
        threshold=result.fixed,
        threshold_source="fixed",
        group=row.group,
        gain=gain,
        supervision=result.supervision,
    )
    tuned = replace(
        fixed,
        miou=result.miou(tuned=True),
        low=None,
        high=None,
        per_class=_per_class(result.at_tuned, result.scored, size),
        threshold=result.tuned,
        threshold_source="tuned on truth",
        gain=None,
    )
    if result.otsu is None:
        return [fixed, tuned]
    free = replace(
        tuned,
        miou=result.miou_at(result.otsu),
        per_class=np.full(size, np.nan),
        threshold=result.otsu,
        threshold_source="by Otsu's rule",
    )
    return [fixed, free, tuned]


def _per_class(counts: ImageCounts, scored: Sequence[int], size: int) -> np.ndarray:
    """IoU of the scored classes, NaN for the others."""
    values = np.full(size, np.nan)
    values[list(scored)] = metrics.iou(counts.total())[list(scored)]
    return values


def _pictures(gallery: Gallery, source: Source, ids: Sequence[str]) -> Iterator[Picture]:
    with meter("report", len(ids)) as bar:
        for id in ids:
            try:
                yield _picture(id, gallery, source)
            except BadFileError as problem:
                print(f"report: left out {id}: {problem}")
            bar.advance()


def _picture(id: str, gallery: Gallery, source: Source) -> Picture:
    present = np.flatnonzero(source.labels(id))
    rules = {name: _rows(store, id, present) for name, store in gallery.rules.items()}
    maps = {
        name: rules[name] if name in rules else _rows(store, id, present)
        for name, store in gallery.maps.items()
    }
    if gallery.cue is not None:
        maps["saliency"] = gallery.cue.get_scores(id).scores
    decided = {name: _mask(store, id, gallery.scoring) for name, store in gallery.masks.items()}
    photo, truth = source.image(id), source.mask(id)
    decided = {name: fit_mask(mask, photo.shape[:2]) for name, mask in decided.items()}
    return Picture(
        id=id,
        photo=photo,
        labels=tuple(source.classes.names[label] for label in present),
        maps=maps,
        masks=decided,
        truth=None if truth is None else fit_mask(truth, photo.shape[:2]),
        rules=rules,
        trust=_trust(id, gallery),
        doubts=_doubts(id, gallery),
    )


def _rows(store: Store, id: str, present: np.ndarray) -> np.ndarray:
    """One map per label, zero for a label the system has no map of.

    Probabilities come as their share beside background's, as they are judged.
    """
    maps = store.get_scores(id)
    scores = np.zeros((*maps.scores.shape[:2], len(present)), np.float32)
    for column, label in enumerate(present):
        found = np.flatnonzero(maps.classes == label)
        if len(found):
            one = maps.scores[..., found[0]]
            share = masks.against_rest(maps.scores, one) if maps.kind == "probability" else one
            scores[..., column] = np.clip(share, 0, 1)
    return scores


def _trust(id: str, gallery: Gallery) -> dict[str, np.ndarray]:
    """Shares of trust in the order of the gallery's systems; nothing where the image has none."""
    names, found = gallery.systems(), {}
    for name, store in gallery.trust.items():
        if store.has(id):
            maps = store.get_scores(id)
            shares = np.zeros((*maps.scores.shape[:2], len(names)), np.float32)
            shares[..., [names.index(store.classes[c]) for c in maps.classes]] = maps.scores
            found[f"{name}: trust"] = np.clip(shares, 0, 1)
    return found


def _doubts(id: str, gallery: Gallery) -> dict[str, np.ndarray]:
    """Entropy and disagreement; a deviation of probabilities is at most 1/2, so it is doubled."""
    found = {}
    for name, store in gallery.doubts.items():
        if not store.has(id):
            continue
        maps = store.get_scores(id)
        for column, label in enumerate(maps.classes):
            what, scale = _DOUBTS[store.classes[label]]
            found[f"{name}: {what}"] = np.clip(scale * maps.scores[..., [column]], 0, 1)
    return found


def _threshold(store: Store, scoring: Scoring) -> float | None:
    """The one that no truth has seen; None where there is no background."""
    if not scoring.background:
        return None
    if store.holds == "scores" and store.made_by.get("rule") in VOTES:
        return 0.5
    return fixed_threshold(store, scoring)


def _mask(store: Store, id: str, scoring: Scoring) -> np.ndarray:
    if store.holds == "masks":
        return store.get_mask(id)
    maps = store.get_scores(id)
    if not len(maps.classes):
        return np.zeros(maps.size, np.uint8)
    winner, score = foreground(maps)
    threshold = _threshold(store, scoring)
    return masks.decide(winner, score, -1.0 if threshold is None else threshold)


# Entropy is the first that combiner.fuse writes, and all that a page of photographs shows.
_DOUBTS = MappingProxyType({"entropy": ("entropy", 1), "disagreement": ("disagreement ×2", 2)})
"""Uncertainties by their name in a store: what they are called here, and drawn times what."""
