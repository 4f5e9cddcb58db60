"""Masks: made from score maps, and judged against true masks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from wsss_jax.api import arguments
from wsss_jax.data.classes import BACKGROUND, ClassList
from wsss_jax.data.ids import by_id
from wsss_jax.data.mask_files import SUFFIXES, read_truth
from wsss_jax.data.stores import Store
from wsss_jax.datasets.source import mask_file
from wsss_jax.errors import BadFileError, UserError, first_few
from wsss_jax.ops import masks, metrics
from wsss_jax.run.thresholds import label_free_threshold
from wsss_jax.stages.masks import Masking, mask_of
from wsss_jax.types import IGNORE, ScoreMaps

BINS = 100
"""Of the histogram that a threshold is read off."""


@dataclass(frozen=True)
class Evaluation:
    """How masks compare with the truth.

    counts: (n,n) integer pixels, rows truth, columns prediction, index 0 background. names: of the
    n indices. ids: images that were judged. without_prediction: true masks that nothing was
    predicted for; they do not count.
    """

    counts: Int[np.ndarray, "n n"]
    names: tuple[str, ...]
    ids: tuple[str, ...]
    without_prediction: tuple[str, ...] = ()

    @property
    def iou(self) -> Float[np.ndarray, " n"]:
        """Intersection over union of each index, in [0, 1]; NaN where it does not occur."""
        return metrics.iou(self.counts)

    @property
    def mean(self) -> float:
        """Mean IoU over the indices that occur, background among them, in [0, 1]."""
        return float(metrics.mean_over(self.iou))

    @property
    def per_class(self) -> Mapping[str, float]:
        """IoU by name."""
        return dict(zip(self.names, self.iou.tolist(), strict=True))


def evaluate(predicted: Any, truth: Any, *, classes: int | Sequence[str] | ClassList) -> Evaluation:
    """Judge masks against true masks: per class, mean, and integer counts.

    predicted, truth: folders of masks that have one name each (PNG, TIFF or BMP: 0 background,
    1..C classes, 255 unknown in the truth), or two masks (H,W) of whole numbers. classes: how many
    values masks hold, **background included** (21 for VOC), or the names of the foreground classes.

    Returns an Evaluation: ``.iou`` (n,), ``.mean``, ``.per_class``, ``.counts`` (n,n). The mean IoU
    of a set is that of the summed counts, as VOC has it. Raises UserError for a prediction without
    truth, masks of other sizes, and values that no class has, naming the file.

    >>> import numpy as np
    >>> import wsss_jax as wj
    >>> truth = np.array([[0, 0, 1, 255]], np.uint8)
    >>> found = wj.evaluate(np.array([[0, 1, 1, 0]], np.uint8), truth, classes=2)
    >>> found.iou, found.mean, int(found.counts.sum())
    (array([0.5, 0.5]), 0.5, 3)
    """
    names = _names(classes)
    if isinstance(predicted, str | Path) != isinstance(truth, str | Path):
        raise UserError("predicted and truth must both be folders, or both masks")
    if not isinstance(predicted, str | Path):
        pair = _indices(truth, "truth"), _indices(predicted, "predicted")
        one = _counted(*pair, len(names), "the mask")
        return Evaluation(one, names, ("mask",))
    guesses, truths = _masks_in(Path(predicted)), _masks_in(Path(truth))
    alone = sorted(guesses.keys() - truths.keys())
    if alone:
        raise UserError(
            f"{predicted}: {len(alone)} of {len(guesses)} masks have no true mask of that name in "
            f"{truth} ({first_few(alone)})"
        )
    counts = np.zeros((len(names), len(names)), np.int64)
    for id, path in guesses.items():
        counts += _counted(read_truth(truths[id]), read_truth(path), len(names), str(path))
    left = tuple(sorted(truths.keys() - guesses.keys()))
    return Evaluation(counts, names, tuple(guesses), left)


def masks_of(
    maps: object, threshold: float | None = None, *, background: bool = True
) -> np.ndarray:
    """The mask of one image from its score maps: the best class above the threshold.

    maps: ScoreMaps, or an array (H,W,k) in [0, 1] of classes 0..k-1 without background. threshold:
    score that foreground exceeds; by default a half for probabilities and 0.3 for activations and
    arrays (``otsu_threshold`` reads one off the maps). background: without it every pixel gets its
    best class. Returns (H,W) uint8 at the photograph's size: 0 background, class + 1.

    Raises ValueError for other shapes and types, with the line that makes them right.

    >>> import numpy as np
    >>> import wsss_jax as wj
    >>> wj.masks_of(np.array([[[0.1, 0.2], [0.9, 0.4]]]))
    array([[0, 1]], dtype=uint8)
    """
    given = _no_logits(maps)
    default = 0.5 if given.kind == "probability" else 0.3
    chosen = default if threshold is None else threshold
    arguments.number(chosen, "threshold", 0)
    if given.classes.max(initial=0) >= IGNORE - 1:
        raise ValueError(f"class {given.classes.max()}; masks are bytes, of at most 254 classes")
    return mask_of(given, Masking(chosen, background=background))


def otsu_threshold(maps: object) -> float:
    """The threshold between foreground and background, from the scores alone.

    maps: ScoreMaps, an array (h,w,k) in [0, 1], a list of either, or a store of activations. It
    splits the cells' highest scores into two parts with the largest variance between them. Returns
    a number in (0, 1); no mask and no label is read. Logits are refused.
    Source: Otsu 1979. Raises ValueError where all scores are equal.

    >>> import numpy as np
    >>> import wsss_jax as wj
    >>> wj.otsu_threshold(np.array([[[0.1], [0.2], [0.8], [0.9]]]))
    0.505
    """
    if isinstance(maps, Store):
        found = label_free_threshold(maps, maps.ids())
        if found is None:
            raise UserError(f"{maps.folder}: no activations, or all scores are equal")
        return found
    several = maps if isinstance(maps, list | tuple) else [maps]
    counts = np.zeros(BINS)
    for one in map(_no_logits, several):
        best = one.scores.max(axis=-1, initial=0)
        counts += np.histogram(best, BINS, (0.0, 1.0))[0]
    return masks.otsu(counts)


def _no_logits(maps: object) -> ScoreMaps:
    given = _score_maps(maps)
    if given.kind == "logit":
        raise UserError("maps are logits; take a sigmoid or a softmax of them first")
    return given


def _score_maps(maps: object) -> ScoreMaps:
    if isinstance(maps, ScoreMaps):
        return arguments.score_maps(maps, "maps")
    scores = arguments.shares(maps, "maps")
    classes = np.arange(scores.shape[-1], dtype=np.int32)
    return ScoreMaps(scores, classes, scores.shape[:2], scores.max(axis=(0, 1), initial=0))


def _names(classes: int | Sequence[str] | ClassList) -> tuple[str, ...]:
    if isinstance(classes, ClassList):
        return classes.mask_names()
    if isinstance(classes, int | np.integer):
        if not 2 <= classes <= IGNORE:
            raise UserError(f"classes is {classes}, wanted 2 to {IGNORE}, background included")
        return tuple(str(index) for index in range(classes))
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UserError(f'classes is {classes!r}, wanted a number, or names: ["cat", "dog"]')
    names = ClassList(tuple(classes)).mask_names()
    if BACKGROUND in names[1:]:
        raise UserError(f"{BACKGROUND} is among the classes; it counts anyway, leave it out")
    return names


def _masks_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise BadFileError(f"{folder}: no such folder")
    found = by_id(folder, (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES))
    if not found:
        raise BadFileError(f"{folder}: no masks in it; wanted PNG files")
    return {id: mask_file(paths, folder) for id, paths in found.items()}


def _indices(mask: object, name: str) -> np.ndarray:
    """A mask (H,W) uint8 from whole numbers of any type."""
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}, wanted class indices (H, W) of whole numbers: "
            "mask.round().astype(np.uint8) of floats; of several masks give their folders"
        )
    if array.size and not 0 <= array.min() <= array.max() <= IGNORE:
        raise ValueError(
            f"{name} goes from {array.min()} to {array.max()}, wanted class indices up to {IGNORE}"
        )
    return array.astype(np.uint8)


def _counted(truth: np.ndarray, guess: np.ndarray, values: int, name: str) -> np.ndarray:
    try:
        return metrics.confusion(truth, guess, values - 1).counts
    except ValueError as problem:
        raise BadFileError(f"{name}: {problem}") from problem
