"""Examples of the combiner in batches.

Batches lie on a square canvas of ``cells`` × ``cells``, and hold images of the same number of slots
(1, 2, 4, 8 …), so that few shapes are compiled whatever the data set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.combiner.evidence import Example, Read
from wsss_jax.config import fingerprint
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.types import IGNORE, Evidence

SLOTS = 8
"""Class slots per batch by default: eight images of one class, or four of two, and so on."""


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
        saliency=np.stack([_laid_or_none(one.saliency, wide[1]) for one in filled]),
        edges=np.stack([_laid_or_none(one.edges, wide[1]) for one in filled]),
        probe=np.stack([_laid_or_none(one.probe, (cells, cells, slots)) for one in filled]),
        cues=np.stack([_cues(one) for one in filled]),
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
            raise UserError("no image has a label, so there is nothing to combine")
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
            raise UserError(
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


def _laid(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array in the low corner of zeros."""
    canvas = np.zeros(shape, array.dtype)
    canvas[tuple(slice(n) for n in array.shape)] = array
    return canvas


def _laid_or_none(cue: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32) if cue is None else _laid(cue, shape)


def _cues(example: Example) -> tuple[bool, ...]:
    return tuple(cue is not None for cue in (example.saliency, example.edges, example.probe))


def _laid_truth(truth: np.ndarray | None, cells: int) -> np.ndarray:
    canvas = np.full((cells, cells), IGNORE, np.int32)
    if truth is not None:
        canvas[: truth.shape[0], : truth.shape[1]] = truth
    return canvas
