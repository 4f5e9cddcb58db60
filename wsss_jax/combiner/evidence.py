"""What several systems say of one image, laid on one small grid.

An image becomes an ``Example``: everything resized so that its long side has ``cells`` cells, one
slot per class that is present. Scores come from stores, whoever wrote them; a system without a
record of an image, or without one of its classes, has no say there. Into batches they are put by
``combiner.batches``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from wsss_jax.combiner.probe_maps import Probe
from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.datasets import Source
from wsss_jax.data.stores import Store, check_systems
from wsss_jax.data.units import unit_of
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops import masks
from wsss_jax.types import IGNORE, ScoreMaps, Size


class Example(NamedTuple):
    """One image: arrays of ``types.Evidence`` without the batch axis, and without padding.

    classes: (k,) of its slots. size: (H, W) of the photograph. saliency, edges, probe, last_probe
    and target are None where there are none; truth is where no image is labelled, and IGNORE on
    those that are not.
    """

    image: Float[np.ndarray, "h w 3"]
    scores: Float[np.ndarray, "s h w k"]
    available: Bool[np.ndarray, "s k"]
    peak: Float[np.ndarray, "s k"]
    classes: Int[np.ndarray, " k"]
    size: Size
    features: Float[np.ndarray, "h w f"]
    saliency: Float[np.ndarray, "h w"] | None = None
    edges: Float[np.ndarray, "h w"] | None = None
    probe: Float[np.ndarray, "h w k"] | None = None
    last_probe: Float[np.ndarray, "h w k"] | None = None
    target: Float[np.ndarray, "h w n"] | None = None
    truth: Int[np.ndarray, "h w"] | None = None


Read = Callable[[str], Example]
"""From an id to its example; BadFileError for an image that cannot be used."""


@dataclass(frozen=True)
class Inputs:
    """The stores that evidence is read from, and the photographs.

    systems: score maps of classes, in any order. saliency, edges: stores of one class-agnostic
    map. features: a store of frozen features (``stages.features``). probe: what these features and
    colours are over the whole data set (``combiner.probe_maps``); last_probe: one that is no
    evidence, but averaged with what is made of it. target: what a combiner is to learn, or,
    where it fuses, what it is averaged with.
    labelled: ids whose true masks may be read (the k-shot regime). cells: the grid's long side.
    fitted: how many of the frozen channels, the first, go into an example; the probe sees all.
    units: typical divides systems whose scores stay low (``data.units``), given does not.
    Raises ValueError without a system, for one of other classes than the source's, and for a cue of
    several.
    """

    source: Source
    systems: tuple[Store, ...]
    saliency: Store | None = None
    edges: Store | None = None
    features: Store | None = None
    probe: Probe | None = None
    last_probe: Probe | None = None
    target: Store | None = None
    labelled: frozenset[str] = frozenset()
    cells: int = 96
    fitted: int = 24
    units: Literal["typical", "given"] = "typical"

    def __post_init__(self) -> None:
        check_systems(self.systems, self.source.classes.names)
        for name, cue in (("saliency", self.saliency), ("edges", self.edges)):
            if cue is not None and (cue.holds != "scores" or len(cue.classes) != 1):
                raise UserError(
                    f"{cue.folder} holds {cue.holds} of {len(cue.classes)} classes; wanted one "
                    f"class-agnostic map as {name}"
                )

    def channels(self) -> int:
        """How many frozen channels an example has."""
        return min(len(self.features.classes), self.fitted) if self.features else 0

    def slots(self, ids: Sequence[str]) -> dict[str, int]:
        """How many classes each image has; images without labels are left out."""
        counts = {id: int(self.source.labels(id).sum()) for id in ids}
        return {id: count for id, count in counts.items() if count}

    def read(self, id: str) -> Example:
        """The example of one image. BadFileError when something is there but damaged."""
        pixels = self.source.image(id)
        size = self.source.size(id)
        grid = grid_of(size, self.cells)
        classes = np.flatnonzero(self.source.labels(id)).astype(np.int32)
        scores, available, peak = self._systems(id, classes, size, grid)
        image, features = shrunk(pixels, grid), self._features(id, grid)
        names = tuple(self.source.classes.names[label] for label in classes)
        saliency = self._cue(self.saliency, id, grid)
        cell = (features, image, saliency)
        return Example(
            image=image,
            scores=scores,
            available=available,
            peak=peak,
            classes=classes,
            size=size,
            features=np.ascontiguousarray(features[..., : self.fitted]),
            saliency=saliency,
            edges=self._cue(self.edges, id, grid),
            probe=self.probe.maps(*cell, names) if self.probe else None,
            last_probe=self.last_probe.maps(*cell, names) if self.last_probe else None,
            target=self._target(id, classes, grid),
            truth=self._truth(id, classes, grid) if self.labelled else None,
        )

    def _systems(
        self, id: str, classes: np.ndarray, size: Size, grid: Size
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(self.systems)
        scores = np.zeros((count, *grid, len(classes)), np.float32)
        available = np.zeros((count, len(classes)), bool)
        peak = np.zeros((count, len(classes)), np.float32)
        for row, store in enumerate(self.systems):
            if not store.path(id).is_file():
                continue
            maps = store.get_scores(id)
            if maps.size != size:
                raise BadFileError(
                    f"{store.path(id)}: scores of a photograph of {maps.size}, this one is {size}"
                )
            columns = {int(label): n for n, label in enumerate(maps.classes)}
            for slot, label in enumerate(classes):
                if int(label) in columns:
                    one = columns[int(label)]
                    scores[row, ..., slot] = _unit(maps, one, grid, self.divisors[row])
                    available[row, slot], peak[row, slot] = True, maps.peak[one]
        return scores, available, peak

    @cached_property
    def divisors(self) -> tuple[float, ...]:
        """What each system's scores are divided by; 1 for most."""
        return tuple(unit_of(one) if self.units == "typical" else 1.0 for one in self.systems)

    def _cue(self, store: Store | None, id: str, grid: Size) -> np.ndarray | None:
        if store is None or not store.path(id).is_file():
            return None
        return _unit(store.get_scores(id), 0, grid)

    def _features(self, id: str, grid: Size) -> np.ndarray:
        if self.features is None:
            return np.zeros((*grid, 0), np.float32)
        return masks.enlarge(self.features.get_scores(id).scores, grid)

    def _target(self, id: str, classes: np.ndarray, grid: Size) -> np.ndarray | None:
        if self.target is None:
            return None
        maps = self.target.get_scores(id)
        found = np.zeros((*grid, len(classes)), np.float32)
        for slot, label in enumerate(classes):
            for column in np.flatnonzero(maps.classes == label):
                found[..., slot] = _unit(maps, int(column), grid)
        rest = np.maximum(1 - found.sum(axis=-1, keepdims=True), 0)
        return np.concatenate([rest, found], axis=-1)

    def _truth(self, id: str, classes: np.ndarray, grid: Size) -> np.ndarray:
        mask = self.source.mask(id) if id in self.labelled else None
        if mask is None:
            return np.full(grid, IGNORE, np.int32)
        small = np.asarray(
            Image.fromarray(mask).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
        )
        slots = np.full(256, IGNORE, np.int32)  # a class that is not labelled teaches nothing
        slots[0] = 0
        slots[to_mask_index(classes)] = np.arange(1, len(classes) + 1)
        return slots[small]


def grid_of(size: Size, cells: int) -> Size:
    """The grid of a photograph: its long side has ``cells`` cells, its short one at least 1."""
    scale = cells / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def shrunk(pixels: np.ndarray, grid: Size) -> Float[np.ndarray, "h w 3"]:
    """A photograph on the grid: means over areas, in [0, 1]."""
    small = Image.fromarray(pixels).resize((grid[1], grid[0]), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


def _unit(maps: ScoreMaps, column: int, grid: Size, of: float = 1) -> Float[np.ndarray, "h w"]:
    """One map on the grid, in shares ``of`` a unit and in [0, 1]; logits become probabilities."""
    one = masks.enlarge(np.ascontiguousarray(maps.scores[..., column : column + 1]), grid)[..., 0]
    if maps.kind == "logit":
        one = 1 / (1 + np.exp(-np.clip(one, -30, 30)))
    return np.clip(one / np.float32(of), 0, 1).astype(np.float32)
