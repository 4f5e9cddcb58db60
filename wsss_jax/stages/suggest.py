"""``wsss suggest``: the photographs whose true mask is worth most, best first.

A mask drawn by hand teaches where the result is uncertain, and about photographs that are like its
own. So a photograph is worth the uncertainty that its mask would cover: its own, and that of
photographs with the same classes and near features (``ops.coverage``). No true mask is read but
those that were corrected before.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from jaxtyping import Bool, Float

from wsss_jax.config import check_numbers
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import ALL, Source, open_dataset
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.export.corrected import describe, read_corrected
from wsss_jax.export.exported import photograph_names
from wsss_jax.export.stated import CORRECTED, masks_of_run
from wsss_jax.ops import coverage, masks
from wsss_jax.run.images import Tally, record_skipped
from wsss_jax.run.progress import meter
from wsss_jax.run.thresholds import label_free_threshold
from wsss_jax.types import ScoreMaps

MOST = 4000
"""Photographs that are compared with one another; of more, the most uncertain."""

LIST, TABLE = "correct_first.txt", "correct_first.csv"


@dataclass(frozen=True)
class Suggestion:
    """How many photographs are suggested.

    Attributes:
        count: number of photographs to name.
    """

    count: int = 20

    def __post_init__(self) -> None:
        check_numbers(self, "count")


class Suggested(NamedTuple):
    """One photograph to correct.

    uncertainty: mean over its pixels, in [0, 1]. gain: share of all uncertainty that its mask would
    cover in addition, in [0, 1]. like: photographs that it tells most of, of those suggested.
    """

    id: str
    uncertainty: float
    gain: float
    like: int
    classes: tuple[str, ...]


def command(
    store: tyro.conf.Positional[Path],
    data: Path,
    out: Path,
    features: Path | None = None,
    corrected: Path | None = None,
    settings: Annotated[Suggestion, tyro.conf.arg(name="")] = Suggestion(),
    layout: str = "auto",
    split: str = ALL,
    lists: Path | None = None,
) -> None:
    """Name the photographs to correct by hand first: where a true mask is worth most.

    Args:
        store: combined score maps; their uncertainty is read from the store next to them, if any.
        data: folder of the data set, with its labels.
        out: folder for correct_first.txt and correct_first.csv.
        features: store of frozen features, to tell which photographs are similar.
        corrected: folder of masks that were corrected before.
        settings: how many.
        layout: of the data set; "auto" recognises it from the files.
        split: one of the data set's lists (train, val …), or "all".
        lists: folder of id lists, if they lie elsewhere.
    """
    source = open_dataset(data, split=split, layout=layout, lists=lists)
    scores = open_store(store)
    known = _known(corrected, source, scores.folder.parent) if corrected else ()
    looks = open_store(features) if features else None
    found = suggest(scores, source, out, settings, features=looks, known=known)
    print(f"{out / LIST}: {len(found)} photographs, the most useful first; reasons in {TABLE}")


def suggest(
    store: Store,
    source: Source,
    folder: Path,
    settings: Suggestion,
    *,
    features: Store | None = None,
    known: Sequence[str] = (),
) -> list[Suggested]:
    """Write the order in which to correct into ``folder``; known: ids that are corrected already.

    Photographs without a class, and those without a record, are never suggested. Raises UserError
    where nothing is left to suggest.
    """
    skipped: dict[str, str] = {}
    rows = _rows(store, source, features, skipped)
    tally = Tally(len(rows), skipped)
    tally.report("suggest")
    record_skipped(folder, tally)
    if not rows:
        why = f"; {min(skipped.items())[1]}" if skipped else ""
        raise UserError(
            f"{store.folder}: no photograph of {source.name} with a class is in it{why}"
        )
    if all(row.id in known for row in rows):
        raise UserError(f"{store.folder}: all {len(rows)} photographs with a class are corrected")
    rows = _most_uncertain(rows, known)
    found = ordered(rows, source.classes.names, settings.count, known=known)
    names = photograph_names(source, [one.id for one in found])
    lines = [(str(names.get(one.id, one.id)), one) for one in found]
    write_atomic(folder / LIST, "".join(f"{name}\n" for name, _ in lines).encode())
    write_atomic(folder / TABLE, _table(lines))
    return found


def _known(folder: Path, source: Source, run: Path) -> tuple[str, ...]:
    """Photographs whose masks in the folder count. run: the folder of the score maps."""
    whole = run.parent if run.name.startswith(CORRECTED) else run
    found = read_corrected(folder, source, masks_of_run(whole))
    for line in describe(found, folder, source):
        print(line)
    return tuple(found.files)


class Row(NamedTuple):
    """What is known of one photograph before anything is drawn: features (f,) may be None."""

    id: str
    uncertainty: float
    labels: Bool[np.ndarray, " c"]
    features: Float[np.ndarray, " f"] | None = None


def ordered(
    rows: Sequence[Row], names: Sequence[str], count: int, *, known: Sequence[str] = ()
) -> list[Suggested]:
    """The order of rows by what a true mask of each would cover (``coverage.choose``)."""
    worth = np.array([row.uncertainty for row in rows], np.float32)
    parts = [row.features for row in rows if row.features is not None]
    looks = np.stack(parts) if len(parts) == len(rows) else None
    likeness = coverage.likeness_of(np.stack([row.labels for row in rows]), looks)
    given = [place for place, row in enumerate(rows) if row.id in known]
    choices = coverage.choose(worth, likeness, count, known=given)
    taken = [*given, *(choice.item for choice in choices)]
    nearest = np.take(taken, likeness[taken].argmax(axis=0))
    return [
        Suggested(
            rows[item].id,
            rows[item].uncertainty,
            gain,
            int((nearest == item).sum()) - 1,
            tuple(names[label] for label in np.flatnonzero(rows[item].labels).tolist()),
        )
        for item, gain in choices
    ]


def uncertainty_of(maps: ScoreMaps, threshold: float = 0.5) -> float:
    """Mean entropy over background and classes, as a share of its maximum, in [0, 1].

    threshold: of activations, the score at which background and a class are equally likely.
    """
    if not len(maps.classes):
        return 0.0
    scores = np.asarray(maps.scores, np.float32)
    if maps.kind == "probability":
        rest = np.maximum(1 - scores.sum(axis=-1, keepdims=True), 0)
        shares = masks.shares(np.concatenate([rest, scores], axis=-1))
    else:
        shares = masks.with_constant(scores, max(threshold, 1e-3))
    entropy = -(shares * np.log(shares)).sum(axis=-1) / np.log(shares.shape[-1])
    return float(np.clip(entropy, 0, 1).mean())


def _rows(
    store: Store, source: Source, features: Store | None, skipped: dict[str, str]
) -> list[Row]:
    """A row of every photograph with a class and a record."""
    stores.require_scores(store, "wanted combined score maps")
    folder = store.folder.with_name(f"{store.folder.name}_uncertainty")
    doubts = open_store(folder) if (folder / "index.json").is_file() else None
    threshold = label_free_threshold(store, store.ids()) or 0.5
    held = set(store.ids())
    rows: list[Row] = []
    with meter("suggest", len(source.ids)) as bar:
        for id in source.ids:
            try:
                if id in held and source.labels(id).any():
                    rows.append(_row(id, store, source, doubts, features, threshold))
            except BadFileError as problem:
                skipped[id] = str(problem)
            bar.advance()
    return rows


def _row(
    id: str,
    store: Store,
    source: Source,
    doubts: Store | None,
    features: Store | None,
    threshold: float,
) -> Row:
    if doubts is not None:
        found = doubts.get_scores(id)
        value = float(np.clip(found.scores[..., 0], 0, 1).mean())
    else:
        value = uncertainty_of(store.get_scores(id), threshold)
    look = None if features is None else features.get_scores(id).scores.mean(axis=(0, 1))
    return Row(id, value, source.labels(id), look)


def _most_uncertain(rows: Sequence[Row], known: Sequence[str]) -> list[Row]:
    """At most MOST rows, those of corrected photographs among them, in the given order."""
    if len(rows) <= MOST:
        return list(rows)
    print(f"suggest: the {MOST} most uncertain of {len(rows)} photographs are compared")
    by_doubt = sorted(rows, key=lambda row: (row.id not in known, -row.uncertainty))
    chosen = {row.id for row in by_doubt[:MOST]}
    return [row for row in rows if row.id in chosen]


def _table(lines: Sequence[tuple[str, Suggested]]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("rank", "photograph", "classes", "uncertainty", "gain", "reason"))
    for rank, (name, one) in enumerate(lines, start=1):
        reason = f"uncertain on {one.uncertainty:.0%}"
        reason += f", tells most of {one.like} other photographs" if one.like > 0 else ""
        shown = (";".join(one.classes), f"{one.uncertainty:.4f}", f"{one.gain:.4f}", reason)
        table.writerow((rank, name, *shown))
    return text.getvalue().encode()
