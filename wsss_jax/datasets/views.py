"""The same photographs, of which less is known: without labels and truth, or without classes.

``only`` keeps some of the classes; all others become background. ``among`` numbers the classes as a
longer list does. ``long_tailed`` leaves out most images of most classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from wsss_jax.data.classes import SALIENCY, ClassList, to_mask_index
from wsss_jax.datasets.table import Source
from wsss_jax.types import IGNORE, Size


@dataclass(frozen=True)
class View:
    """A source whose classes, labels and truth are others; photographs pass through."""

    whole: Source
    classes: ClassList
    shown: Callable[[str], Bool[np.ndarray, " c"]]
    truth: Callable[[str], UInt8[np.ndarray, "H W"] | None]
    background: bool | None = None
    chosen: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What provenance calls this data set."""
        return self.whole.name

    @property
    def ids(self) -> tuple[str, ...]:
        """Images of the split, or those of them that were chosen."""
        return self.whole.ids if self.chosen is None else self.chosen

    @property
    def has_background(self) -> bool:
        """As the whole source says, unless the view makes one."""
        return self.whole.has_background if self.background is None else self.background

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Which classes of this view the image shows."""
        return self.shown(id)

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph."""
        return self.whole.image(id)

    def size(self, id: str) -> Size:
        """(height, width) from the header."""
        return self.whole.size(id)

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """The true mask in this view's numbering."""
        return self.truth(id)

    def encoded(self, id: str) -> bytes:
        """The photograph as the bytes of its file."""
        return self.whole.encoded(id)


def photographs(source: Source) -> View:
    """Photographs and nothing else: no labels are shown, no truth is read."""
    none = np.zeros(len(source.classes), bool)
    return View(source, source.classes, partial(_the_same, none), partial(_the_same, None))


def agnostic(source: Source) -> View:
    """One class, that of saliency maps: every pixel of any class, and every image, shows it."""
    shown = partial(_the_same, np.ones(1, bool))
    return View(source, SALIENCY, shown, partial(_any_class, source))


def only(source: Source, names: Sequence[str]) -> Source:
    """These classes, in this order; the pixels of all others are background. No names: all classes.

    So a data set of things and stuff, without background, becomes one of things before a
    background. An image that shows none of them has no label. Unlabelled pixels stay IGNORE.
    Raises ValueError for a name that the source lacks, naming the nearest.
    """
    if not names:
        return source
    chosen = np.array([source.classes.index(name) for name in names])
    table = np.zeros(256, np.uint8)
    table[IGNORE] = IGNORE
    table[to_mask_index(chosen)] = to_mask_index(np.arange(len(chosen)))
    return View(
        source,
        ClassList(tuple(names)),
        partial(_some_labels, source, chosen),
        partial(_some_classes, source, table),
        background=True,
    )


def among(source: Source, classes: ClassList) -> View:
    """The same photographs and truth, whose classes have the numbers of a longer list.

    Raises ValueError for a class that the list lacks.
    """
    chosen = np.array([classes.index(name) for name in source.classes.names])
    table = np.arange(256, dtype=np.uint8)
    table[to_mask_index(np.arange(len(chosen)))] = to_mask_index(chosen)
    return View(
        source,
        classes,
        partial(_spread_labels, source, chosen, len(classes)),
        partial(_some_classes, source, table),
    )


def long_tailed(source: Source, *, imbalance: float = 50.0, seed: int = 0) -> View:
    """A draw of the images in which ever fewer show the next class: an exponential profile.

    Classes keep their order by frequency. Of C classes the one of rank r = 0 … C − 1 is wanted in
    n₀ · imbalance^(−r / (C − 1)) images, at least 1; n₀ images of the source show the first. Rare
    classes are drawn first: an image counts for the rarest class that it shows, so a class gets
    fewer where it has too few, and more where it comes along with rarer ones. Images that show no
    class stay. Source: Cui et al. 2019 (Class-Balanced Loss), section 5.1, of one label an image.
    Raises BadFileError for an image without labels.
    """
    labels = {id: source.labels(id) for id in source.ids}
    table = np.array([*labels.values()], bool).reshape(len(labels), len(source.classes))
    kept = _drawn(table, imbalance, np.random.default_rng(seed))
    return View(
        source,
        source.classes,
        source.labels,
        source.mask,
        chosen=tuple(id for id, keep in zip(labels, kept, strict=True) if keep),
    )


def _drawn(
    table: Bool[np.ndarray, "n c"], imbalance: float, rng: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    counts = table.sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    wanted = counts.max(initial=0) * imbalance ** -np.linspace(0, 1, len(order))
    kept, free = np.zeros(len(table), bool), np.ones(len(table), bool)
    kept[table.sum(axis=1) == 0] = True
    for label, number in reversed([*zip(order, np.maximum(np.round(wanted), 1), strict=True)]):
        candidates = np.flatnonzero(table[:, label] & free)
        lacking = max(int(number) - int((table[:, label] & kept).sum()), 0)
        kept[rng.permutation(candidates)[:lacking]] = True
        free[candidates] = False
    return kept


def _spread_labels(
    source: Source, chosen: Int[np.ndarray, " k"], count: int, id: str
) -> Bool[np.ndarray, " c"]:
    return np.isin(np.arange(count), chosen[source.labels(id)])


def _some_labels(source: Source, chosen: Int[np.ndarray, " k"], id: str) -> Bool[np.ndarray, " k"]:
    return source.labels(id)[chosen]


def _some_classes(
    source: Source, table: UInt8[np.ndarray, " 256"], id: str
) -> UInt8[np.ndarray, "H W"] | None:
    mask = source.mask(id)
    return None if mask is None else table[mask]


T = TypeVar("T")


def _the_same(value: T, id: str) -> T:
    return value


def _any_class(source: Source, id: str) -> UInt8[np.ndarray, "H W"] | None:
    mask = source.mask(id)
    return None if mask is None else np.where(mask == IGNORE, mask, mask > 0).astype(np.uint8)
