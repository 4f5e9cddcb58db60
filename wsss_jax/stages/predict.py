"""``wsss predict``: masks of photographs without labels, from what a run has learned.

A segmentation network answers where one was trained. Where none was (`wsss run --quick`), the
run's classifiers tell which classes a photograph shows, and their class maps of these are combined
with the linear probe of the run, as they were for the photographs that it was trained on.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float

from wsss_jax.batches.batches import Group
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.config import Record
from wsss_jax.data import json_records
from wsss_jax.data.classes import BACKGROUND, ClassList, to_mask_index
from wsss_jax.data.files import write_atomic
from wsss_jax.data.photographs import working_size
from wsss_jax.data.stores import Store
from wsss_jax.data.texts import read_json
from wsss_jax.datasets.table import Source
from wsss_jax.datasets.unlabelled import photographs_in
from wsss_jax.datasets.views import View
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.explain.faithfulness import Logits
from wsss_jax.export.exported import photograph_names
from wsss_jax.run import folders
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import record_skipped
from wsss_jax.run.photographs import over_photographs
from wsss_jax.run.thresholds import foreground
from wsss_jax.stages import segment
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.export import Export, export
from wsss_jax.stages.features import Features, features
from wsss_jax.stages.masks import Masking, decide
from wsss_jax.stages.segment import Prediction
from wsss_jax.stages.subject import subject_of
from wsss_jax.train.state import Weights
from wsss_jax.weights.sources import resolve

RECORD = "photographs.json"
"""What a run on photographs tells of itself, in its folder."""

TABLE = "predictions.csv"

ORIGIN = "predicted_by.json"
"""Which run made the maps in a folder."""


@dataclass(frozen=True)
class Predicting:
    """How the networks are asked.

    Attributes:
        flip: average over the mirror image too.
        batch_size: photographs per call.
        background: False where every pixel shows a class; None as in the run.
        shard: index (from 0) and count of this job when several machines share the photographs;
            job arrays of SLURM and Kubernetes are recognised.
    """

    flip: bool = True
    batch_size: int = 4
    background: bool | None = None
    shard: tuple[int, int] | None = None


class Predicted(NamedTuple):
    """One class of one photograph.

    confidence: mean probability over its pixels, in [0, 1], times that of the label where a
    classifier told it; None for background of which no network told it. share: of the photograph's
    pixels, in [0, 1].
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
    _emptied_of_others(work, run, record)
    chances: Mapping[str, np.ndarray] = {}
    if record["segmenter"] is not None:
        maps = _by_segmenter(run / record["segmenter"], source, work, settings, ids=chosen)
    else:
        maps, chances = _by_classifiers(run, record, source, work, settings, ids=chosen)
    done = set(maps.ids())
    ids = tuple(id for id in chosen if id in done)
    masks = decide(
        maps, work / "masks", Masking(0.5, background=background), ids=ids, workers=share
    )
    export(masks, source, out, Export("png"), workers=share)
    rows = {id: found_in(maps, masks, id, chances.get(id)) for id in ids}
    table = TABLE if jobs == 1 else f"predictions_{index}_of_{jobs}.csv"
    write_atomic(out / table, _table(rows, source))
    return len(ids)


def found_in(
    maps: Store, masks: Store, id: str, chances: Float[np.ndarray, " c"] | None = None
) -> list[Predicted]:
    """What a mask shows, the largest first; background alone where it shows nothing else."""
    scores, mask = maps.get_scores(id), masks.get_mask(id)
    values, counts = np.unique(mask, return_counts=True)
    shares = dict(zip(values.tolist(), (counts / mask.size).tolist(), strict=True))
    if not len(scores.classes):
        sure = None if chances is None else float(1 - chances.max())
        return [Predicted(BACKGROUND, sure, shares.get(0, 0.0))]
    winner, score = foreground(replace(scores, size=scores.scores.shape[:2]))
    found = []
    for place, label in enumerate(scores.classes.tolist()):
        value = int(to_mask_index(np.asarray([label]))[0])
        if value in shares:
            cells = (winner == label) & (score > 0.5)
            sure = float(score[cells].mean()) if cells.any() else float(scores.peak[place])
            sure *= 1.0 if chances is None else float(chances[label])
            found.append(Predicted(maps.classes[label], min(sure, 1.0), shares[value]))
    rest = Predicted(BACKGROUND, float(1 - score.mean()), shares.get(0, 0.0))
    return sorted(found, key=lambda one: -one.share) or [rest]


def _record_of(run: Path) -> Record:
    """What is needed of a run's folder; a segmentation network's own folder tells less."""
    path = run / RECORD
    if path.is_file():
        record = json_records.read(path, "classes", "segmenter", "saliency")
        if record["segmenter"] is None and record["saliency"]:
            raise UserError(
                f"{run} was learned with saliency, of which new photographs have none; train a "
                "segmentation network, by `wsss run` without --quick or `wsss segment`"
            )
        return record
    if (run / "settings.json").is_file():
        record = folders.record_of(run, "run `wsss segment`")
        if "learned_from" in record:
            return {"classes": record["classes"], "segmenter": "."}
    raise BadFileError(
        f"{run}: no finished run of `wsss run --data PHOTOS`, and no segmentation network (`wsss "
        "segment`)"
    )


def _emptied_of_others(work: Path, run: Path, record: Record) -> None:
    """Remove maps of another run, or of this one before it learned anew; note whose are to come.

    UserError for a folder that holds anything else.
    """
    made = [record["segmenter"]] if record["segmenter"] is not None else ["run_combiner"]
    finished = [(run / name / "finished").stat().st_mtime_ns for name in made]
    origin = {"run": str(run.resolve()), "finished": finished}
    path = work / ORIGIN
    if work.is_dir() and any(work.iterdir()):
        if not path.is_file():
            raise UserError(f"{work} holds something else; choose another --out")
        if read_json(path) != origin:
            shutil.rmtree(work)
    write_atomic(path, json.dumps(origin).encode())


def _by_segmenter(
    run: Path, source: Source, work: Path, settings: Predicting, *, ids: tuple[str, ...]
) -> Store:
    """Probabilities at the size that training showed: the middle of its long sides."""
    record = folders.record_of(run, "run the same command again")
    view = record["settings"]["augmentation"]["long_side"]
    scale = _scale(source, (view[0] + view[1]) / 2)
    asked = Prediction((scale,), settings.flip, settings.batch_size)
    return segment.predict(run, source, work / "scores", asked, ids=ids)


def _by_classifiers(
    run: Path,
    record: Record,
    source: Source,
    work: Path,
    settings: Predicting,
    *,
    ids: tuple[str, ...],
) -> tuple[Store, dict[str, np.ndarray]]:
    """Combined maps of the classes that the classifiers find, and the classes' probabilities."""
    base = run / record["base"]
    names, scale = record["systems"], _scale(source, float(record["side"]))
    runs = [base / f"run_{name}" for name in names]
    chances = _chances(runs, source, scale, settings, work, ids=ids)
    labels = {id: _labels(one, record["always"]) for id, one in chances.items()}
    known, ids = View(source, source.classes, labels.__getitem__, _no_mask), tuple(chances)
    scales = tuple(round(one * scale, 3) for one in record["scales"])
    asked = Explanation("cam", scales, record["flip"], settings.batch_size)
    cams = tuple(
        explain(path, known, work / f"cam_{name}", asked, ids=ids)
        for name, path in zip(names, runs, strict=True)
    )
    frozen = tuple(
        features(
            known,
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
    inputs = Inputs(known, cams, features=frozen)
    fused = fuse(run / "run_combiner", inputs, work / "combined", ids=ids)
    return fused.maps, chances


def _labels(chances: Float[np.ndarray, " c"], always: bool) -> Bool[np.ndarray, " c"]:
    """Classes above one half; the likeliest where all training photographs show some class."""
    found = chances > 0.5
    return chances == chances.max() if always and not found.any() else found


def _weights(path: Path, known: str | None) -> Path:
    """The file where it was, or wherever weights of that name are now."""
    return path if path.is_file() else resolve(known or path).path


def _scale(source: Source, side: float) -> float:
    """Of photographs whose median long side is to be ``side`` pixels; at most twice their size."""
    sides = []
    for id in source.ids:
        try:
            sides.append(max(working_size(source.size(id))))
        except BadFileError:
            continue  # named when its turn comes
    if not sides:
        raise BadFileError(f"{source.name}: none of {len(source.ids)} photographs can be read")
    return round(min(side / float(np.median(sides)), 2.0), 3)


def _no_mask(id: str) -> None:
    """Of new photographs no mask is known."""


def _chances(
    runs: Sequence[Path],
    source: Source,
    scale: float,
    settings: Predicting,
    work: Path,
    *,
    ids: tuple[str, ...],
) -> dict[str, Float[np.ndarray, " c"]]:
    """The probability of each class in each photograph, the mean over the classifiers."""
    subjects = [subject_of(run) for run in runs]
    asked = [
        (jax.jit(partial(_logits, ask=subject.logits)), subject.weights) for subject in subjects
    ]
    found: dict[str, np.ndarray] = {}

    def write(group: Group) -> int:
        batch = group.scaled[0]
        views = [np.asarray(ask(held, batch.images, batch.inside)) for ask, held in asked]
        mean = np.mean([1 / (1 + np.exp(-view)) for view in views], axis=0)
        found.update(zip(group.ids, mean, strict=False))
        return len(group.ids)

    tally = over_photographs(
        "find classes",
        source,
        ids,
        write,
        scales=(scale,),
        batch_size=settings.batch_size,
    )
    tally = replace(tally, shard=Workers(shard=settings.shard).share_number())
    tally.report("find classes")
    record_skipped(work, tally)
    if not found:
        id, reason = min(tally.skipped.items())
        raise BadFileError(f"all {len(tally.skipped)} photographs failed, first {id}: {reason}")
    return {id: found[id] for id in ids if id in found}


def _logits(weights: Weights, images: Array, inside: Array, *, ask: Callable[..., Logits]) -> Array:
    return ask(weights, inside)(images)


def _table(rows: Mapping[str, Sequence[Predicted]], source: Source) -> bytes:
    names = photograph_names(source, rows)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("file", "class", "confidence", "share"))
    for id, found in rows.items():
        for one in found:
            sure = "" if one.confidence is None else f"{one.confidence:.3f}"
            table.writerow((str(names[id]), one.name, sure, f"{one.share:.4f}"))
    return text.getvalue().encode()
