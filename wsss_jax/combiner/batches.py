"""Examples in batches of few shapes, read one batch ahead; memory does not grow with the data set.

A batch lies on a square canvas of ``cells`` × ``cells`` and holds images of the same number of
slots (1, 2, 4, 8 …), so that few shapes are compiled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.combiner import consensus
from wsss_jax.combiner.consensus import LEADING, Evidence
from wsss_jax.combiner.evidence import Example, Inputs
from wsss_jax.errors import BadFileError
from wsss_jax.run.images import Tally, over_groups

SLOTS = 8
"""Class slots of a batch: eight images of one class, or four of two, and so on."""


class Seen(NamedTuple):
    """One image, and the closed form of each system over its cells: (s,h,w,k), maximum 1."""

    id: str
    example: Example
    consensus: Float[np.ndarray, "s h w k"]


def over_images(
    title: str, inputs: Inputs, shown: Mapping[str, int], steps: int, use: Callable[[Seen], None]
) -> Tally:
    """Call ``use`` once for each image; returns what was left out, and why.

    shown: how many classes each image shows. steps: of the random walk. Shows progress. Raises
    Interrupted after SIGTERM or Ctrl-C.
    """
    skipped: dict[str, str] = {}

    def look(group: Group) -> int:
        maps = np.asarray(_closed_forms(_batched(group, inputs.cells), steps=steps))
        for row, (id, example) in enumerate(group):
            height, width = example.image.shape[:2]
            use(Seen(id, example, maps[row, :, :height, :width, : len(example.classes)]))
        return len(group)

    return over_groups(title, _groups(inputs, shown, skipped), len(shown), look, skipped)


Group = list[tuple[str, Example]]


def _groups(inputs: Inputs, shown: Mapping[str, int], skipped: dict[str, str]) -> Iterator[Group]:
    by_slots: dict[int, list[str]] = {}
    for id, count in shown.items():
        by_slots.setdefault(_slots(count), []).append(id)
    chunks = []
    for slots, ids in sorted(by_slots.items()):
        rows = max(SLOTS // slots, 1)
        chunks += [ids[at : at + rows] for at in range(0, len(ids), rows)]

    def made(ids: Sequence[str]) -> Group:
        found = []
        for id in ids:
            try:
                found.append((id, inputs.read(id)))
            except BadFileError as problem:
                skipped[id] = str(problem)
        return found

    with ThreadPoolExecutor(1) as pool:
        coming = None
        for chunk in [*chunks, None]:
            following = None if chunk is None else pool.submit(made, chunk)
            if coming is not None and (group := coming.result()):
                yield group
            coming = following


def _batched(group: Group, cells: int) -> Evidence:
    """The images of a group on one canvas; rows beyond them are copies."""
    slots = _slots(max(len(example.classes) for _, example in group))
    rows = max(SLOTS // slots, 1)
    filled = [example for _, example in group]
    filled += [filled[0]] * (rows - len(filled))
    square = (cells, cells)
    systems = filled[0].scores.shape[0]
    leading = [
        one.features[0][..., :LEADING] if one.features else np.zeros((*one.image.shape[:2], 0))
        for one in filled
    ]
    whole = [np.ones(one.image.shape[:2], np.float32) for one in filled]
    salient = [
        ones if one.saliency is None else one.saliency
        for one, ones in zip(filled, whole, strict=True)
    ]
    lay = partial(_laid, dtype=np.float32)
    return Evidence(
        images=np.stack([lay(one.image, (*square, 3)) for one in filled]),
        features=np.stack([lay(one, (*square, one.shape[-1])) for one in leading]),
        scores=np.stack([lay(one.scores, (systems, *square, slots)) for one in filled]),
        available=np.stack([_laid(one.available, (systems, slots), bool) for one in filled]),
        present=np.stack([np.arange(slots) < len(one.classes) for one in filled]),
        saliency=np.stack([lay(one, square) for one in salient]),
        inside=np.stack([_laid(one, square, bool) for one in whole]),
    )


@partial(jax.jit, static_argnames="steps")
def _closed_forms(evidence: Evidence, *, steps: int) -> Float[Array, "b s h w k"]:
    return consensus.of_each_system(evidence, steps=steps)


def _laid(array: np.ndarray, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """The array in the low corner of zeros."""
    canvas = np.zeros(shape, dtype)
    canvas[tuple(slice(n) for n in array.shape)] = array
    return canvas


def _slots(count: int) -> int:
    """The next of 1, 2, 4, 8 …"""
    return 1 << max(count - 1, 0).bit_length()
