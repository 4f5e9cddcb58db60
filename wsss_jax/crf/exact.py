"""Gaussian kernels summed over all pairs of pixels, tile by tile: the oracle of the lattice.

O(n^2) in time and O(n tile) in memory, so for small images, or full ones on a GPU. Smooth in the
kernel widths, hence the right kernels behind a network that learns them; the lattice's gradient is
that of a piecewise linear approximation.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

TILE = 1024
"""Rows of the kernel matrix held at a time."""


def smooth(
    values: Float[Array, "n k"], points: Float[Array, "n d"], *, tile: int = TILE
) -> Float[Array, "n k"]:
    """Sum over j of exp(-|point_i - point_j|^2 / 2) value_j, the pixel itself included."""
    n = values.shape[0]
    length = jnp.sum(points**2, axis=-1)

    @partial(jax.checkpoint, prevent_cse=False)
    def rows(block: tuple[Array, Array]) -> Array:
        own, own_length = block
        dots = jnp.matmul(own, points.T, precision=jax.lax.Precision.HIGHEST)
        distance = own_length[:, None] + length[None] - 2 * dots
        kernel = jnp.exp(-0.5 * jnp.maximum(distance, 0))
        return jnp.matmul(kernel, values, precision=jax.lax.Precision.HIGHEST)

    tile = min(tile, n)
    tiles = -(-n // tile)
    pad = tiles * tile - n
    own = jnp.pad(points, ((0, pad), (0, 0))).reshape(tiles, tile, -1)
    own_length = jnp.pad(length, (0, pad)).reshape(tiles, tile)
    return jax.lax.map(rows, (own, own_length)).reshape(tiles * tile, -1)[:n]


def normalised(
    values: Float[Array, "n k"], points: Float[Array, "n d"], *, tile: int = TILE
) -> Float[Array, "n k"]:
    """``smooth`` as D^-1/2 K D^-1/2, with D the row sums of the kernel."""
    norm = jax.lax.rsqrt(smooth(jnp.ones((values.shape[0], 1)), points, tile=tile))
    return norm * smooth(norm * values, points, tile=tile)
