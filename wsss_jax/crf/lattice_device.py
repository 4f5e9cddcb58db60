"""Finding the vertices of a permutohedral lattice inside a traced program, with a static bound.

For devices to which going back to the host would cost more than a sort, for batches (``jax.vmap``),
and for kernels whose widths are learned. Not here: the fast way on a CPU (``lattice_host``).
"""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt32

from wsss_jax.crf import lattice
from wsss_jax.crf.lattice import Lattice

NOWHERE = np.uint32(2**32 - 1)
"""Key of rows that hold no vertex."""


def build(scaled: tuple[Float[Array, " n"], ...], *, rows: int) -> tuple[Lattice, Int[Array, ""]]:
    """The lattice of n points in at most ``rows`` - 1 vertices, and how many there really are.

    The coordinates come multiplied by ``lattice.scale_factors``. n (d+1) + 1 rows always suffice,
    photographs need a small part of that. With fewer rows than vertices the last vertices are
    dropped and the result is wrong: compare the count with ``rows``. Weights are differentiable
    with respect to the coordinates, within a simplex.
    """
    corner, rank, weights = lattice.locate(scaled)
    d, n = len(scaled), scaled[0].size
    words, strides = _words(
        [c.astype(jnp.int32) for c in corner[:d]], [r.astype(jnp.int32) for r in rank[:d]]
    )
    high, low, place = jax.lax.sort((*words, jnp.arange(n * (d + 1))), num_keys=2)
    new = jnp.concatenate([jnp.ones(1, bool), (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
    number = jnp.minimum(jnp.cumsum(new.astype(jnp.int32)) - 1, rows - 1)
    vertices = jnp.zeros(n * (d + 1), jnp.int32).at[place].set(number, unique_indices=True)
    far = jnp.full(rows, NOWHERE)
    # Row rows - 1 means "no vertex", and must keep a key that nothing looks for.
    at = jnp.where(number < rows - 1, number, rows)
    keys = (far.at[at].set(high, mode="drop"), far.at[at].set(low, mode="drop"))
    before, after = _neighbours(keys, strides, d)
    kept = (vertices.reshape(d + 1, n) < rows - 1).astype(jnp.float32)
    used = jnp.sum(new.astype(jnp.int32))
    return Lattice(vertices.reshape(d + 1, n), jnp.stack(weights) * kept, before, after), used


def _words(
    corner: list[Array], rank: list[Array]
) -> tuple[tuple[UInt32[Array, " p"], UInt32[Array, " p"]], list[Array]]:
    """Two words that name each point's d+1 vertices, remainder after remainder, and their radix.

    The first word holds the first half of the corner's coordinates, the second the rest and the
    remainder; each coordinate has room for one step to a neighbour on either side.
    """
    d = len(corner)
    lowest = [c.min() - 2 for c in corner]
    spans = [(c.max() - low + 3).astype(jnp.uint32) for c, low in zip(corner, lowest, strict=True)]
    split = (d + 1) // 2
    strides = []
    for i in range(d):
        inner = spans[i + 1 : split] if i < split else [*spans[i + 1 :], jnp.uint32(d + 1)]
        strides.append(reduce(jnp.multiply, inner, jnp.uint32(1)))
    high, low = [], []
    for r in range(d + 1):
        terms = [
            (c - first - (k > d - r).astype(jnp.int32)).astype(jnp.uint32) * stride
            for c, first, k, stride in zip(corner, lowest, rank, strides, strict=True)
        ]
        high.append(reduce(jnp.add, terms[:split]))
        low.append(reduce(jnp.add, terms[split:]) + jnp.uint32(r))
    return (jnp.concatenate(high), jnp.concatenate(low)), strides


def _neighbours(
    keys: tuple[Array, Array], strides: list[Array], d: int
) -> tuple[Int[Array, "directions m"], Int[Array, "directions m"]]:
    """Rows of the previous and next vertex along each direction (see ``lattice_host``)."""
    high, low = keys
    rows, split = high.size, (d + 1) // 2
    one, none = jnp.uint32(1), rows - 1
    wraps = low % jnp.uint32(d + 1) == 0
    # Unsigned arithmetic wraps around, so steps down need no sign.
    down_high = reduce(jnp.add, strides[:split])
    down_low = reduce(jnp.add, strides[split:])
    before, after = [], []
    for j in range(d + 1):
        rise = strides[j] if j < d else jnp.uint32(0)
        on_high, on_low = (rise, rise * 0) if j < split else (rise * 0, rise)
        wanted_high = high + jnp.where(wraps, on_high - down_high, on_high)
        wanted_low = low + jnp.where(wraps, on_low - down_low + jnp.uint32(d), on_low - one)
        found = _search(keys, (wanted_high, wanted_low))
        before.append(found)
        here = jnp.full(rows, none).at[jnp.where(found < none, found, rows)]
        after.append(here.set(jnp.arange(rows), mode="drop"))
    return jnp.stack(before), jnp.stack(after)


def _search(keys: tuple[Array, Array], wanted: tuple[Array, Array]) -> Int[Array, " m"]:
    """Rows of the wanted keys among sorted ones by bisection; the last row where there is none."""
    rows = keys[0].size

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        first, last = bounds
        middle = (first + last) // 2
        high, low = keys[0][middle], keys[1][middle]
        less = (high < wanted[0]) | ((high == wanted[0]) & (low < wanted[1]))
        return jnp.where(less, middle + 1, first), jnp.where(less, last, middle)

    start = (jnp.zeros(rows, jnp.int32), jnp.full(rows, rows - 1, jnp.int32))
    place = jax.lax.fori_loop(0, rows.bit_length(), halve, start)[0]
    equal = (keys[0][place] == wanted[0]) & (keys[1][place] == wanted[1])
    real = keys[0] != NOWHERE
    return jnp.where(equal & real, place, rows - 1)
