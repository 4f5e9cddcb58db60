"""The permutohedral lattice: Gaussian filtering of scattered points in linear time.

Adams, Baek & Davis (2010), in the arithmetic of Krähenbühl & Koltun's library (2011), which fixes
the order of every rounding: a point is lifted onto the plane sum(x) = 0 of d+1 coordinates, its
value is spread over the d+1 vertices of the simplex around it (splat), vertices are blurred with
[1/2, 1, 1/2] along the d+1 lattice directions, and each point reads its simplex back (slice).
``build`` finds vertices on the host (one sort of unique simplices), ``build_on_device`` inside a
traced program with a static bound. Not here: kernels' normalisation and inference (``crf``).
"""

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

INDEX_BITS = 22  # of the 64-bit simplex key; so at most 4,194,304 points
RANK_BITS = 10  # 6! = 720 orders of six coordinates


class Lattice(NamedTuple):
    """Where n points lie in a lattice of m rows, of which the last is always zero: "no vertex".

    vertices: (n,d+1) int32 row of each corner. weights: (n,d+1) float32 barycentric coordinates.
    before, after: (d+1,m) int32 row of the neighbour along each direction.
    """

    vertices: Any
    weights: Any
    before: Any
    after: Any


def scale_factors(d: int) -> Float[np.ndarray, " d"]:
    """What features are multiplied by before lifting, so that the lattice blurs with sigma 1."""
    spread = float(np.float32(math.sqrt(2.0 / 3.0) * (d + 1)))
    return np.array([spread / math.sqrt((i + 2) * (i + 1)) for i in range(d)], np.float32)


def bucket(rows: int) -> int:
    """The next of four sizes per octave, from 1024: array sizes, hence compilations, stay few."""
    step = max(1024, 2 ** (max(rows, 1).bit_length() - 3))
    return -(-rows // step) * step


def locate(scaled: tuple[Float[Array, " n"], ...]) -> tuple[list[Array], list[Array], Array]:
    """The simplex around each point, of coordinates already multiplied by ``scale_factors``.

    Returns, per lifted coordinate, the remainder-0 corner divided by d+1 (int32) and the rank of
    the coordinate in the simplex (int32); and the barycentric weights (n,d+1), differentiable
    within a simplex.
    """
    d = len(scaled)
    lifted = _lift(scaled)
    # 1/(d+1) is a product in the library; a division would round other ties.
    inverse = np.float32(1) / np.float32(d + 1)
    corner = [jnp.round(jax.lax.stop_gradient(x) * inverse) for x in lifted]
    excess = sum(corner).astype(jnp.int32)
    offset = [x - c * np.float32(d + 1) for x, c in zip(lifted, corner, strict=True)]
    rank = [jnp.zeros(excess.shape, jnp.int32) for _ in lifted]
    for i in range(d):
        for j in range(i + 1, d + 1):
            smaller = (offset[i] < offset[j]).astype(jnp.int32)
            rank[i], rank[j] = rank[i] + smaller, rank[j] + 1 - smaller
    weights = jnp.zeros((excess.size, d + 1), jnp.float32)
    rows = []
    for i in range(d + 1):
        raw = rank[i] + excess
        fix = (raw < 0).astype(jnp.int32) - (raw > d).astype(jnp.int32)
        rank[i] = raw + (d + 1) * fix
        corner[i] = corner[i] + fix.astype(jnp.float32)
        rows.append((lifted[i] - corner[i] * np.float32(d + 1)) * inverse)
    # Ordered by falling rank, neighbouring differences are the barycentric coordinates.
    ordered = [
        sum(jnp.where(rank[i] == d - p, rows[i], 0) for i in range(d + 1)) for p in range(d + 1)
    ]
    first = ordered[0] + (1 - ordered[d])
    weights = [first] + [ordered[p] - ordered[p - 1] for p in range(1, d + 1)]
    return [c.astype(jnp.int32) for c in corner], rank, jnp.stack(weights, axis=-1)


def _lift(scaled: tuple[Array, ...]) -> list[Array]:
    """Points of R^d on the plane sum(x) = 0 of R^(d+1), in the library's order of additions."""
    total, lifted = jnp.zeros_like(scaled[0]), []
    for j in range(len(scaled), 0, -1):
        x = scaled[j - 1]
        # 3x as a sum: the compiler may contract a product and a difference into one rounding,
        # and one such bit can move a point into another simplex. 1x, 2x, 4x are exact.
        lifted.append(total - (x + x + x if j == 3 else np.float32(j) * x))
        total = total + x
    return [total, *lifted[::-1]]


@partial(jax.jit, static_argnames="strides")
def _keys(scaled: tuple[Array, ...], lowest: Array, strides: tuple[int, ...]) -> tuple:
    """Weights, and per point two words: its simplex's corner | its rank order and its number."""
    corner, rank, weights = locate(scaled)
    d = len(scaled)
    high = sum((corner[i] - lowest[i]) * s for i, s in enumerate(strides))
    order = jnp.zeros_like(rank[0])
    for i in range(d):
        later = sum((rank[j] < rank[i]).astype(jnp.int32) for j in range(i + 1, d + 1))
        order = order * (d + 1 - i) + later
    number = jnp.arange(order.size, dtype=jnp.uint32)
    low = (order.astype(jnp.uint32) << INDEX_BITS) | number
    return jnp.stack([low, high.astype(jnp.uint32)], axis=-1), weights


@lru_cache(maxsize=8)
def _corner_steps(d: int) -> Int[np.ndarray, "orders r d"]:
    """For each rank order and remainder r, which coordinates of the corner step down by d+1."""
    steps = np.zeros((math.factorial(d + 1), d + 1, d), np.int64)
    for order in range(len(steps)):
        digits, left = [], order
        for i in range(d - 1, -1, -1):
            left, digit = divmod(left, d + 1 - i)
            digits.append(digit)
        free = list(range(d + 1))
        for i, digit in enumerate(reversed(digits)):
            rank = free.pop(digit)
            steps[order, d + 1 - rank :, i] = -1
    return steps


def _bounds(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Lowest corner coordinates of points within a box, and mixed-radix strides for them."""
    d = len(low)
    below, above = np.zeros(d), np.zeros(d)
    for i in range(d):  # coordinate i is sum(x[i:]) - i * x[i-1]
        ahead_low, ahead_high = low[i:].sum(), high[i:].sum()
        behind = (i * low[i - 1], i * high[i - 1]) if i else (0.0, 0.0)
        below[i], above[i] = ahead_low - behind[1], ahead_high - behind[0]
    # Two below and above: rounding, the fix onto the plane, and the neighbours' steps.
    lowest = np.floor(below / (d + 1)).astype(np.int64) - 3
    spans = np.ceil(above / (d + 1)).astype(np.int64) + 4 - lowest
    strides = np.concatenate([np.cumprod(spans[::-1])[::-1][1:], [1]])
    if strides[0] * spans[0] >= 2**31:
        raise ValueError(
            f"the kernel is so narrow that the lattice spans {strides[0] * spans[0]:.3g} cells, "
            f"at most {2**31:.3g}; widen it or make the image smaller"
        )
    return lowest, tuple(int(s) for s in strides)


def build(scaled: tuple[Float[np.ndarray, " n"], ...]) -> Lattice:
    """The lattice of n points given by d coordinates times ``scale_factors``; host arrays.

    Rows are padded to ``bucket`` sizes. Raises ValueError above 4,194,304 points or for kernels so
    narrow that corner numbers overflow.
    """
    d, n = len(scaled), scaled[0].size
    if n > 2**INDEX_BITS:
        raise ValueError(f"{n} points, at most {2**INDEX_BITS}; make the image smaller")
    box = np.array([[x.min(), x.max()] for x in scaled], np.float64)
    lowest, strides = _bounds(box[:, 0], box[:, 1])
    words, weights = _keys(scaled, lowest.astype(np.int32), strides)
    corners, orders, simplex = _unique_simplices(np.asarray(words).view(np.int64)[:, 0])
    steps = _corner_steps(d) @ np.array(strides)
    # Corner numbers of one remainder r, then r itself: unlike vertices get unlike numbers.
    code = (corners[:, None] + steps[orders]) * (d + 1) + np.arange(d + 1)
    codes, rows = np.unique(code, return_inverse=True)
    vertices = rows.reshape(code.shape).astype(np.int32)[simplex]
    before, after = _neighbours(codes, strides, bucket(codes.size + 1))
    return Lattice(vertices, np.asarray(weights), before, after)


def _unique_simplices(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corner number and rank order of each distinct simplex, and which one each point lies in."""
    keys = np.sort(keys)  # the point's number rides in the low bits: a sort, not an argsort
    simplex = keys >> INDEX_BITS
    new = np.empty(keys.size, bool)
    new[0] = True
    np.not_equal(simplex[1:], simplex[:-1], out=new[1:])
    which = np.empty(keys.size, np.int32)
    which[keys & (2**INDEX_BITS - 1)] = np.cumsum(new, dtype=np.int32) - 1
    simplex = simplex[new]
    return simplex >> RANK_BITS, simplex & (2**RANK_BITS - 1), which


def _neighbours(
    codes: np.ndarray, strides: tuple[int, ...], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the previous and next vertex along each direction; ``rows`` - 1 where there is none.

    One step along direction j adds d to coordinate j and takes 1 from all others: the remainder
    falls by one and corner j rises by one, or, from remainder 0, all corners but j fall by one.
    """
    d, remainder = len(strides), codes % (len(strides) + 1)
    wrap = np.where(remainder == 0, -sum(strides) * (d + 1) + d, -1)
    before = np.full((d + 1, rows), rows - 1, np.int32)
    after = before.copy()
    for j in range(d + 1):
        wanted = codes + wrap + ((d + 1) * strides[j] if j < d else 0)
        place = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
        found = np.flatnonzero(codes[place] == wanted)
        before[j, found] = place[found]
        after[j, place[found]] = found
    return before, after


def splat(values: Float[Array, "n k"], lattice: Lattice) -> Float[Array, "m k"]:
    """Spread the points' values over the corners of their simplices."""
    spread = values[:, None, :] * lattice.weights[:, :, None]
    rows = jnp.zeros((lattice.before.shape[-1], values.shape[-1]), values.dtype)
    flat = spread.reshape(-1, values.shape[-1])
    return rows.at[lattice.vertices.reshape(-1)].add(flat, mode="promise_in_bounds")


def blur(rows: Float[Array, "m k"], lattice: Lattice) -> Float[Array, "m k"]:
    """[1/2, 1, 1/2] along each lattice direction in turn, times the library's constant."""
    d = lattice.before.shape[0] - 1
    for before, after in zip(lattice.before, lattice.after, strict=True):
        pair = _rows(rows, before) + _rows(rows, after)
        rows = jax.lax.optimization_barrier(rows + 0.5 * pair)
    return rows * np.float32(1 / (1 + 2.0**-d))


def slice_(rows: Float[Array, "m k"], lattice: Lattice) -> Float[Array, "n k"]:
    """Read each point's value back from the corners of its simplex."""
    corners = range(lattice.vertices.shape[-1])
    return sum(_rows(rows, lattice.vertices[:, j]) * lattice.weights[:, j : j + 1] for j in corners)


def _rows(rows: Array, which: Array) -> Array:
    return rows.at[which].get(mode="promise_in_bounds")


def smooth(values: Float[Array, "n k"], lattice: Lattice) -> Float[Array, "n k"]:
    """Gaussian filtering: splat, blur, slice. Linear in ``values``."""
    return slice_(blur(splat(values, lattice), lattice), lattice)
