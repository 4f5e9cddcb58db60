"""Random walk of class scores over pixel affinities: T = D⁻¹ W^beta, applied 2^k times.

The transition matrix T averages every pixel with its neighbours, weighted by affinity; D holds the
row sums. Papers square T as a dense (h·w)² matrix; T^t scores is the same as t sparse averages, so
no matrix is ever built here. Three routes, one meaning:

* ``propagate``: Chebyshev polynomials of T, about a quarter of the products (the default),
* ``propagate_stepwise``: t products in the papers' order, the exact reference,
* ``propagate_graph``: the same over any undirected graph, by gathers and segment sums.

Sources: PSA (Ahn & Kwak 2018, equations 4 and 5; beta 8, 256 steps), IRN (Ahn, Cho & Kwak 2019,
equation 10; beta 10, 256 steps). Where we differ: PSA normalises columns and multiplies from the
right, which for symmetric affinity is the same. Not here: how affinities come about
(``ops.affinity``), and any check of values: NaN spreads, negative scores are averaged like others,
and the stage that reads a file refuses both.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int

from wsss_jax.ops.affinity import Affinity, joined, stencil

T = TypeVar("T")

Transition = Callable[[Array], Array]
"""Maps scores to their averages over neighbours: one product with T."""

PAYS_BELOW = 0.85
"""Chebyshev costs a little more per product; above this share of the steps, stepping is faster."""


class Graph(NamedTuple):
    """An undirected graph: edges between pixels first[e] and second[e], each given once.

    first, second: (e,) integers; values: (e,) affinities in [0, 1], 0 for no edge. Every pixel is
    joined to itself by 1, without an edge in the list.
    """

    first: Int[Array, " e"]
    second: Int[Array, " e"]
    values: Float[Array, " e"]


def propagate(
    scores: Float[Array, "*b h w k"],
    affinity: Affinity,
    *,
    beta: float | int,
    steps: int,
    tolerance: float | int = 1e-4,
) -> Float[Array, "*b h w k"]:
    """T^steps scores by a Chebyshev polynomial in T: the default route.

    T is similar to a symmetric matrix with spectrum in [-1, 1], where x^steps is a Chebyshev series
    whose coefficients fall like exp(-k² / 2 steps). It is cut where the rest is below half the
    tolerance and scaled to sum to one, so constants stay constant. By default the result is exact
    to 1e-4 of the maximum, with 64 products for 256 steps. The
    bound holds in the norm weighted by D, that is over the image as a whole; single pixels were
    measured to keep it too. Float32 rounding is part of it, up to 6e-5: ask for less than 1e-4
    only with float64 scores. Where the series would save less than 15 % of the products (below
    about 20 steps), or with tolerance 0, the walk steps as ``propagate_stepwise`` does.

    Isolated pixels keep their score. Padding is isolated, so it leaks nothing and zero stays zero.
    All leading axes are a batch. Accumulates in float32 (float64 where scores are), whatever the
    affinity is stored in: bfloat16 from ``affinity.compact`` moves the result of 256 steps by less
    than 2e-3 of the maximum (3e-4 measured). The gradient with respect to scores alone is another
    walk; with respect to the affinity it keeps about 100 copies of the scores at 256 steps, half of
    what plain autodiff keeps. For beta below 1 it is infinite at zero affinity.

    Not jitted: call it inside a jitted function, or call ``jitted``.

    Raises ValueError when sizes of scores and affinity differ, or a number is out of range.
    """
    return _power(scores, affinity, beta, steps, coefficients(steps, tolerance))


def propagate_stepwise(
    scores: Float[Array, "*b h w k"], affinity: Affinity, *, beta: float | int, steps: int
) -> Float[Array, "*b h w k"]:
    """T^steps scores as ``steps`` products one after another: the order of the papers.

    Three times slower than ``propagate`` at 256 steps, with float32 rounding of about 3e-6, and
    otherwise the same in every respect.
    """
    return _power(scores, affinity, beta, steps, None)


jitted = jax.jit(propagate, static_argnames=("beta", "steps", "tolerance"))
"""``propagate``, compiled once per shape, beta, number of steps and tolerance."""


def propagate_graph(
    scores: Float[Array, "n k"],
    graph: Graph,
    *,
    beta: float | int,
    steps: int,
    tolerance: float | int = 1e-4,
) -> Float[Array, "n k"]:
    """``propagate`` over any undirected graph: superpixels, long-range links, other stencils.

    Gathers and segment sums take four to five times as long as the stencil: use it where there is
    no grid. Nodes are the rows of the scores.
    """
    _check_numbers(beta, steps)
    nodes, dtype = scores.shape[0], _accumulator(scores)
    scores = scores.astype(dtype)
    weights = jnp.power(graph.values.astype(dtype), beta)[:, None]

    def product(x: Array) -> Array:
        there = jax.ops.segment_sum(weights * x[graph.second], graph.first, nodes)
        return x + there + jax.ops.segment_sum(weights * x[graph.first], graph.second, nodes)

    share = 1 / product(jnp.ones((nodes, 1), dtype))
    return _walk(lambda x: product(x) * share, scores, steps, coefficients(steps, tolerance))


def as_sparse(affinity: Affinity) -> Graph:
    """The affinity of one image (p, h, w) as a graph over its pixels in row-major order."""
    if affinity.values.ndim != 3:
        raise ValueError(
            f"affinity values have shape {affinity.values.shape}; give one image (p, h, w), "
            "or jax.vmap over a batch"
        )
    _, height, width = affinity.values.shape
    shifts = jnp.asarray([dy * width + dx for dy, dx in stencil(affinity.radius)], jnp.int32)
    pixels = jnp.arange(height * width, dtype=jnp.int32)
    first = jnp.broadcast_to(pixels[None, :], (shifts.size, pixels.size))
    # Pairs that leave the image keep an edge of value 0, so that the number of edges is static.
    second = jnp.clip(first + shifts[:, None], 0, height * width - 1)
    exists = joined(height, width, affinity.radius)
    values = jnp.where(exists, affinity.values, jnp.zeros_like(affinity.values))
    return Graph(first.reshape(-1), second.reshape(-1), values.reshape(-1))


@cache
def coefficients(steps: int, tolerance: float | int) -> tuple[float, ...] | None:
    """Chebyshev coefficients of x^steps, cut at the tolerance; None where stepping is as fast.

    x^t = sum over j of C(t, j) / 2^t · T_|t - 2j|(x), so coefficient k is the probability that t
    fair coin tosses differ by k. What is cut off is the tail of that distribution, at most
    2 exp(-k² / 2t). Cutting and rescaling each cost at most the tail.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; give 0 (exact) or a share of the maximum")
    if steps < 0:
        raise ValueError(f"steps is {steps}; give 0 or more")
    logs = [math.lgamma(n + 1) for n in range(steps + 1)]
    series, tail = [0.0] * (steps + 1), 1.0
    for k in range(steps % 2, steps + 1, 2):
        ways = logs[steps] - logs[(steps - k) // 2] - logs[(steps + k) // 2]
        series[k] = (1 if k == 0 else 2) * math.exp(ways - steps * math.log(2))
        tail -= series[k]
        if 0 < k and tail <= tolerance / 2:
            kept = series[: k + 1]
            total = sum(kept)
            return tuple(c / total for c in kept) if k <= PAYS_BELOW * steps else None
    return None


def _power(
    scores: Array,
    affinity: Affinity,
    beta: float | int,
    steps: int,
    series: tuple[float, ...] | None,
) -> Array:
    """Lay grids out as flat rows, walk, and fold the result back."""
    _check_numbers(beta, steps)
    _check_shapes(scores, affinity)
    dtype = _accumulator(scores)
    *lead, height, width, channels = scores.shape
    flat = jnp.moveaxis(scores.astype(dtype), -1, -3).reshape(*lead, channels, height * width)
    weights, shifts = _flat_weights(affinity, beta, dtype)
    share = 1 / _product(weights, jnp.ones((*lead, 1, height * width), dtype), shifts)
    flat = _walk(lambda x: _product(weights, x, shifts) * share, flat, steps, series)
    return jnp.moveaxis(flat.reshape(*lead, channels, height, width), -3, -1)


def _flat_weights(
    affinity: Affinity, beta: float | int, dtype: DTypeLike
) -> tuple[Array, tuple[int, ...]]:
    """Weights (..., q, reach + h·w) of the offsets that fit into the grid, and their flat shifts.

    Row after row in one run of memory, every offset is one shift. A shift past the end of a row
    lands in the next, harmlessly: those pairs have weight zero. The weights get as many zeros in
    front as the furthest shift reaches, for the partners above the first row.
    """
    height, width = affinity.values.shape[-2:]
    offsets = stencil(affinity.radius)
    fits = [i for i, (dy, dx) in enumerate(offsets) if dy < height and abs(dx) < width]
    shifts = tuple(offsets[i][0] * width + offsets[i][1] for i in fits)
    values, exists = affinity.values, joined(height, width, affinity.radius)
    if len(fits) < len(offsets):
        values, exists = (a[..., np.asarray(fits, np.int32), :, :] for a in (values, exists))
    stored = values.dtype if values.dtype.itemsize < 4 else dtype
    # Outside values are zero already in an affinity made here; in one made elsewhere, this is
    # what keeps the wrapped rows apart.
    exists = jnp.broadcast_to(exists, values.shape)
    values = jnp.where(exists, values, jnp.zeros_like(values))
    weights = jnp.power(values.astype(dtype), beta).astype(stored)
    weights = weights.reshape(*weights.shape[:-2], height * width)
    lead = [(0, 0)] * (weights.ndim - 1)
    return jnp.pad(weights, [*lead, (max(shifts, default=0), 0)]), shifts


def _multiply(weights: Array, x: Array, shifts: tuple[int, ...]) -> Array:
    """W x for flat channels x (..., k, n): each weight serves its pair in both directions.

    One expression without intermediate arrays, which XLA compiles to one loop.
    """
    size, reach = x.shape[-1], max(shifts, default=0)
    lead = [(0, 0)] * (x.ndim - 1)
    padded = jnp.pad(x, [*lead, (reach, reach)])
    total = x
    for i, shift in enumerate(shifts):
        for start, partner in ((reach, reach + shift), (reach - shift, reach - shift)):
            weight = weights[..., i, None, start : start + size].astype(x.dtype)
            weight = jnp.broadcast_to(weight, x.shape)
            total = total + weight * padded[..., partner : partner + size]
    return total


def _product_forward(weights: Array, x: Array, shifts: tuple[int, ...]):
    return _product(weights, x, shifts), (weights, x)


def _product_backward(shifts: tuple[int, ...], saved: tuple[Array, Array], g: Array):
    # Autodiff of 68 slices would pad 68 times; by symmetry the gradient is a product again.
    weights, x = saved
    return _pull(weights, x, g, shifts), _product(weights, g, shifts)


_product = jax.custom_vjp(_multiply, nondiff_argnums=(2,))
_product.defvjp(_product_forward, _product_backward)


def _pull(weights: Array, x: Array, g: Array, shifts: tuple[int, ...]) -> Array:
    """Gradient of W x for the weights, given g for the result: both directions of each pair."""
    if not shifts:
        return jnp.zeros_like(weights)
    size, reach = x.shape[-1], max(shifts)
    lead = [(0, 0)] * (x.ndim - 1)
    x_ahead, g_ahead = (jnp.pad(a, [*lead, (0, reach)]) for a in (x, g))

    def pull(shift: Array) -> Array:
        x_there = lax.dynamic_slice_in_dim(x_ahead, shift, size, axis=-1)
        g_there = lax.dynamic_slice_in_dim(g_ahead, shift, size, axis=-1)
        return jnp.sum(g * x_there + g_there * x, axis=-2)

    # A loop over offsets: unrolled, it compiled three times longer and kept every term alive.
    pulls = jnp.moveaxis(lax.map(pull, jnp.asarray(shifts, jnp.int32)), 0, -2)
    return jnp.pad(pulls, [*lead, (reach, 0)]).astype(weights.dtype)


def _walk(
    transition: Transition, scores: Array, steps: int, series: tuple[float, ...] | None
) -> Array:
    """T^steps scores, stepping or, given a series, by Clenshaw's recurrence from its highest term.

    Clenshaw keeps the sum inside the recurrence: one pass over memory per product.
    """
    if series is None:
        return _repeat(lambda x, _: transition(x), scores, np.zeros(steps))

    def step(pair: tuple[Array, Array], coefficient: Array) -> tuple[Array, Array]:
        latest, before = pair
        return coefficient * scores + 2 * transition(latest) - before, latest

    start = (series[-1] * scores, jnp.zeros_like(scores))
    latest, before = _repeat(step, start, np.asarray(series[-2:0:-1]))
    return series[0] * scores + transition(latest) - before


def _repeat(step: Callable[[T, Array], T], state: T, numbers: np.ndarray) -> T:
    """Fold a step over numbers, in blocks of about sqrt(n) that the gradient recomputes."""

    def body(state: T, number: Array) -> tuple[T, None]:
        return step(state, number), None

    @partial(jax.checkpoint, prevent_cse=False)
    def block(state: T, block: Array) -> tuple[T, None]:
        return lax.scan(body, state, block)

    if numbers.size == 0:
        return state
    dtype = jax.tree.leaves(state)[0].dtype
    inner = math.isqrt(numbers.size)
    rest = numbers.size % inner
    if rest:
        state, _ = lax.scan(body, state, jnp.asarray(numbers[:rest], dtype))
    state, _ = lax.scan(block, state, jnp.asarray(numbers[rest:].reshape(-1, inner), dtype))
    return state


def _accumulator(scores: Array) -> DTypeLike:
    return jnp.float64 if scores.dtype == jnp.float64 else jnp.float32


def _check_numbers(beta: float | int, steps: int) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta}; give a number above 0 (8 in PSA, 10 in IRN)")
    if steps < 0:
        raise ValueError(f"steps is {steps}; give 0 or more (256 in PSA and IRN)")


def _check_shapes(scores: Array, affinity: Affinity) -> None:
    *lead, pairs, height, width = affinity.values.shape
    if scores.shape[:-1] != (*lead, height, width):
        raise ValueError(
            f"scores {scores.shape} (..., h, w, k) do not fit affinity values "
            f"{affinity.values.shape} (..., p, h, w); make both on the same grid and batch"
        )
    if pairs != len(stencil(affinity.radius)):
        raise ValueError(
            f"{pairs} affinities per pixel, but radius {affinity.radius} has "
            f"{len(stencil(affinity.radius))}; give the radius they were made with"
        )
