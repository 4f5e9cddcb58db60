"""Positions of patches: an embedding resampled to the grid of each image, or rotary angles.

Each gives one embedding for all images or, told the real cells of a canvas, one per image: the
image of row i has as many rows and columns as its real cells span, and the rest is zero.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wsss_jax.types import Size

Position = Float[Array, "g1 g2 k"]
Cells = Bool[Array, "b h w"] | None


def antialiased(position: Position, grid: Size, cells: Cells = None) -> Float[Array, "_ h w k"]:
    """Keys' cubic (a = -0.5) with antialiasing, as timm and DINOv2 with registers.

    Google's code is bilinear.
    """
    stored, shape = position.shape[:2], (*grid, position.shape[-1])
    if cells is None:
        if stored == grid:
            return position[None]
        return jax.image.resize(position, shape, "cubic", antialias=True)[None]
    scales = _spans(cells) / jnp.asarray(stored, jnp.float32)[None]

    def one(scale: Array) -> Array:
        shift = jnp.zeros(2)
        return jax.image.scale_and_translate(
            position, shape, (0, 1), scale, shift, "cubic", antialias=True
        )

    return jax.vmap(one)(scales)


def torch_cubic(position: Position, grid: Size, cells: Cells = None) -> Float[Array, "_ h w k"]:
    """PyTorch's cubic (a = -0.75) without antialiasing, as DINOv2 without registers.

    From size to size. The authors' own code takes n + 0.1 for n wanted cells (tokens at 112 pixels
    then differ by 3 % of the largest); exports and the hub's transformers do not, nor do we.
    """
    if cells is None:
        if position.shape[:2] == grid:
            return position[None]
        return _cubic(position, jnp.asarray(grid, jnp.float32), grid)[None]
    return jax.vmap(partial(_cubic, position, grid=grid))(_spans(cells))


def turns(
    grid: Size, channels: int, *, others: int, cells: Cells = None
) -> Float[Array, "2 _ 1 t d"]:
    """Cosines and sines of DINOv3's rotary positions for heads of so many channels.

    Cell centres lie in [-1, 1] along each axis of the image; periods rise from 1 to almost 100.
    Tokens stand in the order class token, patches, others; all but the patches are not turned.
    """
    spans = jnp.asarray([grid], jnp.float32) if cells is None else _spans(cells)
    periods = 100.0 ** (jnp.arange(channels // 4, dtype=jnp.float32) * 4 / channels)
    angles = []
    for axis, count in enumerate(grid):
        place = (jnp.arange(count, dtype=jnp.float32) + 0.5)[None] / spans[:, axis, None] * 2 - 1
        shape = (len(spans), *grid, channels // 4)
        along = 2 * jnp.pi * place[..., None] / periods[None, None]
        along = along[:, :, None] if axis == 0 else along[:, None]
        angles.append(jnp.broadcast_to(along, shape).reshape(len(spans), -1, channels // 4))
    half = jnp.concatenate(angles, axis=-1)
    whole = jnp.concatenate([half, half], axis=-1)
    whole = jnp.pad(whole, ((0, 0), (1, others), (0, 0)))[:, None]
    return jnp.stack([jnp.cos(whole), jnp.sin(whole)])


def _spans(cells: Bool[Array, "b h w"]) -> Float[Array, "b 2"]:
    """Rows and columns of each image, at least one."""
    spans = [cells.any(axis=3 - axis).sum(axis=1) for axis in (1, 2)]
    return jnp.maximum(jnp.stack(spans, axis=-1), 1).astype(jnp.float32)


def _cubic(position: Position, spans: Float[Array, "2"], grid: Size) -> Float[Array, "h w k"]:
    stored = jnp.asarray(position.shape[:2], jnp.float32)
    rows, columns = (
        _weights(stored[axis] / spans[axis], spans[axis], grid[axis], position.shape[axis])
        for axis in (0, 1)
    )
    return jnp.einsum("hy,yxk,wx->hwk", rows, position, columns, precision="highest")


def _weights(ratio: Array, span: Array, wanted: int, stored: int) -> Float[Array, "n g"]:
    """What each stored cell counts in each wanted one; beyond the edge the edge is repeated."""
    cell = jnp.arange(wanted, dtype=jnp.float32)
    place = (cell + 0.5) * ratio - 0.5
    below = jnp.floor(place)
    total = jnp.zeros((wanted, stored))
    for step in (-1, 0, 1, 2):
        index = jnp.clip(below + step, 0, stored - 1).astype(jnp.int32)
        weight = _kernel(jnp.abs(place - below - step))
        total = total + weight[:, None] * jax.nn.one_hot(index, stored)
    return jnp.where((cell < span)[:, None], total, 0.0)


def _kernel(distance: Float[Array, " n"]) -> Float[Array, " n"]:
    """Keys 1981, equation 4, with a = -0.75."""
    a, d = -0.75, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return jnp.where(d <= 1, near, far)
