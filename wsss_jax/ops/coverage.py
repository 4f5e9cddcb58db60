"""Which few items stand best for all: greedy facility location.

Each item has a worth, and each pair a likeness in [0, 1]: how much is known of one once the other
is known. A choice is worth the sum over all items of worth times likeness to the nearest chosen
one. Greedy choice reaches 1 - 1/e of the best (Nemhauser, Wolsey & Fisher 1978).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Choice(NamedTuple):
    """One chosen item. gain: what it adds to the worth, as a share of all worth, in [0, 1]."""

    item: int
    gain: float


def choose(
    worth: Float[np.ndarray, " m"],
    likeness: Float[np.ndarray, "n m"],
    count: int,
    *,
    known: Sequence[int] = (),
) -> list[Choice]:
    """The ``count`` best of n items, best first, for m items that are to be covered.

    worth: >= 0. known: items that are chosen already and not again. Where the best adds nothing
    more, covering begins anew with those that are left; of equal ones the first is taken.
    """
    total = float(worth.sum()) or 1.0
    left = np.ones(len(likeness), bool)
    left[list(known)] = False
    covered = likeness[list(known)].max(axis=0, initial=0.0)
    chosen: list[Choice] = []
    while len(chosen) < count and left.any():
        gains = np.maximum(likeness - covered, 0) @ worth
        best = int(np.where(left, gains, -1).argmax())
        if gains[best] <= 1e-6 * total and covered.any():
            covered = np.zeros_like(covered)
            continue
        chosen.append(Choice(best, float(gains[best]) / total))
        left[best] = False
        covered = np.maximum(covered, likeness[best])
    return chosen


def likeness_of(
    classes: Bool[np.ndarray, "n c"], features: Float[np.ndarray, "n f"] | None = None
) -> Float[np.ndarray, "n n"]:
    """How much a true mask of the image of a row tells of that of a column.

    It is the share of the column's classes that the row shows, times the cosine of their features
    (below 0: nothing) where there are any. An image tells everything of itself.
    """
    shown = classes.astype(np.float32)
    shared = shown @ shown.T / np.maximum(shown.sum(axis=1), 1)[np.newaxis]
    if features is not None:
        length = np.linalg.norm(features, axis=1, keepdims=True)
        unit = (features / np.maximum(length, 1e-12)).astype(np.float32)
        shared = shared * np.clip(unit @ unit.T, 0, 1)
    np.fill_diagonal(shared, 1)
    return shared.astype(np.float32)
