"""Explanations summed over scales and mirror images, and brought to one grid.

The convention is that of IRN (Ahn et al. 2019) and P-NOC: every raw map is rectified, mirrored
maps are mirrored back, the maps of a scale are resized bilinearly to a grid of one cell per four
pixels of the photograph, and the scales are summed. ``normalise.by_peak`` ends it. Images lie in
the top left corner of their canvas; canvases are whole multiples of the network's stride.

Where we differ: the reference codes stretch a map over the image as if its cells tiled it. Cells of
a strided network look at pixels 0, s, 2s, … (symmetric padding) or s-1, 2s-1, … (padding as in
TensorFlow), and the last of them may hang over the edge. Here every grid cell reads the map where
the network looked, so maps of all scales and mirror images lie over one another.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.explain.contract import Images, Labels
from wsss_jax.ops import images as image_ops
from wsss_jax.ops.resize import grid_size
from wsss_jax.types import Size

Method = Callable[[Array, Array, Array], Array]
"""An explanation of one network: images (b,H,W,3), which of their pixels are real (b,H,W) and
labels (b,c) to raw maps (b,h,w,c)."""

STRIDE = 4
"""Pixels of the photograph per cell of the grid that score maps are stored on."""


def explain_scale(
    method: Method,
    images: Images,
    inside: Bool[Array, "b h w"],
    labels: Labels,
    *,
    photographs: Int[Array, "b 2"],
    canvas: Size,
    lean: float = 0.5,
    flip: bool = True,
) -> Float[Array, "b gh gw c"]:
    """The rectified maps of one scale, with those of the mirror images added, on the common grid.

    Jit this once per shape and sum the results of all scales. ``images`` are already resized to the
    scale; ``photographs`` are the (height, width) in pixels at full scale, and ``canvas`` is a
    static grid that holds all of their grids. ``lean``: which of its stride pixels a cell looks at,
    from 0 (the first) to 1 (the last); 1/2 is the middle, as for patches.
    """
    sizes = sizes_of(inside)
    seen, masks = images, inside
    if flip:
        seen = jnp.concatenate([images, image_ops.flip_within(images, sizes)])
        masks, labels = jnp.tile(inside, (2, 1, 1)), jnp.tile(labels, (2, 1))
    maps = jax.nn.relu(method(seen, masks, labels))
    place = Placement(sizes, photographs, images.shape[1] / maps.shape[1], lean)
    if not flip:
        return on_grid(maps, place, canvas, mirrored=False)
    plain, mirrored = jnp.split(maps, 2)
    return on_grid(plain, place, canvas, mirrored=False) + on_grid(
        mirrored, place, canvas, mirrored=True
    )


def full_canvas(scaled: tuple[int, ...], scale: float) -> Size:
    """The grid of a canvas at full scale, from its pixels (height, width) at another scale.

    Taken from the first scale of a group, it is the same for all groups of that canvas.
    """
    return grid_size((math.ceil(scaled[0] / scale), math.ceil(scaled[1] / scale)))


class Placement(NamedTuple):
    """How maps lie on their images.

    sizes: (b,2) of the images that were explained. photographs: (b,2) of the same at full scale.
    stride: pixels per cell of the map. lean: which of them the cell looks at, 0 first to 1 last.
    """

    sizes: Int[Array, "b 2"]
    photographs: Int[Array, "b 2"]
    stride: float
    lean: float


def on_grid(
    maps: Float[Array, "b h w c"], place: Placement, canvas: Size, *, mirrored: bool
) -> Float[Array, "b gh gw c"]:
    """Maps read at the centres of the grid cells of the photographs, zero outside them.

    ``mirrored``: the maps are those of mirror images; they are read from right to left.
    """
    stride = jnp.float32(place.stride)
    centre = (stride - 1) * place.lean
    photographs = place.photographs.astype(jnp.float32)
    scale = place.sizes.astype(jnp.float32) / photographs
    # Grid cell g covers pixels 4g to 4g + 3, whose middle lies 4g + 2 from the edge.
    first, step = jnp.full_like(photographs, STRIDE / 2), jnp.full_like(photographs, STRIDE)
    if mirrored:
        first = first.at[:, 1].set(photographs[:, 1] - STRIDE / 2)
        step = step.at[:, 1].multiply(-1)
    start = (first * scale - 0.5 - centre) / stride
    cells = cells_of(place.sizes, place.stride)
    to_sizes = (place.photographs - 1) // STRIDE + 1
    return image_ops.sample_within(
        maps, cells, to_sizes, canvas, start=start, step=step * scale / stride
    )


def sizes_of(inside: Bool[Array, "b h w"]) -> Int[Array, "b 2"]:
    """True height and width of each image; rows that only fill the batch up count as 1 by 1."""
    heights = inside[:, :, 0].sum(axis=1, dtype=jnp.int32)
    widths = inside[:, 0, :].sum(axis=1, dtype=jnp.int32)
    return jnp.maximum(jnp.stack([heights, widths], axis=1), 1)


def cells_of(sizes: Int[Array, "b 2"], stride: float) -> Int[Array, "b 2"]:
    """Cells along height and width of a map that has one per ``stride`` pixels: the ceiling."""
    return jnp.ceil(sizes.astype(jnp.float32) / stride).astype(sizes.dtype)


def sum_of(arrays: list[Array]) -> np.ndarray:
    """Sum of arrays of one shape, on the host: a jax sum would be compiled for each shape."""
    return np.sum([np.asarray(array) for array in arrays], axis=0)
