"""How similar neighbouring pixels are: symmetric affinities on a fixed stencil of offsets.

An affinity joins every pixel to those closer than ``radius``. Because it is symmetric, one value
per pixel and half-plane offset says all: 34 values per pixel at radius 5, 152 at radius 10, in
place of an (h·w)² matrix. Sources: PSA (Ahn & Kwak 2018) for features, IRN (Ahn, Cho & Kwak 2019)
for boundaries. Not here: what a walk over the affinities does (``ops.walk``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.types import Leaf

Offsets = tuple[tuple[int, int], ...]
"""Steps (dy, dx) from a pixel to its partners, in grid pixels."""

Measure = Callable[[Array, Array, Array], Array]
"""Maps (..., h, w, k), the same maps at the partner, and the offset (2,), to values (..., h, w)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affinity:
    """Pair values (..., p, h, w) in [0, 1] on the half-disk stencil of a radius.

    ``values[..., i, y, x]`` joins pixel (y, x) to (y + dy, x + dx), where (dy, dx) is entry i of
    ``stencil(radius)``; the same value joins them the other way round, and every pixel is joined to
    itself by 1. Pairs that leave the image or touch padding are 0. Offsets come before the grid, so
    that a walk reads each offset's plane as one contiguous run of memory.
    """

    values: Leaf
    radius: int = field(metadata={"static": True})


@cache
def stencil(radius: int) -> Offsets:
    """Half of a disk: (0, 1..radius-1), then rows 1..radius-1 with dy² + dx² < radius².

    The order is that of PSA and IRN: row by row, left to right. Radius 5 has 34 offsets, radius 10
    has 152. ValueError for a radius below 2, which has no neighbours.
    """
    if radius < 2:
        raise ValueError(f"radius is {radius}, which joins no pixels; give 2 or more (PSA uses 5)")
    right = [(0, dx) for dx in range(1, radius)]
    below = [
        (dy, dx)
        for dy in range(1, radius)
        for dx in range(1 - radius, radius)
        if dy * dy + dx * dx < radius * radius
    ]
    return tuple(right + below)


@cache
def lines(radius: int) -> tuple[Offsets, ...]:
    """For each offset of the stencil, the pixels of the discrete line to it, both ends included.

    A pixel of the bounding box lies on the line when its squared distance to it is below 1 (IRN's
    rule). The lines hold 242 pixels in all at radius 5, and 2134 at radius 10.
    """
    return tuple(
        tuple(
            (y, x)
            for y in range(dy + 1)
            for x in range(min(0, dx), max(0, dx) + 1)
            if (dy * x - dx * y) ** 2 < dy * dy + dx * dx
        )
        for dy, dx in stencil(radius)
    )


def from_colour(
    images: Float[Array, "*b h w 3"],
    *,
    radius: int,
    sigma_colour: float | int,
    sigma_space: float | int,
    inside: Bool[Array, "*b h w"] | None = None,
) -> Affinity:
    """exp(-|c_i - c_j|² / 2 sigma_colour² - |p_i - p_j|² / 2 sigma_space²), nothing learned.

    images: RGB in [0, 1], already at the resolution of the grid. sigma_colour is in the same units,
    sigma_space in grid pixels. inside: False on padding, which gets no neighbours.
    """

    def measure(here: Array, there: Array, offset: Array) -> Array:
        colour = jnp.sum(jnp.square(here - there), axis=-1) / (2 * sigma_colour**2)
        space = jnp.sum(jnp.square(offset)).astype(here.dtype) / (2 * sigma_space**2)
        return jnp.exp(-colour - space)

    return _compare(images, radius, measure, inside)


def from_likeness(
    features: Float[Array, "*b h w k"],
    *,
    radius: int,
    sigma: float | int,
    inside: Bool[Array, "*b h w"] | None = None,
) -> Affinity:
    """exp(-d² / 2 sigma²), d the root mean square difference of two cells' channels.

    ``from_colour`` for frozen features, whatever their number: sigma is in the units of a channel.
    """

    def measure(here: Array, there: Array, offset: Array) -> Array:
        del offset
        return jnp.exp(-jnp.mean(jnp.square(here - there), axis=-1) / (2 * sigma**2))

    return _compare(features, radius, measure, inside)


def from_features(
    features: Float[Array, "*b h w k"],
    *,
    radius: int,
    inside: Bool[Array, "*b h w"] | None = None,
) -> Affinity:
    """exp(-mean over channels of |f_i - f_j|): the affinity that AffinityNet learns.

    Ahn & Kwak 2018, equation 3, prints the L1 norm; their code, which we follow, takes the mean.
    """

    def measure(here: Array, there: Array, offset: Array) -> Array:
        del offset
        return jnp.exp(-jnp.mean(jnp.abs(here - there), axis=-1))

    return _compare(features, radius, measure, inside)


def from_boundary(
    boundary: Float[Array, "*b h w"],
    *,
    radius: int,
    inside: Bool[Array, "*b h w"] | None = None,
) -> Affinity:
    """1 - the highest boundary value on the discrete line between two pixels.

    boundary: probabilities in [0, 1] of a class boundary at each pixel. Padding and everything
    outside the image count as boundary 1, so no path crosses them. Ahn, Cho & Kwak 2019,
    equation 6; the lines are those of their code (``lines``).
    """
    height, width = boundary.shape[-2:]
    margin = radius - 1
    walls = boundary if inside is None else jnp.where(inside, boundary, 1)
    walls = _pad(walls[..., None], margin, 1)[..., 0]

    def worst(line: Array) -> Array:
        # One slice after another: stacking them first would hold every line's pixels at once.
        worst = jnp.zeros_like(boundary)
        for step in line:
            worst = jnp.maximum(worst, _window(walls, step[0], step[1] + margin, height, width))
        return 1 - worst

    # Rematerialised, since the gradient would otherwise keep one mask per pixel of every line.
    values = lax.map(jax.checkpoint(worst), jnp.asarray(_line_table(radius)))
    return Affinity(jnp.moveaxis(values, 0, -3), radius)


def compact(affinity: Affinity, *, beta: float | int) -> Affinity:
    """The affinity to the power ``beta``, stored as bfloat16: half the memory, walked with beta 1.

    The power comes before the rounding, because after it a relative error of 2⁻⁹ would grow beta
    times. What this costs in a walk is stated there.
    """
    return replace(affinity, values=jnp.power(affinity.values, beta).astype(jnp.bfloat16))


def joined(
    height: int, width: int, radius: int, inside: Bool[Array, "*b h w"] | None = None
) -> Bool[Array, "*b p h w"]:
    """Which pairs of a grid exist: both pixels in the image, neither on padding."""
    offsets = jnp.asarray(np.asarray(stencil(radius), np.int32))
    if inside is None:
        inside = jnp.ones((height, width), bool)
    margin = radius - 1
    padded = _pad(inside[..., None], margin, False)[..., 0]
    partners = lax.map(lambda o: _window(padded, o[0], o[1] + margin, height, width), offsets)
    return jnp.moveaxis(partners, 0, -3) & inside[..., None, :, :]


def _compare(
    maps: Array, radius: int, measure: Measure, inside: Bool[Array, "*b h w"] | None
) -> Affinity:
    """Values of all pairs, one offset after another, so that memory holds one map at a time."""
    height, width = maps.shape[-3:-1]
    margin = radius - 1
    padded = _pad(maps, margin, 0)

    def values_of(offset: Int[Array, " 2"]) -> Array:
        there = _window(padded, offset[0], offset[1] + margin, height, width, axis=-3)
        return measure(maps, there, offset)

    # Rematerialised, since the gradient would otherwise keep |f_i - f_j| of every pair and channel.
    values = lax.map(jax.checkpoint(values_of), jnp.asarray(np.asarray(stencil(radius), np.int32)))
    values = jnp.moveaxis(values, 0, -3)
    exists = joined(height, width, radius, inside)
    return Affinity(jnp.where(_like(exists, values), values, jnp.zeros_like(values)), radius)


def _pad(maps: Array, margin: int, value: float | int) -> Array:
    """Room for the stencil left, right and below of maps (..., h, w, k)."""
    lead = [(0, 0)] * (maps.ndim - 3)
    return jnp.pad(maps, [*lead, (0, margin), (margin, margin), (0, 0)], constant_values=value)


def _window(
    padded: Array, top: Array, left: Array, height: int, width: int, axis: int = -2
) -> Array:
    """The h by w cut of a padded map that starts at (top, left); ``axis`` is that of the rows."""
    rows = lax.dynamic_slice_in_dim(padded, top, height, axis=axis)
    return lax.dynamic_slice_in_dim(rows, left, width, axis=axis + 1)


def _like(mask: Array, values: Array) -> Array:
    """A mask of the grid, or of each image's grid, spread over all leading axes of the values."""
    lead = (1,) * (values.ndim - mask.ndim)
    return jnp.broadcast_to(mask.reshape(lead + mask.shape), values.shape)


def _line_table(radius: int) -> Int[np.ndarray, "p l 2"]:
    """The lines as one array; short ones repeat their first pixel, which changes no maximum."""
    longest = max(map(len, lines(radius)))
    table = [line + (line[0],) * (longest - len(line)) for line in lines(radius)]
    return np.asarray(table, np.int32)
