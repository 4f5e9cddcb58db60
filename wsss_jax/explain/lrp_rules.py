"""How one linear layer of a convolutional network hands relevance back: ε, αβ, z⁺ and z^B.

A layer is y = a (W x) + b: a convolution or product with the BatchNorm behind it folded into a and
b. Its contributions are a W x by the signs of a, W and x, so no folded kernel is ever written down.
Source: Bach et al. 2015 (ε: equation 58, αβ: equation 60), Montavon et al. 2017 (z⁺, z^B). Biases
take their share under ε, as in Bach et al.; under the others they get nothing, and only the
relevance of values that biases alone made is lost.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.explain.relevance_rules import ratio

Weighs = Callable[..., Array]


class Layer(NamedTuple):
    """A linear layer and what it saw.

    x: its input. up, down: any input to W⁺ and W⁻ times it. scale, bias: a and b, of the shape of
    the output or broadcast to it. bounds: the least and largest values that x can have, where x
    is made of pixels by one scale and shift.
    """

    x: Array
    up: Weighs
    down: Weighs
    scale: Array
    bias: Array
    bounds: tuple[Array, Array] | None = None


class Rule(NamedTuple):
    """linear: (layer, relevance of y) to that of x. add: (a, b, relevance) to both of theirs."""

    linear: Callable[[Layer, Array], Array]
    add: Callable[[Array, Array, Array], tuple[Array, Array]]


def epsilon(share: float = 0.25) -> Rule:
    """R_x = x Wᵀ(a R / (y + ε sign y)), with ε ``share`` of the root mean square of y, per image.

    Without biases and with share 0 relevance is conserved; ε absorbs what is weak. 0.25 is the
    authors' (Montavon et al. 2019).
    """

    def stable(y: Array) -> Array:
        size = jnp.sqrt(jnp.square(y).mean(axis=tuple(range(1, y.ndim)), keepdims=True))
        return y + jnp.where(y < 0, -1.0, 1.0).astype(y.dtype) * share * size

    def linear(layer: Layer, relevance: Array) -> Array:
        y, back = jax.vjp(lambda x: layer.scale * (layer.up(x) + layer.down(x)), layer.x)
        (slope,) = back(ratio(relevance.astype(y.dtype), stable(y + layer.bias)))
        return layer.x * slope

    def add(a: Array, b: Array, relevance: Array) -> tuple[Array, Array]:
        part = ratio(relevance.astype(a.dtype), stable(a + b))
        return a * part, b * part

    return Rule(linear, add)


def alpha_beta(alpha: float = 2.0) -> Rule:
    """α times the shares of positive contributions less β = α - 1 times those of negative ones.

    Conserves relevance: an output whose contributions have one sign hands all on by that sign,
    where the plain rule would hand on α, or lose it. α = 1 is z⁺, under which an output without
    positive contributions hands nothing on.
    """
    if alpha < 1:
        raise ValueError(f"alpha is {alpha}, wanted at least 1; beta is alpha - 1")

    def shared_out(plus: Weighs, minus: Weighs, parts: tuple, relevance: Array) -> list[Array]:
        if alpha == 1:
            return _shared(plus, parts, relevance)
        wide = relevance.astype(jnp.float32)
        up, down = plus(*parts), minus(*parts)
        extra = jnp.where((up > 0) & (down < 0), (alpha - 1) * wide, 0)
        to_plus = _shared(plus, parts, wide + extra)
        to_minus = _shared(minus, parts, jnp.where(up > 0, -extra, wide))
        return [one + other for one, other in zip(to_plus, to_minus, strict=True)]

    def linear(layer: Layer, relevance: Array) -> Array:
        parts = _signs(layer.x)
        plus, minus = partial(_of_sign, layer, 1), partial(_of_sign, layer, -1)
        of_plus, of_minus = shared_out(plus, minus, parts, relevance)
        return of_plus + of_minus

    def add(a: Array, b: Array, relevance: Array) -> tuple[Array, Array]:
        parts = (*_signs(a), *_signs(b))
        of = shared_out(
            lambda up, down, more, less: up + more,
            lambda up, down, more, less: down + less,
            parts,
            relevance,
        )
        return of[0] + of[1], of[2] + of[3]

    return Rule(linear, add)


def bounded(layer: Layer, relevance: Array) -> Array:
    """z^B: the first layer, whose inputs lie between its bounds; conserves relevance."""
    assert layer.bounds is not None
    rise, fall = _signs(layer.scale)

    def away(x: Array, low: Array, high: Array) -> Array:
        lowest = rise * (layer.up(low) + layer.down(high))
        flipped = fall * (layer.down(low) + layer.up(high))
        return layer.scale * (layer.up(x) + layer.down(x)) - lowest - flipped

    parts = (layer.x, *layer.bounds)
    found = _shared(away, parts, relevance)
    return found[0] + found[1] + found[2]


def _of_sign(layer: Layer, sign: int, up: Array, down: Array) -> Array:
    """All contributions of one sign, from the positive and the negative part of x."""
    same, other = layer.up(up) + layer.down(down), layer.down(up) + layer.up(down)
    rise, fall = _signs(layer.scale)
    return rise * same + fall * other if sign > 0 else rise * other + fall * same


def _shared(weigh: Weighs, parts: tuple[Array, ...], relevance: Array) -> list[Array]:
    """Relevance of each part, by its share of a function that is linear in all of them."""
    whole, back = jax.vjp(weigh, *parts)
    slopes = back(ratio(relevance.astype(whole.dtype), whole))
    return [part * slope for part, slope in zip(parts, slopes, strict=True)]


def _signs(x: Float[Array, "*s"]) -> tuple[Array, Array]:
    return jnp.maximum(x, 0), jnp.minimum(x, 0)
