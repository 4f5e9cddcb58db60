"""Score maps out of planes of all classes: logits with background, and plain arrays of maps.

Networks of segmentation write one plane per class, of those too that an image does not show. Kept
are the planes of the image's classes. Not here: files, and dictionaries of single classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from wsss_jax.errors import UserError, first_few
from wsss_jax.formats.pickled_arrays import kind_of

NEGATIVE = 0.02
"""Planes with background that go further below 0 are logits."""

SUM_SLACK = 0.02
"""How far background and classes of probabilities may sum from 1."""

_FEW = 0.02

Planes = tuple[tuple[int, ...], np.ndarray]
"""Numbers of classes, 1 for the first, and their maps (k,h,w)."""


def field_of(
    content: Mapping, fields: Sequence[str], field: str | None = None, also: str = ""
) -> str:
    """The field of the maps: the one asked for, else the first that there is. Raises ValueError."""
    wanted = fields if field is None else (field,)
    name = next((name for name in wanted if name in content), None)
    if name is None:
        needed = " or ".join(wanted)
        raise UserError(f"fields {first_few(content, 12)}, wanted {also}{needed}")
    return name


def stacked_logits(
    content: Mapping, fields: Sequence[str], field: str | None
) -> tuple[str, np.ndarray]:
    """The field of logits over background and classes, and its values (k,h,w), averaged over n."""
    name = field_of(content, fields, field)
    values = content[name]
    if not isinstance(values, np.ndarray) or values.ndim not in (3, 4) or not values.size:
        raise UserError(f"{name} is {kind_of(values)}, wanted logits (1, classes + 1, h, w)")
    if values.dtype.kind != "f":
        raise UserError(f"{name} is of type {values.dtype}, wanted logits")
    if values.ndim == 4:
        values = values[0] if len(values) == 1 else values.mean(axis=0, dtype=np.float32)
    return name, values


def shares(values: np.ndarray, labels: Bool[np.ndarray, " c"]) -> Planes:
    """Probabilities (softmax) of the image's classes, with background, out of logits (1+c,h,w).

    Classes that the image does not show are left out, as every tool does before its own argmax.
    """
    present = np.flatnonzero(labels) + 1
    chosen = values[[0, *present]].astype(np.float32)
    bad = np.asarray([not np.isfinite(plane).all() for plane in chosen])
    if bad[0]:
        raise UserError("NaN or infinity in the logits of background; make them again")
    chosen[bad] = -np.inf  # a class without logits takes no share, and is refused by itself
    if not _are_shares(values):
        chosen -= chosen.max(axis=0, keepdims=True)
        np.exp(chosen, out=chosen)
    chosen = np.maximum(chosen, 0)
    chosen /= np.maximum(chosen.sum(axis=0, keepdims=True), np.finfo(np.float32).tiny)
    chosen[bad] = np.nan
    return tuple(present.tolist()), chosen[1:]


def _are_shares(values: np.ndarray) -> bool:
    """Whether planes are probabilities already: a second softmax would make them nearly equal."""
    if not 0 <= values.min() <= values.max() <= 1 + SUM_SLACK:
        return False
    return bool(np.abs(values.sum(axis=0, dtype=np.float32) - 1).max() < SUM_SLACK)


def _check_background_first(values: np.ndarray, labels: Bool[np.ndarray, " c"]) -> None:
    """UserError where the planes fit the labels only with background last."""
    present = np.flatnonzero(labels)
    filled = set(
        np.flatnonzero(values.max(axis=(1, 2), initial=0) > values.min(initial=0)).tolist()
    )
    last, first = {*present.tolist(), len(labels)}, {0, *(present + 1).tolist()}
    best = np.bincount(np.asarray(values).argmax(axis=0).ravel(), minlength=len(values))
    share = best / max(best.sum(), 1)
    # Where no plane is empty, the winners tell: background and a class of the image, if it is last.
    wins = min(share[len(labels)], share[present].sum()) > _FEW
    wins &= share[sorted(last)].sum() > 1 - _FEW
    wins &= share[sorted(first)].sum() < 1 / 2
    if wins or (filled <= last and not filled <= first):
        raise UserError("background seems to be the last plane, wanted the first; save it so")


def of_array(content: Any, labels: Bool[np.ndarray, " c"]) -> tuple[Planes, str]:
    """Planes of an array (C,h,w) or (1+C,h,w), background first, and its name in the file.

    content: the array, or a dictionary with one. Raises UserError for other arrays, and where
    background seems to be the last plane.
    """
    name = ""
    if isinstance(content, Mapping):
        arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray) and v.ndim >= 3}
        if len(arrays) != 1 or not isinstance(next(iter(arrays)), str):
            raise UserError(f"fields {first_few(content, 12)}, wanted one array (classes, h, w)")
        ((name, content),) = arrays.items()
    if content.ndim == 4 and len(content) == 1:
        content = content[0]
    count = len(labels)
    if content.ndim != 3 or len(content) not in (count, count + 1):
        hint = ""
        if content.shape[2:] in ((count,), (count + 1,)):
            hint = "; save it as (classes, h, w)"
        elif content.ndim == 2:
            hint = "; save masks and saliency as PNG"
        raise UserError(
            f"an array of shape {content.shape}, wanted {count} planes, one per class, or "
            f"{count + 1} with background first{hint}"
        )
    if content.dtype.kind not in "fbiu":
        raise UserError(f"an array of type {content.dtype}, wanted numbers")
    if len(content) == count:
        present = np.flatnonzero(labels)
        return (tuple((present + 1).tolist()), content[present]), name
    _check_background_first(content, labels)
    if content.dtype.kind == "f" and content.min() < -NEGATIVE:
        return shares(content, labels), name
    present = np.flatnonzero(labels) + 1
    return (tuple(present.tolist()), content[present]), name
