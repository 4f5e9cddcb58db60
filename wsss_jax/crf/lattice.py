"""The permutohedral lattice: Gaussian filtering of scattered points in linear time.

Adams, Baek & Davis (2010), in the arithmetic of Krähenbühl & Koltun's library (2011), which fixes
the order of every rounding: a point is lifted onto the plane sum(x) = 0 of d+1 coordinates, its
value is spread over the d+1 corners of the simplex around it (splat), vertices are blurred with
[1/2, 1, 1/2] along the d+1 lattice directions, and each point reads its simplex back (slice).
Here: geometry, and filtering with a lattice that is given. Not here: finding the vertices
(``lattice_host`` with numpy, ``lattice_device`` inside a traced program), normalisation and
inference (``crf``).
"""

import math
from functools import reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from wsss_jax.types import Leaf

SCANNED = 4
"""Up to so many values per point XLA-CPU reads corners faster one after the other than at once."""

CACHED = 2**20
"""Above so many values a blur runs out of a CPU's cache, and goes faster in groups of labels."""


class Lattice(NamedTuple):
    """Where n points lie in a lattice of m rows, of which the last is always zero: "no vertex".

    vertices: (d+1,n) int32 row of each corner. weights: (d+1,n) float32 barycentric coordinates.
    before, after: (d+1,m) int32 row of the neighbour along each direction, m - 1 where there is
    none. Points and rows beyond the real ones are padding, with zero weights and no neighbours.
    """

    vertices: Leaf
    weights: Leaf
    before: Leaf
    after: Leaf


def scale_factors(d: int) -> Float[np.ndarray, " d"]:
    """What features are multiplied by before lifting, so that the lattice blurs with sigma 1."""
    spread = float(np.float32(math.sqrt(2.0 / 3.0) * (d + 1)))
    return np.array([spread / math.sqrt((i + 2) * (i + 1)) for i in range(d)], np.float32)


def locate(
    scaled: tuple[Float[Array, " n"], ...],
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """The simplex around each point, of coordinates already multiplied by ``scale_factors``.

    Returns three tuples of d+1 float32 arrays (n,): the remainder-0 corner divided by d+1 and the
    rank in the simplex, both whole numbers per lifted coordinate, and the barycentric weight of
    each corner, differentiable within a simplex.
    """
    d = len(scaled)
    lifted = _lift(scaled)
    # The library multiplies by 1/(d+1); a division would round other ties.
    inverse = np.float32(1) / np.float32(d + 1)
    corner = [jnp.round(jax.lax.stop_gradient(x) * inverse) for x in lifted]
    offset = [x - c * np.float32(d + 1) for x, c in zip(lifted, corner, strict=True)]
    rank = [reduce(add, corner)] * (d + 1)  # off the plane by so much: undone by the wrap below
    for i in range(d):
        for j in range(i + 1, d + 1):
            smaller = (offset[i] < offset[j]).astype(jnp.float32)
            rank[i], rank[j] = rank[i] + smaller, rank[j] + (1 - smaller)
    parts = []
    for i in range(d + 1):
        wrap = (rank[i] < 0).astype(jnp.float32) - (rank[i] > d).astype(jnp.float32)
        rank[i] = rank[i] + (d + 1) * wrap
        corner[i] = corner[i] + wrap
        parts.append((lifted[i] - corner[i] * np.float32(d + 1)) * inverse)
    return tuple(corner), tuple(rank), _barycentric(rank, parts)


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


def _barycentric(rank: list[Array], parts: list[Array]) -> tuple[Array, ...]:
    """Differences of neighbouring coordinates, once ordered by falling rank."""
    d, ordered = len(rank) - 1, []
    for place in range(d + 1):
        chosen = jnp.zeros_like(parts[0])
        for r, part in zip(rank, parts, strict=True):
            chosen = jnp.where(r == d - place, part, chosen)
        ordered.append(chosen)
    first = ordered[0] + (1 - ordered[d])
    return (first, *(ordered[p] - ordered[p - 1] for p in range(1, d + 1)))


def splat(values: Float[Array, "n k"], lattice: Lattice) -> Float[Array, "m k"]:
    """Spread the points' values over the corners of their simplices."""

    def corner(rows: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        which, weight = at
        return rows.at[which].add(values * weight[:, None], mode="promise_in_bounds"), None

    rows = jnp.zeros((lattice.before.shape[-1], values.shape[-1]), values.dtype)
    return jax.lax.scan(corner, rows, (_unsigned(lattice.vertices), lattice.weights))[0]


def blur(rows: Float[Array, "m k"], lattice: Lattice) -> Float[Array, "m k"]:
    """[1/2, 1, 1/2] along each lattice direction in turn, times the library's constant."""

    # A scan, not a loop: XLA would fuse the chain of gathers into one that evaluates 3^(d+1) terms.
    def direction(rows: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        before, after = at
        return rows + 0.5 * (take(rows, before) + take(rows, after)), None

    d, (m, k) = lattice.before.shape[0] - 1, rows.shape
    neighbours = (_unsigned(lattice.before), _unsigned(lattice.after))
    step = k if m * k <= CACHED else SCANNED
    groups = [
        jax.lax.scan(direction, rows[:, first : first + step], neighbours)[0]
        for first in range(0, k, step)
    ]
    return jnp.concatenate(groups, axis=-1) * np.float32(1 / (1 + 2.0**-d))


def slice_(rows: Float[Array, "m k"], lattice: Lattice) -> Float[Array, "n k"]:
    """Read each point's value back from the corners of its simplex."""
    corners = (_unsigned(lattice.vertices), lattice.weights)
    k = rows.shape[-1]
    if k > SCANNED:
        return reduce(add, [take(rows, i) * w[:, None] for i, w in zip(*corners, strict=True)])

    def corner(values: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        which, weight = at
        return values + take(rows, which) * weight[:, None], None

    values = jnp.zeros((lattice.vertices.shape[-1], k), rows.dtype)
    return jax.lax.scan(corner, values, corners)[0]


def smooth(values: Float[Array, "n k"], lattice: Lattice) -> Float[Array, "n k"]:
    """Gaussian filtering: splat, blur, slice. Linear in ``values``."""
    return slice_(blur(splat(values, lattice), lattice), lattice)


def normalised(lattice: Lattice) -> Lattice:
    """The lattice whose ``smooth`` is D^-1/2 K D^-1/2, for K the given one's and D its row sums.

    The symmetric normalisation of Krähenbühl & Koltun, folded into the weights.
    """
    ones = jnp.ones((lattice.vertices.shape[-1], 1), jnp.float32)
    norm = 1 / jnp.sqrt(smooth(ones, lattice)[:, 0] + 1e-20)
    # Padded points have no weights at all, so their infinite norm never counts.
    return lattice._replace(weights=lattice.weights * norm[None])


def first_points(lattice: Lattice, n: int) -> Lattice:
    """The same lattice seen by its first n points only."""
    return lattice._replace(vertices=lattice.vertices[:, :n], weights=lattice.weights[:, :n])


def take(rows: Float[Array, "m k"], which: Array) -> Float[Array, "n k"]:
    """Rows by number, all of which exist."""
    return rows.at[which].get(mode="promise_in_bounds")


def _unsigned(numbers: Array) -> Array:
    return numbers.astype(jnp.uint32)  # spares the pass that looks for negative numbers
