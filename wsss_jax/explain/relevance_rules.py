"""Layer-wise relevance propagation: how each layer hands relevance R back to what it received.

Every rule is a pure function of what the layer saw and of the relevance of its output; sums are
per image, so that a batch equals its images one by one. Norms, GELU and softmax pass relevance on
unchanged. Source: Chefer, Gur & Wolf 2021 (CVPR), alpha = 1, with two sets of rules: ``CHEFER``
conserves relevance in linear layers and sums, ``BASELINE`` is the plain LRP they compare with and
does not. Biases receive nothing in either.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Rows = Float[Array, "*b k"]

_TINY = 1e-9


class Rules(NamedTuple):
    """The two layers on which the sets differ.

    linear: (x, kernel, relevance) to the relevance of x. add: (a, b, relevance) to both of theirs.
    """

    linear: Callable[[Array, Array, Array], Array]
    add: Callable[[Array, Array, Array], tuple[Array, Array]]


def linear_shared(x: Rows, kernel: Float[Array, "k n"], relevance: Float[Array, "*b n"]) -> Rows:
    """Positive contributions x+ W+ and x- W- over their common sum: conserves relevance.

    An output without any positive contribution hands nothing on.
    """
    (up, down), (plus, minus) = _signs(x), _signs(kernel)
    share = ratio(relevance, _dot(up, plus) + _dot(down, minus))
    return up * _dot(share, plus.T) + down * _dot(share, minus.T)


def linear_separate(x: Rows, kernel: Float[Array, "k n"], relevance: Float[Array, "*b n"]) -> Rows:
    """The same with each sign over its own sum: up to twice the relevance comes out."""
    total = jnp.zeros_like(x)
    for part, weights in zip(_signs(x), _signs(kernel), strict=True):
        total += part * _dot(ratio(relevance, _dot(part, weights)), weights.T)
    return total


def add_plain(a: Rows, b: Rows, relevance: Rows) -> tuple[Rows, Rows]:
    """Each summand by its share of the sum."""
    share = ratio(relevance, a + b)
    return a * share, b * share


def add_rescaled(a: Rows, b: Rows, relevance: Rows) -> tuple[Rows, Rows]:
    """The same, rescaled per image so that totals are in proportion to their magnitude.

    Shares of opposite sign grow without bound; this keeps them finite (equation 9).
    """
    of_a, of_b = add_plain(a, b, relevance)
    sums = _total(of_a), _total(of_b)
    magnitude = jnp.abs(sums[0]) + jnp.abs(sums[1])
    whole = _total(relevance)
    scaled = [
        part * ratio(ratio(jnp.abs(own), magnitude) * whole, own)
        for part, own in zip((of_a, of_b), sums, strict=True)
    ]
    return scaled[0], scaled[1]


CHEFER = Rules(linear_shared, add_rescaled)
"""Rules of the transformer attribution."""

BASELINE = Rules(linear_separate, add_plain)
"""Rules of the LRP and partial LRP that are compared with it."""


def clone(x: Rows, *relevances: Array) -> Rows:
    """Relevance of a value that went several ways: their sum."""
    total = jnp.zeros_like(x)
    for relevance in relevances:
        total += ratio(relevance, x)
    return x * total


def product(
    multiply: Callable[[Array, Array], Array], a: Array, b: Array, relevance: Array
) -> tuple[Array, Array]:
    """Relevance of both factors of a bilinear product, half each."""
    value, pull_back = jax.vjp(multiply, a, b)
    to_a, to_b = pull_back(ratio(relevance, value))
    return a * to_a / 2, b * to_b / 2


def bounded(
    x: Rows,
    kernel: Float[Array, "k n"],
    relevance: Float[Array, "*b n"],
    bounds: Float[Array, "*b 2"],
) -> Rows:
    """The first layer, whose inputs lie between bounds: the z-box rule (Montavon et al. 2017)."""
    low, high = bounds[..., :1], bounds[..., 1:]
    plus, minus = (part.astype(x.dtype) for part in _signs(kernel))

    def parts(share: Array) -> Array:
        of_low, of_high = low * _dot(share, plus.T), high * _dot(share, minus.T)
        return x * _dot(share, kernel.T) - of_low - of_high

    lowest = low * jnp.broadcast_to(plus.sum(axis=0), relevance.shape)
    highest = high * jnp.broadcast_to(minus.sum(axis=0), relevance.shape)
    return parts(ratio(relevance, _dot(x, kernel) - lowest - highest))


def ratio(above: Array, below: Array) -> Array:
    """above / (below + 1e-9), and zero where nothing came in (``below`` is zero)."""
    shifted = below + _TINY
    shifted = jnp.where(shifted == 0, _TINY, shifted)
    return jnp.where(below == 0, 0, above / shifted)


def _signs(x: Array) -> tuple[Array, Array]:
    return jnp.maximum(x, 0), jnp.minimum(x, 0)


def _dot(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")


def _total(x: Array) -> Array:
    return x.sum(axis=tuple(range(1, x.ndim)), keepdims=True)
