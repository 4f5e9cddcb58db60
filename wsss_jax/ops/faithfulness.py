"""How much of a class's probability its map holds: numbers from probabilities, on the host.

Per explained class c of an image: Y is the probability of the image, O of the image seen through
the map, and the rest that of the image without what the map shows. Others are the further classes
of the same image. Each measure gives one value per row, as a fraction in [0, 1] (not percent);
``macro`` and ``micro`` make a mean of them. Masking and forwards are in ``explain.faithfulness``.

Sources: increase in confidence, average drop and win are of Grad-CAM++ (Chattopadhay et al. 2018,
section 4.1); drop of others, retention and retention of others of MinMax-CAM (David et al. 2022).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int, Num

Values = Float[np.ndarray, " m"]

NONE_THERE = 0.0
"""What a row counts whose image shows no other class, as in the code of MinMax-CAM. Give ``nan``
in its place to leave such rows out of the means."""


@dataclass(frozen=True)
class Seen:
    """m explained classes, of any images.

    label: (m,) the class of each row. clean, kept, removed: (m,c) probabilities of all classes of
    the image, of the image through the map of the row's class, and of what that map leaves.
    others: (m,c) the further classes of the image.
    """

    label: Int[np.ndarray, " m"]
    clean: Float[np.ndarray, "m c"]
    kept: Float[np.ndarray, "m c"]
    removed: Float[np.ndarray, "m c"]
    others: Bool[np.ndarray, "m c"]

    def __post_init__(self) -> None:
        for name in ("clean", "kept", "removed"):
            values = getattr(self, name)
            if values.size and not (values.min() >= 0 and values.max() <= 1):
                raise ValueError(
                    f"{name} runs from {values.min():.3g} to {values.max():.3g}, wanted "
                    "probabilities: logits have no drop in percent, take their sigmoid first"
                )


def rows_of(
    clean: Num[np.ndarray, "b c"],
    kept: Num[np.ndarray, "b c c2"],
    removed: Num[np.ndarray, "b c c2"],
    chosen: Bool[np.ndarray, "b c"],
) -> Seen:
    """One row for each chosen class of each image, from probabilities of whole batches.

    ``kept[i, c]`` are the probabilities of image i through the map of class c. The published
    protocol chooses what the network detects, probabilities above one half, whatever the labels.
    """
    image, label = np.nonzero(chosen)
    others = chosen[image]
    others[np.arange(len(label)), label] = False
    return Seen(
        label=label,
        clean=clean[image].astype(np.float64),
        kept=kept[image, label].astype(np.float64),
        removed=removed[image, label].astype(np.float64),
        others=others,
    )


def together(parts: Sequence[Seen]) -> Seen:
    """The rows of several batches."""
    names = ("label", "clean", "kept", "removed", "others")
    return Seen(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def increase(seen: Seen) -> Values:
    """1 where the map alone makes the network surer than the image did; higher is better."""
    return (_own(seen, seen.kept) > _own(seen, seen.clean)).astype(np.float64)


def drop(seen: Seen) -> Values:
    """Share of the probability that is lost when only the map is seen; lower is better."""
    return _own(seen, _loss(seen.clean, seen.kept))


def retention(seen: Seen) -> Values:
    """Share of the probability that is lost when the map is taken away; higher is better."""
    return _own(seen, _loss(seen.clean, seen.removed))


def drop_of_others(seen: Seen, *, alone: float = NONE_THERE) -> Values:
    """Mean share that the other classes lose when only the map is seen; higher is better."""
    return _of_others(seen, seen.kept, alone)


def retention_of_others(seen: Seen, *, alone: float = NONE_THERE) -> Values:
    """Mean share that the other classes lose when the map is taken away; lower is better."""
    return _of_others(seen, seen.removed, alone)


def micro(values: Values, label: Int[np.ndarray, " m"]) -> float:
    """Mean over the rows, NaN left out: frequent classes count more. This is the papers' text."""
    return _mean(values)


def macro(values: Values, label: Int[np.ndarray, " m"]) -> float:
    """Mean over the classes that have rows, of their means: the code of MinMax-CAM."""
    return _mean(np.array([_mean(values[label == own]) for own in np.unique(label)]))


def summary(
    seen: Seen,
    *,
    mean: Callable[[np.ndarray, np.ndarray], float] = macro,
    alone: float = NONE_THERE,
) -> Mapping[str, float]:
    """The five measures by name, and two harmonic means of a pair of them.

    ``mean`` is ``macro`` or ``micro``, ``alone`` as in ``drop_of_others``. ``keeps`` joins
    retention and drop of others (higher is better), ``misses`` drop and retention of others (lower
    is better), each by F1 as in the code of MinMax-CAM.
    """
    measures = {
        "increase": increase(seen),
        "drop": drop(seen),
        "retention": retention(seen),
        "drop_of_others": drop_of_others(seen, alone=alone),
        "retention_of_others": retention_of_others(seen, alone=alone),
    }
    found = {name: mean(values, seen.label) for name, values in measures.items()}
    found["keeps"] = f_beta(found["retention"], found["drop_of_others"])
    found["misses"] = f_beta(found["drop"], found["retention_of_others"])
    return MappingProxyType(found)


def f_beta(first: float, second: float, *, beta: float = 1.0) -> float:
    """Weighted harmonic mean; ``second`` counts ``beta`` times as much. 0 where both are."""
    below = beta**2 * first + second
    return (1 + beta**2) * first * second / below if below else 0.0


def win(first: Values, second: Float[np.ndarray, " rows"], *, tie: float = 0.0) -> float:
    """Share of rows where the first method's drop is below the second's by more than ``tie``.

    Ties are no wins. Two methods of one formula differ by rounding, so 0 counts noise there.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} drops, wanted those of the same rows")
    return _mean((first < second - tie).astype(np.float64))


def published_area(accuracy: Float[np.ndarray, " steps"]) -> float:
    """Area under accuracies at 0, 10, … 90 % of the pixels removed, as in published tables.

    The trapezoids of ten points 0.1 apart, which add up to at most 0.9 (Chefer et al. 2021; their
    tables give percent). Other numbers of points are refused: they would not compare.
    """
    if len(accuracy) != 10:
        raise ValueError(f"{len(accuracy)} accuracies, wanted those at 0, 0.1, … 0.9 removed")
    return 0.9 * mean_area(accuracy)


def mean_area(values: Float[np.ndarray, " steps"]) -> float:
    """Trapezoidal mean of a curve over equal steps, in the units of its values (RISE)."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} points make no curve; wanted two or more")
    return float((values.sum() - (values[0] + values[-1]) / 2) / (len(values) - 1))


def _loss(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Share of a probability that is lost; 0 where there was none to lose."""
    return np.maximum(before - after, 0) / np.where(before > 0, before, 1)


def _own(seen: Seen, values: np.ndarray) -> Values:
    return values[np.arange(len(seen.label)), seen.label]


def _of_others(seen: Seen, through: np.ndarray, alone: float) -> Values:
    count = seen.others.sum(axis=1)
    total = np.where(seen.others, _loss(seen.clean, through), 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), alone)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
