"""``wsss predict``: masks of photographs without labels, from what a run has learned.

The segmentation head of `wsss run` answers from frozen features, together with the run's
classifiers, which tell the classes that a photograph shows (``segment_linear``). A network that was
trained as a whole (`wsss segment`) answers alone. A dense CRF follows.
"""

import csv
import fcntl
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from wsss_jax.config import Record, check_numbers
from wsss_jax.data import json_records
from wsss_jax.data.classes import BACKGROUND, ClassList, to_mask_index
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.data.texts import read_json
from wsss_jax.datasets.table import Source
from wsss_jax.datasets.unlabelled import marks_of, photographs_in
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.export.exported import photograph_names
from wsss_jax.run import folders
from wsss_jax.run.executors import Workers
from wsss_jax.run.thresholds import foreground
from wsss_jax.stages import segment
from wsss_jax.stages.export import Export, export
from wsss_jax.stages.features import Features, features
from wsss_jax.stages.masks import Masking, decide
from wsss_jax.stages.parts import segment_linear
from wsss_jax.stages.parts.chances import Asking, chances, scale_to
from wsss_jax.stages.refine import AFTER_COMBINING, Crf, refine
from wsss_jax.stages.segment import Prediction
from wsss_jax.weights.sources import resolve

RECORD = "photographs.json"
"""What a run on photographs tells of itself, in its folder."""

TABLE = "predictions.csv"

HEAD = "segmenter"
"""Folder of the segmentation head in a run on photographs."""

ORIGIN = "predicted_by.json"
"""Which run made the maps in a folder."""


@dataclass(frozen=True)
class Predicting:
    """How the networks are asked.

    Attributes:
        flip: average over the mirror image too (of `wsss segment` without --features).
        batch_size: photographs per call.
        background: False if every pixel shows a class; None as in the run.
        shard: index (from 0) and count of this job when several machines share the photographs;
            job arrays of SLURM and Kubernetes are recognised.
    """

    flip: bool = True
    batch_size: int = 4
    background: bool | None = None
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "batch_size")


class Predicted(NamedTuple):
    """One class of one photograph.

    confidence: mean probability over its pixels before the CRF, in [0, 1]; None for background
    where no class could win a pixel. share: of the photograph's pixels, in [0, 1].
    """

    name: str
    confidence: float | None
    share: float


def command(
    run: tyro.conf.Positional[Path],
    photographs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    settings: Annotated[Predicting, tyro.conf.arg(name="")] = Predicting(),
) -> None:
    """Masks of photographs without labels, at full size, and a table of what they show.

    Args:
        run: folder of `wsss run --data PHOTOS`, or of a segmentation network (`wsss segment`).
        photographs: folders and files.
        out: folder for the masks, palette PNGs with the photographs' names, and predictions.csv;
            score maps go to <out>_maps.
        settings: how the networks are asked.
    """
    count = predict(run, photographs, out, settings)
    print(f"{out}: masks of {count} photographs; classes and confidences in {TABLE}")


def predict(run: Path, photographs: Sequence[Path], out: Path, settings: Predicting) -> int:
    """Write masks and ``predictions.csv`` into ``out``; returns of how many photographs.

    A job of several writes its share of the masks, and predictions_0_of_2.csv. Raises BadFileError
    where there is no finished run, MissingFileError without photographs, and UserError for a run
    that cannot answer, with the command that makes one which can.
    """
    run = _run_of(run)
    record = _record_of(run)
    source = photographs_in(photographs, ClassList(tuple(record["classes"])))
    share = Workers(shard=settings.shard)
    chosen, (index, jobs) = share.share(source.ids), share.share_number()
    if not chosen:
        return 0
    background = settings.background
    if background is None:
        background = bool(record.get("background", True))
    work = out.with_name(f"{out.name}_maps")
    scale = _emptied_of_others(work, run, record, source)
    by = _by_head if "features" in record else _by_network
    told = by(run, record, source, work, settings, scale=scale, ids=chosen)
    crf = Crf(AFTER_COMBINING) if background else Crf(AFTER_COMBINING, background=None)
    maps = refine(told, source, work / "crf", crf, ids=_done(told, chosen), workers=share)
    ids = _done(maps, chosen)
    masks = decide(
        maps, work / "masks", Masking(0.5, background=background), ids=ids, workers=share
    )
    export(masks, source, out, Export("png"), workers=share)
    # Of what was told, since a CRF makes nearly every probability 1.
    rows = {id: found_in(told, masks, id) for id in ids}
    table = TABLE if jobs == 1 else f"predictions_{index}_of_{jobs}.csv"
    write_atomic(out / table, _table(rows, source))
    return len(ids)


def found_in(maps: Store, masks: Store, id: str) -> list[Predicted]:
    """What a mask shows, the largest first; background alone where it shows nothing else."""
    scores, mask = maps.get_scores(id), masks.get_mask(id)
    values, counts = np.unique(mask, return_counts=True)
    shares = dict(zip(values.tolist(), (counts / mask.size).tolist(), strict=True))
    if not len(scores.classes):
        return [Predicted(BACKGROUND, None, shares.get(0, 0.0))]
    winner, score = foreground(replace(scores, size=scores.scores.shape[:2]))
    found = []
    for place, label in enumerate(scores.classes.tolist()):
        value = int(to_mask_index(np.asarray([label]))[0])
        if value in shares:
            cells = (winner == label) & (score > 0.5)
            sure = float(score[cells].mean()) if cells.any() else float(scores.peak[place])
            found.append(Predicted(maps.classes[label], min(sure, 1.0), shares[value]))
    rest = Predicted(BACKGROUND, float(1 - score.mean()), shares.get(0, 0.0))
    return sorted(found, key=lambda one: -one.share) or [rest]


def _done(store: Store, ids: Sequence[str]) -> tuple[str, ...]:
    there = set(store.ids())
    return tuple(id for id in ids if id in there)


def _run_of(folder: Path) -> Path:
    """The folder itself, or the network's inside of what `wsss segment` wrote."""
    inner = folder / "run"
    return inner if (inner / "settings.json").is_file() else folder


def _record_of(run: Path) -> Record:
    """What is needed of a run's folder; a network's own folder tells less."""
    path = run / RECORD
    if path.is_file():
        return json_records.read(path, "classes", "features", "systems")
    if (run / "settings.json").is_file():
        record = folders.record_of(run, "run `wsss segment`")
        if "features" in record:
            raise UserError(
                f"{run} is a head on frozen features; give the folder of the `wsss run` that made "
                "it, or a network that `wsss segment` trained without --features"
            )
        if "learned_from" in record:
            return {"classes": record["classes"]}
    raise BadFileError(
        f"{run}: no finished run of `wsss run --data PHOTOS`, and no segmentation network (`wsss "
        "segment`)"
    )


def _emptied_of_others(work: Path, run: Path, record: Record, source: Source) -> float:
    """Remove maps of others; note whose are to come, and return the scale of the photographs.

    Of others are maps of another run, of this one before it learned anew, and of a photograph whose
    name another file has now. Jobs that start together wait for one another. UserError for a
    folder that holds anything else.
    """
    made = run / HEAD if "features" in record else run
    if not (made / "finished").is_file():
        raise BadFileError(f"{made}: not finished; run the same `wsss run` again first")
    origin = {"run": str(run.resolve()), "finished": (made / "finished").stat().st_mtime_ns}
    files = marks_of(source)
    path = work / ORIGIN
    work.parent.mkdir(parents=True, exist_ok=True)
    with (work.parent / f".{work.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read_json(path) if path.is_file() else {}
        if not before and work.is_dir() and any(work.iterdir()):
            raise UserError(f"{work} holds something else; choose another --out")
        known = before.get("photographs", {})
        same = all(before.get(name) == value for name, value in origin.items())
        same = same and "scale" in before
        if same and all(known.get(id, mark) == mark for id, mark in files.items()):
            scale = float(before["scale"])
        else:
            if work.is_dir():
                shutil.rmtree(work)
            known, scale = {}, _scale(run, record, source)
        content = {**origin, "scale": scale, "photographs": {**known, **files}}
        write_atomic(path, json.dumps(content).encode())
    return scale


def _scale(run: Path, record: Record, source: Source) -> float:
    """By which photographs have the size that training showed: the middle of its long sides."""
    if "features" in record:
        return scale_to(source, float(record["side"]))
    view = folders.record_of(run, "run the same command again")["settings"]["augmentation"]
    return scale_to(source, sum(view["long_side"]) / 2)


def _by_network(
    run: Path,
    record: Record,
    source: Source,
    work: Path,
    settings: Predicting,
    *,
    scale: float,
    ids: tuple[str, ...],
) -> Store:
    """Probabilities of a network of `wsss segment`."""
    asked = Prediction((scale,), settings.flip, settings.batch_size)
    share = Workers(shard=settings.shard).share_number()
    return segment.predict(run, source, work / "scores", asked, ids=ids, shard=share)


def _by_head(
    run: Path,
    record: Record,
    source: Source,
    work: Path,
    settings: Predicting,
    *,
    scale: float,
    ids: tuple[str, ...],
) -> Store:
    """What the head tells from frozen features, and the classifiers of the photograph's classes."""
    base = run / record["base"]
    runs = [base / f"run_{name}" for name in record["systems"]]
    asked = Asking(scale, settings.batch_size, Workers(shard=settings.shard))
    found = chances(runs, source, asked, work, ids=ids)
    ids = tuple(found)
    frozen = tuple(
        features(
            source,
            work / f"features_{name}",
            Features(
                _weights(Path(one["weights"]), one.get("known")),
                backbone=one["backbone"],
                taps=tuple(one["taps"]),
                stride=one["stride"],
                size=one["size"],
                like=base / f"features_{name}",
            ),
            ids=ids,
        )
        for name, one in record["features"].items()
    )
    head = run / HEAD
    names = tuple(record["systems"])
    return segment_linear.predict(
        head, source, frozen, work / "scores", ids=ids, chances=found, told_by=names
    )


def _weights(path: Path, known: str | None) -> Path:
    """The file where it was, or wherever weights of that name are now."""
    return path if path.is_file() else resolve(known or path).path


def _table(rows: Mapping[str, Sequence[Predicted]], source: Source) -> bytes:
    names = photograph_names(source, rows)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("file", "class", "confidence", "share"))
    for id, found in rows.items():
        for one in found:
            sure = "" if one.confidence is None else f"{one.confidence:.3f}"
            table.writerow((str(names[id]), one.name, sure, f"{one.share:.6f}"))
    return text.getvalue().encode()
