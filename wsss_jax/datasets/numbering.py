"""Whether the numbers in true masks are those of the image labels, and what they are if not.

Nothing but which values occur in which photograph is compared with its labels. A number that is
computed from masks of another numbering means nothing, and nobody would see it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from wsss_jax.data.classes import ClassList
from wsss_jax.types import IGNORE

FITS = 0.9
"""How well another numbering must agree with the labels to be named as the cause."""

_OFTEN = 0.5
_SOME = 0.2


def contradicted(
    values: Bool[np.ndarray, "n v"], labels: Bool[np.ndarray, "n c"]
) -> Bool[np.ndarray, " n"]:
    """Photographs (n,) whose mask shows a class that their labels do not have.

    values: which mask values 0 to C, or to 255, occur.
    """
    return np.any(values[:, 1 : labels.shape[1] + 1] & ~labels, axis=1)


def mistake(
    values: Bool[np.ndarray, "n v"], labels: Bool[np.ndarray, "n c"], classes: ClassList
) -> str | None:
    """What is wrong with the numbering of a data set's masks, and the likely cause; else None.

    values: which mask values 0 to C, or to 255, occur in each of n photographs. labels: theirs.
    """
    count = labels.shape[1]
    if not len(values) or not labels.any():
        return None
    own = values[:, 1 : count + 1]
    wrong = contradicted(values, labels)
    share = float(wrong.sum() / max(own.any(axis=1).sum(), 1))
    if own.any() and share < _SOME:
        return None
    found = _cause(values, labels, classes)
    if not own.any():
        shown = int(labels.any(axis=1).sum())
        text = f"no mask holds a class, though {shown} of {len(labels)} photographs show one"
        return f"{text}; {found or _without_classes(values)}"
    if share < _OFTEN and (found is None or wrong.sum() < 2):
        return None
    unlike = int((wrong | (labels.any(axis=1) & ~own.any(axis=1))).sum())
    text = f"the classes in masks of {unlike} of {len(labels)} photographs are not those of their "
    if values[:, count + 1 : IGNORE].any():
        return f"{text}labels; {found or _without_classes(values)}"
    return f"{text}labels; {found or 'do masks and labels have the same list of classes?'}"


def _cause(
    values: Bool[np.ndarray, "n v"], labels: Bool[np.ndarray, "n c"], classes: ClassList
) -> str | None:
    """The numbering that agrees with the labels, in words; None where none does."""
    count = labels.shape[1]
    by_value = np.zeros((len(values), IGNORE), bool)
    by_value[:, : min(values.shape[1], IGNORE)] = values[:, :IGNORE]
    if count == 1 and _agreement(by_value[:, :1], labels) >= FITS:
        return f"inverted: value 0 is {classes.names[0]} and 1 background; exchange them"
    if _agreement(by_value[:, :count], labels) >= FITS:
        return (
            f"numbered from 0: value 0 is {classes.names[0]}, where 1 is wanted; add 1 to all "
            "classes, and write background as 0"
        )
    if _agreement(by_value[:, 2 : count + 2], labels) >= FITS:
        return (
            f"shifted by one: value 2 is {classes.names[0]}, where 1 is wanted; take 1 from all "
            "classes, and write background as 0"
        )
    order = _order(by_value[:, 1 : count + 1], labels)
    if len(labels) > 2 and _agreement(by_value[:, 1 : count + 1][:, order], labels) >= FITS:
        moved = [n for n in range(count) if order[n] != n and labels[:, n].any()]
        told = ", ".join(f"{order[n] + 1} is {classes.names[n]}" for n in moved[:6])
        return (
            f"classes are in another order: value {told}; list the classes in the order of the "
            "masks, in labels.json or class_names.txt"
        )
    return None


def _agreement(shown: Bool[np.ndarray, "n c"], labels: Bool[np.ndarray, "n c"]) -> float:
    """Mean share of classes in common, of photographs that show any."""
    either = (shown | labels).sum(axis=1)
    both = (shown & labels).sum(axis=1)
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else 0.0


def _order(
    shown: Bool[np.ndarray, "n c"], labels: Bool[np.ndarray, "n c"]
) -> Int[np.ndarray, " c"]:
    """The column of ``shown`` that goes best with each class."""
    same = labels.astype(np.float64).T @ shown - labels.astype(np.float64).T @ ~shown
    same -= (~labels).astype(np.float64).T @ shown
    from scipy.optimize import linear_sum_assignment  # takes longer to import than it runs

    # Where nothing tells two columns apart, a class keeps its own.
    return linear_sum_assignment(same + 1e-3 * np.eye(len(same)), maximize=True)[1]


def _without_classes(values: Bool[np.ndarray, "n v"]) -> str:
    there = np.flatnonzero(values.any(axis=0)).tolist()
    wanted = "write 1 for the first class, 2 for the second"
    if set(there) <= {0, IGNORE}:
        told = "all is background" if there == [0] else "only 0 and 255, and 255 means unknown"
        return f"{told}: {wanted}"
    some = ", ".join(map(str, there[:8])) + (" …" if len(there) > 8 else "")
    return f"they hold the values {some}: {wanted}"


def table_of(
    seen: Mapping[str, Sequence[int]], labels: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Which values (n, 256) and labels (n, C) each photograph has, of those with both."""
    ids = [id for id in seen if id in labels]
    values = np.zeros((len(ids), IGNORE + 1), bool)
    for row, id in enumerate(ids):
        values[row, list(seen[id])] = True
    return values, np.array([labels[id] for id in ids], bool).reshape(len(ids), -1 if ids else 0)
