"""One number per channel, added to or multiplied with a map, with gradients that CPUs can sum.

The gradient of such a number is a sum over all axes but the last. XLA's CPU backend makes one loop
over columns of it, and computes the chain that leads to the gradient once more inside; adding up
rows of what is there takes a fraction of that (training of ResNet-50 against torch before and
after: benchmarks/README.md, by ``benchmarks/backbones.py``). On other backends the plain sums
stay.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def add_bias(x: Float[Array, "*b k"], bias: Float[Array, " k"]) -> Float[Array, "*b k"]:
    """x + bias."""
    return x + jnp.broadcast_to(bias, x.shape)


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return add_bias(x, bias), bias


def _add_bias_backward(bias: Array, g: Array) -> tuple[Array, Array]:
    (total,) = _sums(g, None)
    return g, total.astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def scale_shift(
    x: Float[Array, "*b k"], scale: Float[Array, " k"], shift: Float[Array, " k"]
) -> Float[Array, "*b k"]:
    """x · scale + shift."""
    return x * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(shift, x.shape)


def _scale_shift_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, tuple]:
    return scale_shift(x, scale, shift), (x, scale, shift)


def _scale_shift_backward(kept: tuple, g: Array) -> tuple[Array, Array, Array]:
    x, scale, shift = kept
    plain, weighted = _sums(g, x)
    to_x = (g * jnp.broadcast_to(scale, g.shape)).astype(x.dtype)
    return to_x, weighted.astype(scale.dtype), plain.astype(shift.dtype)


scale_shift.defvjp(_scale_shift_forward, _scale_shift_backward)


def _sums(g: Array, x: Array | None) -> tuple[Array, ...]:
    """Sum of g and, where x is given, of g · x, over all axes but the last, in float32."""
    if jax.default_backend() != "cpu" or g.ndim not in (3, 4):
        axes = tuple(range(g.ndim - 1))
        return tuple(part.astype(jnp.float32).sum(axis=axes) for part in _parts(g, x))

    def add(row: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        here = [
            lax.dynamic_index_in_dim(part, row, 1, False) for part in (g, x) if part is not None
        ]
        parts = _parts(here[0], here[1] if x is not None else None)
        return tuple(total + part for total, part in zip(totals, parts, strict=True))

    start = jnp.zeros((g.shape[0], *g.shape[2:]), jnp.float32)
    totals = lax.fori_loop(0, g.shape[1], add, (start,) * (1 if x is None else 2))
    return tuple(total.sum(axis=tuple(range(g.ndim - 2))) for total in totals)


def _parts(g: Array, x: Array | None) -> tuple[Array, ...]:
    wide = g.astype(jnp.float32)
    return (wide,) if x is None else (wide, wide * x.astype(jnp.float32))
