"""Finding the vertices of a permutohedral lattice on the host: XLA for geometry, numpy to number.

Each simplex is one 64-bit key, and each vertex is one: its remainder-0 corner in a mixed radix, and
its rank order or remainder. Equal keys are found by hashing into a table where the last writer
wins, so nothing is sorted. Not here: geometry and filtering (``lattice``).
"""

import math
from functools import lru_cache
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from wsss_jax.crf import lattice
from wsss_jax.crf.lattice import Lattice
from wsss_jax.types import Leaf

ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio (Knuth, vol. 3, 6.4): spreads consecutive keys

PIECE = 2**14
"""Points that are located at a time: few enough for a CPU's cache."""


def bucket(size: int, per_octave: int) -> int:
    """The next of ``per_octave`` sizes per octave: array shapes, hence compilations, stay few."""
    step = max(256, 2 ** (max(size, 1) - 1).bit_length() // (2 * per_octave))
    return -(-size // step) * step


def build(scaled: tuple[Float[np.ndarray, " n"], ...]) -> Lattice:
    """The lattice of n points given by d coordinates times ``lattice.scale_factors``; host arrays.

    Points are padded to eight sizes per octave, rows to two, but never to fewer than an eighth of
    the points, which set the cost then. Raises ValueError for kernels so narrow that the
    image spans more than 2^31 lattice cells.
    """
    d, n = len(scaled), scaled[0].size
    lowest, strides = _bounds([float(x.min()) for x in scaled], [float(x.max()) for x in scaled])
    corner, order, *weights = _located(scaled, lowest.astype(np.int32), np.array(strides, np.int32))
    keys = corner.astype(np.int64) * (d + 1) ** d + order
    first, simplex = _distinct(keys)
    corners, orders = np.divmod(keys[first], (d + 1) ** d)
    steps = _corner_steps(d) @ np.array(strides)
    codes = ((corners[:, None] + steps[orders]) * (d + 1) + np.arange(d + 1)).ravel()
    first, rows = _distinct(codes)
    rows = rows.reshape(-1, d + 1)
    points = bucket(n, 8)
    vertices = np.zeros((d + 1, points), np.int32)
    padded = np.zeros((d + 1, points), np.float32)
    for j in range(d + 1):
        vertices[j, :n] = rows[:, j].take(simplex)
        padded[j, :n] = weights[j]
    size = max(first.size + 1, points // 8)
    before, after = _neighbours(codes[first], strides, bucket(size, 2))
    return Lattice(*cast("tuple[Leaf, ...]", (vertices, padded, before, after)))


def padded_to(points: int, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The arrays with zeros behind, up to ``points`` along their first axis."""
    return tuple(np.pad(x, [(0, points - x.shape[0])] + [(0, 0)] * (x.ndim - 1)) for x in arrays)


def _located(scaled: tuple[np.ndarray, ...], lowest: np.ndarray, strides: np.ndarray) -> list:
    """``_locate`` in pieces of one size, so that it compiles once for images of all sizes.

    What differs from image to image is data: nothing compiles anew for an image's colours either.
    """
    n = scaled[0].size
    parts = [
        _locate(padded_to(PIECE, tuple(x[start : start + PIECE] for x in scaled)), lowest, strides)
        for start in range(0, n, PIECE)
    ]
    return [np.concatenate(pieces)[:n] for pieces in zip(*parts, strict=True)]


@jax.jit
def _locate(scaled: tuple[Array, ...], lowest: Array, strides: Array) -> tuple[Array, ...]:
    """Per point the number of its simplex's corner, of its rank order, and its weights."""
    # One array per corner: stacked, XLA would evaluate everything once per element.
    corner, rank, weights = lattice.locate(scaled)
    number = jnp.zeros(corner[0].shape, jnp.int32)
    order = jnp.zeros(corner[0].shape, jnp.int32)
    d = len(scaled)
    for i in range(d):
        number = number + (corner[i].astype(jnp.int32) - lowest[i]) * strides[i]
        order = order * (d + 1) + rank[i].astype(jnp.int32)
    return number, order, *weights


def _bounds(low: list[float], high: list[float]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Lowest corner coordinates of points within a box, and mixed-radix strides for them."""
    d = len(low)
    below, above = np.zeros(d), np.zeros(d)
    for i in range(d):  # lifted coordinate i is sum(x[i:]) - i * x[i - 1]
        taken = (i * low[i - 1], i * high[i - 1]) if i else (0.0, 0.0)
        below[i], above[i] = sum(low[i:]) - taken[1], sum(high[i:]) - taken[0]
    # Three to spare on each side: rounding, the return to the plane, and steps to neighbours.
    lowest = np.floor(below / (d + 1)).astype(np.int64) - 3
    spans = np.ceil(above / (d + 1)).astype(np.int64) + 4 - lowest
    cells = math.prod(int(s) for s in spans)
    if cells >= 2**31:
        raise ValueError(
            f"the kernel is so narrow that the image spans {cells:.3g} lattice cells, at most "
            f"{2**31:.3g}; widen it or make the image smaller"
        )
    return lowest, tuple(math.prod(int(s) for s in spans[i + 1 :]) for i in range(d))


@lru_cache(maxsize=8)
def _corner_steps(d: int) -> Int[np.ndarray, "orders r d"]:
    """Which coordinates fall by one from the corner to vertex r, for each number of a rank order.

    Vertex r is the corner plus r, less d+1 in the r coordinates of highest rank. Numbers that are
    no permutation keep zeros.
    """
    ranks = np.stack(np.unravel_index(np.arange((d + 1) ** d), (d + 1,) * d), axis=-1)
    return -(ranks[:, None, :] > d - np.arange(d + 1)[:, None]).astype(np.int64)


def _slots(keys: np.ndarray, bits: int, turn: int) -> np.ndarray:
    odd = np.uint64((ODD * (2 * turn + 1)) % 2**64)
    mixed = (keys.view(np.uint64) * odd) >> np.uint64(64 - bits)
    return mixed.view(np.int64)  # numpy converts unsigned indices slowly


def _distinct(keys: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Where one of each distinct key stands (u,), in order, and each key's number in that list."""
    bits = max(8, (keys.size - 1).bit_length())  # half as many distinct keys at most, as a rule
    table = np.empty(2**bits, np.int32)
    owner = np.empty(keys.size, np.int32)
    everyone = np.arange(keys.size, dtype=np.int32)
    left, mine, turn = everyone, keys, 0
    while left.size:
        slots = _slots(mine, bits, turn)
        table[slots] = left  # the last writer wins, and equal keys all see the same winner
        winner = table.take(slots)
        owner[left] = winner
        lost = np.flatnonzero(keys.take(winner) != mine)
        left, mine, turn = left[lost], mine[lost], turn + 1
    first = np.flatnonzero(owner == everyone)
    number = np.empty(keys.size, np.int32)
    number[first] = everyone[: first.size]
    return first, number.take(owner)


def _neighbours(
    codes: Int[np.ndarray, " u"], strides: tuple[int, ...], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the previous and next vertex along each direction; ``rows`` - 1 where there is none.

    One step along direction j adds d to coordinate j and takes 1 from all others: the remainder
    falls by one and corner j rises by one, or, from remainder 0, all corners but j fall by one.
    """
    d = len(strides)
    step = np.where(codes % (d + 1) == 0, d - sum(strides) * (d + 1), -1)
    before = np.full((d + 1, rows), rows - 1, np.int32)
    after = before.copy()
    find = _finder(codes)
    for j in range(d + 1):
        here, there = find(codes + (step + (d + 1) * strides[j] if j < d else step))
        before[j, here] = there
        after[j, there] = here
    return before, after


def _finder(codes: np.ndarray):
    """A function from wanted codes to (which of them exist, where), for distinct codes."""
    bits = max(8, (codes.size - 1).bit_length() + 2)
    table = np.zeros(2**bits, np.int32)
    numbers = np.arange(codes.size, dtype=np.int32)
    slots = _slots(codes, bits, 0)
    table[slots] = numbers
    # The few that lost their slot to another code are looked up by bisection.
    lost = numbers[table[slots] != numbers]
    lost = lost[np.argsort(codes[lost])]
    lost_codes = codes[lost]
    crowded = np.zeros(2**bits, bool)
    crowded[slots[lost]] = True

    def find(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slots = _slots(wanted, bits, 0)
        there = table.take(slots)
        found = codes.take(there) == wanted
        here = np.flatnonzero(found)
        if not lost.size:
            return here, there[here]
        rest = np.flatnonzero(crowded.take(slots) & ~found)
        place = np.minimum(np.searchsorted(lost_codes, wanted[rest]), lost.size - 1)
        hit = lost_codes[place] == wanted[rest]
        return np.concatenate([here, rest[hit]]), np.concatenate([there[here], lost[place[hit]]])

    return find
