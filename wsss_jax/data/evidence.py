"""What several systems say of one image, laid on one small grid and put into batches.

An image becomes an ``Example``: everything resized so that its long side has ``cells`` cells, one
slot per class that is present. Batches lie on a square canvas of that many cells, and hold images
of the same number of slots (1, 2, 4, 8 …), so that few shapes are compiled whatever the data set.
Scores come from stores, whoever wrote them; a system without a record of an image, or without one
of its classes, has no say there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from wsss_jax.config import fingerprint
from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.datasets import Source
from wsss_jax.data.files import BadFileError
from wsss_jax.data.stores import Store
from wsss_jax.data.units import unit_of
from wsss_jax.ops import masks
from wsss_jax.types import IGNORE, Evidence, ScoreMaps, Size

SLOTS = 8
"""Class slots per batch by default: eight images of one class, or four of two, and so on."""


class Example(NamedTuple):
    """One image: arrays of ``types.Evidence`` without the batch axis, and without padding.

    classes: (k,) of its slots. size: (H, W) of the photograph. saliency, edges and target are None
    where there are none; truth is where no image is labelled, and IGNORE on those that are not.
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
    target: Float[np.ndarray, "h w n"] | None = None
    truth: Int[np.ndarray, "h w"] | None = None


Read = Callable[[str], Example]
"""From an id to its example; BadFileError for an image that cannot be used."""


@dataclass(frozen=True)
class Inputs:
    """The stores that evidence is read from, and the photographs.

    systems: score maps of classes, in any order. saliency, edges: stores of one class-agnostic
    map. features: a store of frozen features (``stages.features``). target: what a combiner is to
    learn. labelled: ids whose true masks may be read (the k-shot regime). cells: the grid's long
    side. units: typical divides systems whose scores stay low (``data.units``), given does not.
    """

    source: Source
    systems: tuple[Store, ...]
    saliency: Store | None = None
    edges: Store | None = None
    features: Store | None = None
    target: Store | None = None
    labelled: frozenset[str] = frozenset()
    cells: int = 96
    units: Literal["typical", "given"] = "typical"

    def channels(self) -> int:
        """How many frozen channels there are."""
        return len(self.features.classes) if self.features else 0

    def slots(self, ids: Sequence[str]) -> dict[str, int]:
        """How many classes each image has; images without labels are left out."""
        counts = {id: int(self.source.labels(id).sum()) for id in ids}
        return {id: count for id, count in counts.items() if count}

    def read(self, id: str) -> Example:
        """The example of one image. BadFileError when something is there but damaged."""
        pixels = self.source.image(id)
        size = pixels.shape[:2]
        grid = grid_of(size, self.cells)
        classes = np.flatnonzero(self.source.labels(id)).astype(np.int32)
        scores, available, peak = self._systems(id, classes, size, grid)
        return Example(
            image=shrunk(pixels, grid),
            scores=scores,
            available=available,
            peak=peak,
            classes=classes,
            size=size,
            features=self._features(id, grid),
            saliency=self._cue(self.saliency, id, grid),
            edges=self._cue(self.edges, id, grid),
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


def slots_for(count: int) -> int:
    """The next of 1, 2, 4, 8 …"""
    return 1 << max(count - 1, 0).bit_length()


def batched(examples: Sequence[Example], *, rows: int, slots: int, cells: int) -> Evidence:
    """Examples on one canvas (rows, cells, cells); rows beyond them are copies that do not count.

    ``target`` and ``truth`` are given where any example has them; ``truth`` is IGNORE for the
    others.
    """
    count = len(examples)
    filled = [*examples, *[examples[0]] * (rows - count)]
    target = [one.target for one in filled if one.target is not None]
    truth = [one.truth for one in filled]
    wide = {1: (cells, cells), 3: (cells, cells, filled[0].features.shape[-1])}
    return Evidence(
        images=np.stack([_laid(one.image, (cells, cells, 3)) for one in filled]),
        scores=np.stack(
            [_laid(one.scores, (len(one.scores), cells, cells, slots)) for one in filled]
        ),
        available=np.stack([_laid(one.available, (len(one.available), slots)) for one in filled]),
        peak=np.stack([_laid(one.peak, (len(one.peak), slots)) for one in filled]),
        present=np.stack([np.arange(slots) < len(one.classes) for one in filled]),
        saliency=np.stack([_laid_cue(one.saliency, cells) for one in filled]),
        edges=np.stack([_laid_cue(one.edges, cells) for one in filled]),
        cues=np.stack([(one.saliency is not None, one.edges is not None) for one in filled]),
        features=np.stack([_laid(one.features, wide[3]) for one in filled]),
        inside=np.stack([_laid(np.ones(one.image.shape[:2], bool), wide[1]) for one in filled]),
        real=np.arange(rows) < count,
        target=None
        if len(target) < rows
        else np.stack([_laid(one, (cells, cells, 1 + slots)) for one in target]),
        truth=None
        if all(one is None for one in truth)
        else np.stack([_laid_truth(one, cells) for one in truth]),
    )


class EvidenceBatches:
    """Endless shuffled batches of examples; its position is one number.

    steps_per_epoch: batches in which every image comes once (or its ``times``). skipped: reason by
    id of every image that could not be used.
    """

    def __init__(
        self,
        read: Read,
        slots: Mapping[str, int],
        *,
        cells: int,
        seed: int,
        slots_per_batch: int = SLOTS,
        multiple: int = 1,
        cache_bytes: int = 1 << 30,
        times: Mapping[str, int] = MappingProxyType({}),
    ):
        """read: from id to example. slots: classes of each image, in the order that counts.

        multiple: rows of a batch are one of it (devices). cache_bytes: memory in which examples
        are kept. times: how often an image comes in an epoch, where that is not once.
        """
        if not slots:
            raise ValueError("no image has a label, so there is nothing to combine")
        self.read, self.cells, self.seed = read, cells, seed
        self.skipped: dict[str, str] = {}
        self._groups: dict[int, list[str]] = {}
        for id, count in slots.items():
            self._groups.setdefault(slots_for(count), []).extend([id] * times.get(id, 1))
        self._rows = {
            count: max(slots_per_batch // count // multiple, 1) * multiple for count in self._groups
        }
        self.steps_per_epoch = sum(
            -(-len(ids) // self._rows[count]) for count, ids in self._groups.items()
        )
        self._kept: dict[str, Example] = {}
        self._room = cache_bytes
        self._step = 0
        self._order = fingerprint([self._groups, self._rows, seed, cells])
        self._pool = ThreadPoolExecutor(1)
        self._coming: tuple[int, Any] | None = None

    def __iter__(self) -> "EvidenceBatches":
        return self

    def __next__(self) -> Evidence:
        if self._coming is None or self._coming[0] != self._step:
            self._coming = (self._step, self._pool.submit(self._made, self._step))
        batch = self._coming[1].result()
        self._step += 1
        self._coming = (self._step, self._pool.submit(self._made, self._step))
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands, as JSON values."""
        return {"order": self._order, "step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on exactly from ``get_state``. ValueError for the state of other batches."""
        if state.get("order") != self._order:
            raise ValueError(
                "this state belongs to batches of other images or settings; resume with those of "
                "the first run or start afresh"
            )
        self._step = int(state["step"])

    def _made(self, step: int) -> Evidence:
        epoch, position = divmod(step, self.steps_per_epoch)
        count, ids = self._plan(epoch)[position]
        examples = [one for one in map(self._example, ids) if one is not None]
        if not examples:  # every image of this batch is damaged; another batch has its place
            if len(self.skipped) >= sum(map(len, self._groups.values())):
                raise BadFileError(f"none of {len(self.skipped)} images can be used")
            return self._made(step + 1)
        return batched(examples, rows=self._rows[count], slots=count, cells=self.cells)

    def _plan(self, epoch: int) -> list[tuple[int, tuple[str, ...]]]:
        random = np.random.default_rng([self.seed, epoch])
        plan = []
        for count, ids in sorted(self._groups.items()):
            order, rows = random.permutation(len(ids)), self._rows[count]
            for start in range(0, len(ids), rows):
                plan.append((count, tuple(ids[i] for i in order[start : start + rows])))
        return [plan[i] for i in random.permutation(len(plan))]

    def _example(self, id: str) -> Example | None:
        if id in self._kept:
            return self._kept[id]
        if id in self.skipped:
            return None
        try:
            example = self.read(id)
        except BadFileError as problem:
            self.skipped[id] = str(problem)
            return None
        weight = sum(part.nbytes for part in example if isinstance(part, np.ndarray))
        if weight <= self._room:
            self._room -= weight
            self._kept[id] = example
        return example


class EvidenceGroup(NamedTuple):
    """A batch for inference: the ids and examples of its real rows."""

    ids: tuple[str, ...]
    examples: tuple[Example, ...]
    evidence: Evidence


def evidence_groups(
    read: Read,
    slots: Mapping[str, int],
    *,
    cells: int,
    skip: Callable[[str, str], None],
    slots_per_batch: int = SLOTS,
    multiple: int = 1,
) -> Iterator[EvidenceGroup]:
    """All images in groups of one shape each, read one group ahead; memory does not grow.

    skip: told the id and the reason of each image that cannot be used.
    """
    groups: dict[int, list[str]] = {}
    for id, count in slots.items():
        groups.setdefault(slots_for(count), []).append(id)
    chunks = []
    for count, ids in sorted(groups.items()):
        rows = max(slots_per_batch // count // multiple, 1) * multiple
        chunks += [(count, rows, ids[at : at + rows]) for at in range(0, len(ids), rows)]

    def made(chunk: tuple[int, int, list[str]]) -> EvidenceGroup | None:
        count, rows, ids = chunk
        found = {}
        for id in ids:
            try:
                found[id] = read(id)
            except BadFileError as problem:
                skip(id, str(problem))
        if not found:
            return None
        examples = tuple(found.values())
        laid = batched(examples, rows=rows, slots=count, cells=cells)
        return EvidenceGroup(tuple(found), examples, laid)

    with ThreadPoolExecutor(1) as pool:
        coming = None
        for chunk in [*chunks, None]:
            following = None if chunk is None else pool.submit(made, chunk)
            if coming is not None and (group := coming.result()) is not None:
                yield group
            coming = following


def _unit(maps: ScoreMaps, column: int, grid: Size, of: float = 1) -> Float[np.ndarray, "h w"]:
    """One map on the grid, in shares ``of`` a unit and in [0, 1]; logits become probabilities."""
    one = masks.enlarge(np.ascontiguousarray(maps.scores[..., column : column + 1]), grid)[..., 0]
    if maps.kind == "logit":
        one = 1 / (1 + np.exp(-np.clip(one, -30, 30)))
    return np.clip(one / np.float32(of), 0, 1).astype(np.float32)


def _laid(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array in the low corner of zeros."""
    canvas = np.zeros(shape, array.dtype)
    canvas[tuple(slice(n) for n in array.shape)] = array
    return canvas


def _laid_cue(cue: np.ndarray | None, cells: int) -> np.ndarray:
    return np.zeros((cells, cells), np.float32) if cue is None else _laid(cue, (cells, cells))


def _laid_truth(truth: np.ndarray | None, cells: int) -> np.ndarray:
    canvas = np.full((cells, cells), IGNORE, np.int32)
    if truth is not None:
        canvas[: truth.shape[0], : truth.shape[1]] = truth
    return canvas
