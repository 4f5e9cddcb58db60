"""Segmentation by a linear head on frozen features, learned from masks within seconds.

It needs no image label when it is asked. Logits of a cell are linear in its features of frozen
networks, and in the mean over the whole image of all but the last, which tells what the photograph
shows. The answer is smoothed inside the image along the last network, as
the combiner smooths maps. Where trained classifiers are at hand, their image-level probabilities
join the logits.

Source: the linear evaluation of frozen features (Oquab et al. 2023, DINOv2, section 7.4). Where we
differ: features of two networks, the image's mean, smoothing, and the classifiers' probabilities.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from scipy.special import softmax

from wsss_jax import config
from wsss_jax.combiner import probes
from wsss_jax.combiner.evidence import grid_of
from wsss_jax.combiner.probes import Probe
from wsss_jax.combiner.record import meaning_of
from wsss_jax.combiner.refine import Smoothing, of_length_one
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops.resize import resize
from wsss_jax.run import folders
from wsss_jax.run.images import Tally, over_groups, settle
from wsss_jax.stages.segment import Teacher, probabilities
from wsss_jax.types import IGNORE, Size

CELLS, MAX_CELLS = 200, 200_000
"""Cells that teach: at most of one image, and of all images together."""

LEAST = 1e-4
"""The lowest probability of a class that a classifier is believed to tell."""

Chances = Mapping[str, Float[np.ndarray, " c"]]
"""By image: the probability that it shows each class, by classifiers that were asked."""


@dataclass(frozen=True)
class Linear:
    """A linear head on frozen features.

    Attributes:
        cells: long side of the grid on which it is trained and applied.
        penalty: of the head's squared weights.
        smoothing: temperature of the features' cosine, as in the combiner; 0: none.
        trust: power of the classifiers' probabilities, if classifiers are given.
        seed: of the training cells.
    """

    cells: int = 64
    penalty: float = 3e-3
    smoothing: float = 0.1
    trust: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cells < 4 or self.penalty <= 0 or min(self.smoothing, self.trust) < 0:
            raise UserError(
                f"{self.cells} cells, penalty {self.penalty}, smoothing {self.smoothing}, trust "
                f"{self.trust}; wanted at least 4 cells, a positive penalty, and no negative number"
            )


def fit(
    source: Source, teacher: Teacher, frozen: Sequence[Store], settings: Linear, folder: Path
) -> Path:
    """Learn the head from the teacher's masks of the source's images into ``folder``.

    frozen: stores of features (``stages.features``) of these images. A finished folder
    of the same settings is left as it is. UserError for a folder of other settings, without a
    store, or for one that lacks an image.
    """
    _check(frozen, source.ids)
    record = {
        "settings": config.as_json(settings),
        "classes": list(source.classes.names),
        "features": meaning_of(frozen),
        "learned_from": teacher.record,
        "images": len(source.ids),
        "made_of": stores.marks(frozen),
        **inherited(*frozen),
    }
    with folders.claim(folder, record) as claimed:
        if not claimed.finished:
            _learned(source, teacher, frozen, settings).save(folder / "head.npz")
            write_atomic(folder / "finished", b"learned\n")
    return folder


def predict(
    run: Path,
    source: Source,
    frozen: Sequence[Store],
    folder: Path,
    *,
    ids: tuple[str, ...],
    chances: Chances | None = None,
    told_by: tuple[str, ...] = (),
) -> Store:
    """Probabilities of all classes on ``ids`` into a store at ``folder``; no label is read.

    What is kept of the classes, and what background is, is as ``segment.predict`` has it. chances:
    of the classes by image, where classifiers were asked. told_by: their names. Raises UserError
    for other features or other classes than those the head was learned from.
    """
    record = folders.record_of(run, "run `wsss segment --features`")
    settings = config.from_json(Linear, record["settings"])
    _check(frozen, ids)
    wanted = {"classes": list(source.classes.names), "features": meaning_of(frozen)}
    for name, given in wanted.items():
        if record[name] != given:
            raise UserError(
                f"{run} was learned with {name} {record[name]}, now it is {given}; give the {name} "
                "of its training"
            )
    head = probes.load(run / "head.npz")
    made_by = {
        "stage": "segment",
        **config.as_json(settings),
        "classifiers": list(told_by),
        "learned_from": record["learned_from"],
        **inherited(record, *frozen),
    }
    target = stores.create(
        folder,
        holds="scores",
        classes=source.classes.names,
        kind="probability",
        made_by=made_by,
        parents=(run.name, *frozen),
    )

    def put(id: str) -> None:
        size = source.size(id)
        grid = grid_of(size, settings.cells)
        maps = _maps(frozen, id, grid)
        known = None if chances is None else chances[id]
        shares = answer(head, maps, known, settings)
        target.put_scores(id, probabilities(shares.reshape(*grid, -1), size))

    settle(target, _each(f"segment {folder.name}", target.missing(ids), put))
    return target


def answer(
    head: Probe,
    maps: Sequence[Float[np.ndarray, "h w _"]],
    chances: Float[np.ndarray, " c"] | None,
    settings: Linear,
) -> Float[np.ndarray, "m n"]:
    """Probabilities of background and all classes of one image's h·w cells, row by row.

    maps: features of each network on one grid. chances: (c,) of the image's classes, or None.
    """
    logits = rows_of(maps) @ head.kernel + head.offset
    if chances is not None:
        logits[:, 1:] += settings.trust * np.log(np.maximum(chances, LEAST))
    last = maps[-1].reshape(len(logits), -1)
    smooth = Smoothing(of_length_one(last), settings.smoothing)
    return smooth(softmax(logits, axis=1).astype(np.float32))


def rows_of(maps: Sequence[Float[np.ndarray, "h w _"]]) -> Float[np.ndarray, "m d"]:
    """What the head is given of each cell: all features, then the image's mean of all but the last.

    Of one network alone, its own mean.
    """
    flat = [one.reshape(-1, one.shape[-1]) for one in maps]
    means = [np.broadcast_to(one.mean(axis=0), one.shape) for one in flat[:-1] or flat]
    return np.concatenate([*flat, *means], axis=1, dtype=np.float32)


def _learned(source: Source, teacher: Teacher, frozen: Sequence[Store], settings: Linear) -> Probe:
    if not source.ids:
        raise UserError(f"{source.name}: no image to learn from")
    each = min(CELLS, max(MAX_CELLS // len(source.ids), 1))
    rows: dict[str, Float[np.ndarray, "m d"]] = {}
    labels: dict[str, Int[np.ndarray, " m"]] = {}

    def look(id: str) -> None:
        grid = grid_of(source.size(id), settings.cells)
        mask = Image.fromarray(teacher.masks(id)).resize(
            (grid[1], grid[0]), Image.Resampling.NEAREST
        )
        label = np.asarray(mask, np.int32).ravel()
        random = np.random.default_rng([settings.seed, zlib.crc32(id.encode())])
        known = np.flatnonzero(label != IGNORE)
        chosen = random.choice(known, min(each, len(known)), replace=False)
        rows[id] = rows_of(_maps(frozen, id, grid))[chosen].astype(np.float16)
        labels[id] = label[chosen]

    many = MAX_CELLS // each
    tally = _each("learn to segment", source.ids[:: -(-len(source.ids) // many)], look)
    tally.report("segment")
    order = [id for id in sorted(rows) if len(labels[id])]
    if not order:
        raise UserError(f"{source.name}: no mask has a pixel to learn from")
    label = np.concatenate([labels[id] for id in order])
    weights = [np.full(len(labels[id]), 1 / len(labels[id])) for id in order]
    return probes.fit(
        source.classes.names,
        np.concatenate([rows[id] for id in order]).astype(np.float32),
        label,
        np.ones((len(label), len(source.classes) + 1), bool),
        np.concatenate(weights),
        penalty=settings.penalty,
    )


def _maps(frozen: Sequence[Store], id: str, grid: Size) -> tuple[Float[np.ndarray, "h w _"], ...]:
    return tuple(resize(store.get_scores(id).scores, grid) for store in frozen)


def _each(title: str, ids: Sequence[str], work: Callable[[str], None]) -> Tally:
    """Each image in turn; those that cannot be read are left out."""
    skipped: dict[str, str] = {}

    def done(id: str) -> int:
        try:
            work(id)
        except BadFileError as problem:
            skipped[id] = str(problem)
            return 0
        return 1

    return over_groups(title, ids, len(ids), done, skipped)


def _check(frozen: Sequence[Store], ids: Sequence[str]) -> None:
    if not frozen:
        raise UserError("no store of features; make one by `wsss features`")
    for store in frozen:
        stores.require(store, ids, "features")
