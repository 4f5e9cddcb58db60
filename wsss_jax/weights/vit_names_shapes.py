"""From the arrays in public files of vision transformers to the layout of ours, layer by layer."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from wsss_jax.ops.positions import antialiased


def flat(x: np.ndarray, shape: tuple) -> np.ndarray:
    """One token without its axes of length one."""
    return x.reshape(-1)


def shaped(x: np.ndarray, shape: tuple) -> np.ndarray:
    """Norms of the old files are stored as (1,1,1,k)."""
    return x.reshape(shape) if x.ndim == 4 and len(shape) == 1 else x


def reshaped(x: np.ndarray, shape: tuple) -> np.ndarray:
    """Axes split in the file are one here, such as (heads,d,k) for (k,k)."""
    return x.reshape(shape)


def transposed(x: np.ndarray, shape: tuple) -> np.ndarray:
    """A matrix with inputs first."""
    return x.T


def patches(x: np.ndarray, shape: tuple) -> np.ndarray:
    """(k,3,p,p) to (p*p*3,k); the 1×1 embedding of the hybrid falls out of the same line."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def joined(*arrays: Any) -> np.ndarray:
    """Query, key and value of (k,heads,d) or (heads,d) side by side."""
    *parts, shape = arrays
    return np.concatenate([x.reshape(*shape[:-1], -1) for x in parts], axis=-1)


def joined_torch(*arrays: Any) -> np.ndarray:
    """Query, key and value of (k,k) or (k,), outputs first, side by side."""
    *parts, _ = arrays
    return np.concatenate([x.T for x in parts], axis=-1)


def scaled(x: np.ndarray, gamma: np.ndarray, shape: tuple) -> np.ndarray:
    """A kernel with the LayerScale that follows it."""
    return x.T.astype(np.float32) * gamma.astype(np.float32)


def scaled_bias(x: np.ndarray, gamma: np.ndarray, shape: tuple) -> np.ndarray:
    """A bias with the LayerScale that follows it."""
    return x.astype(np.float32) * gamma.astype(np.float32)


def some_biases(there: tuple[bool, ...], *arrays: Any) -> np.ndarray:
    """Biases of query, key and value side by side, zero for those that are not there."""
    *found, shape = arrays
    left, width = list(found), shape[0] // len(there)
    nothing = np.zeros(width, np.float32)
    return np.concatenate([left.pop(0) if here else nothing for here in there])


def masked(x: np.ndarray, mask: np.ndarray, shape: tuple) -> np.ndarray:
    """A bias where its mask is one, zero elsewhere."""
    return np.where(mask == 1, x, np.zeros((), x.dtype))


def no_bias(shape: tuple) -> np.ndarray:
    """Of layers that have none in the file."""
    return np.zeros(shape, np.float32)


def rows(x: np.ndarray, shape: tuple) -> np.ndarray:
    """Tokens (1,n,k) as (n,k)."""
    return x.reshape(-1, x.shape[-1])


def further_tokens(x: np.ndarray, positions: np.ndarray, shape: tuple) -> np.ndarray:
    """DeiT's distillation token with its position, which is the second of all."""
    positions = rows(positions, shape)
    if _without_place(len(positions)) != 2:
        raise ValueError(f"{len(positions)} positions, wanted a square number and two")
    return rows(x, shape).astype(np.float32) + positions[1:2].astype(np.float32)


def token_position(x: Float[np.ndarray, "..."], shape: tuple) -> np.ndarray:
    """The class token's own position; zero where the file has positions of patches only."""
    x = rows(x, shape)
    return x[0] if _without_place(len(x)) else np.zeros(x.shape[1], x.dtype)


def position(x: Float[np.ndarray, "..."], shape: tuple) -> np.ndarray:
    """Positions of the patches as a grid of the network's size."""
    x = rows(x, shape)[_without_place(x.shape[-2]) :]
    side = math.isqrt(len(x))
    return on_grid(x.reshape(side, side, -1), shape)


def on_grid(grid: np.ndarray, shape: tuple) -> np.ndarray:
    """Exactly the same where the grid already is the wanted one."""
    if grid.shape == shape:
        return grid
    moved = antialiased(jnp.asarray(grid, jnp.float32), (shape[0], shape[1]))
    return np.asarray(moved[0])


def _without_place(count: int) -> int:
    """Positions of tokens before the patches; public files have square grids of these."""
    return count - math.isqrt(count) ** 2
