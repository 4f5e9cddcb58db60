"""Augmented Grad-CAM: one fine map out of many coarse maps of the turned and shifted image.

Source: Morbidelli et al. 2020. The maps g_l of views A_l x of an image are taken to be coarse
readings D A_l h of one fine map h, which is what minimises

    1/(2L) sum_l |D A_l h - g_l|^2 + smoothing × TV(h) + shrinking / 2 × |h|^2

with the anisotropic total variation TV(h) = sum |dh/dy| + |dh/dx|. Solved by the primal-dual
method of Chambolle & Pock with diagonal step sizes (Pock & Chambolle 2011), which needs no step
size and no smoothed TV; views are passed through network and operator ``chunk`` at a time.

Where we differ from the authors' code: readings are the mean of points spread over a cell (theirs:
one bilinear reading at its middle), cells that look beyond the image count for nothing (theirs:
as zero), the weights are those of the mean over views (the same numbers for 100 views), and their
solver is 200 steps of Adam from zero. Views turn about the middle of the canvas, so images should
fill it: what a view moves onto padding is lost.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wsss_jax.explain import gradient
from wsss_jax.explain.contract import Explainer, Images, Labels, Maps, over_labels, size_of
from wsss_jax.types import Scorer, Size

Fine = Float[Array, "p b"]
"""Fine maps, pixels first and row by row: one row of a gather serves all images."""

Coarse = Float[Array, "l n b"]
"""Readings of the n cells of l views."""


@dataclass(frozen=True)
class Augmented:
    """How views are drawn and the fine map is solved for.

    views: their number, the first is the image itself. angle: largest turn, in radians. shift:
    largest shift, as a share of the sides. points: readings along each side of a cell. lean: which
    of its pixels a cell looks at (``types.Backbone.lean``; 1/2 the middle, as is usual for
    Grad-CAM). smoothing, shrinking: weights of TV and of the square, for maps of maximum 1.
    iterations: of the solver. chunk: views at a time. The defaults are the authors' numbers, except
    points and chunk.
    """

    views: int = 100
    angle: float = 0.5
    shift: float = 30 / 224
    points: int = 2
    lean: float = 0.5
    smoothing: float = 1e-3
    shrinking: float = 1e-4
    iterations: int = 200
    chunk: int = 10

    def __post_init__(self) -> None:
        if min(self.views, self.points, self.iterations, self.chunk) < 1:
            raise ValueError(f"views, points, iterations and chunk must be at least 1, got {self}")
        if min(self.smoothing, self.shrinking) < 0:
            raise ValueError(f"smoothing and shrinking must not be negative, got {self}")


class Views(NamedTuple):
    """Turns in radians (l,) and shifts in pixels, rows and columns (l,2)."""

    angles: Array
    shifts: Array


class Readings(NamedTuple):
    """What each cell of each view reads of the fine map: pixel numbers and weights (l,n,m)."""

    pixels: Array
    weights: Array


class Solution(NamedTuple):
    """The fine maps (p,b), and the functional at the start and after each iteration (i+1,b)."""

    maps: Array
    objective: Array


def augmented_grad_cam(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, ""],
    settings: Augmented | None = None,
    explainer: Explainer = gradient.grad_cam,
) -> Maps:
    """Augmented Grad-CAM: one fine map from the coarse maps of rotated and shifted copies.

    The coarse maps of ``explainer`` are rectified first, as Grad-CAM's are. All images get the same
    views. One forward pass per view serves all classes; the solver runs once per label.
    """
    settings = settings or Augmented()
    size = size_of(images)
    views = draw_views(key, size, settings)

    def seen(view: Views) -> Maps:
        return jax.nn.relu(explainer(scorer, turned(images, view), labels))

    coarse = jax.lax.map(seen, views, batch_size=settings.chunk)
    readings = readings_of(views, (coarse.shape[2], coarse.shape[3]), size, settings)
    peak = coarse.max(axis=(0, 2, 3))
    unit = coarse / jnp.where(peak > 0, peak, 1)[None, :, None, None, :]

    def explain(chosen: Float[Array, "b c"]) -> Float[Array, "b H W"]:
        wanted = jnp.einsum("lbhwc,bc->lhwb", unit, chosen, precision="highest")
        wanted = wanted.reshape(wanted.shape[0], -1, wanted.shape[-1])
        found = super_resolve(readings, wanted, size, settings).maps
        scale = (peak * chosen).sum(axis=-1)
        return found.T.reshape(-1, *size) * scale[:, None, None]

    return over_labels(labels, explain)


def draw_views(key: Key[Array, ""], size: Size, settings: Augmented) -> Views:
    """Uniformly random turns and shifts; the first view is the image as it is."""
    key_angle, key_shift = jax.random.split(key)
    moved = (jnp.arange(settings.views) > 0).astype(jnp.float32)
    angles = jax.random.uniform(key_angle, (settings.views,), minval=-1) * settings.angle
    shifts = jax.random.uniform(key_shift, (settings.views, 2), minval=-1) * settings.shift
    sides = jnp.asarray(size, jnp.float32)[None, :]
    return Views(angles * moved, shifts * sides * moved[:, None])


def turned(images: Float[Array, "b H W n"], view: Views) -> Float[Array, "b H W n"]:
    """One view of the images: turned about their middle, then shifted; zero comes in from outside.

    Bilinear. ``view`` holds a single angle () and shift (2,).
    """
    size = size_of(images)
    rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in size), indexing="ij")
    pixels, weights = _corners(_source(jnp.stack([rows, columns], -1), view, size), size)
    flat = images.reshape(images.shape[0], -1, images.shape[-1])
    return (flat[:, pixels] * weights[None, ..., None].astype(flat.dtype)).sum(axis=3)


def readings_of(views: Views, grid: Size, size: Size, settings: Augmented) -> Readings:
    """Where the cells of a coarse grid look in the fine map of ``size``, for every view.

    A cell that looks beyond the map reads nothing at all.
    """
    count = settings.points
    offsets = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count - 0.5

    def axis(cells: int, pixels: int) -> Float[Array, "h q"]:
        stride = pixels / cells
        middle = jnp.arange(cells, dtype=jnp.float32) * stride + (stride - 1) * settings.lean
        return middle[:, None] + stride * offsets[None, :]

    rows, columns = axis(grid[0], size[0]), axis(grid[1], size[1])
    shape = (*grid, count, count)
    places = jnp.stack(
        [
            jnp.broadcast_to(rows[:, None, :, None], shape),
            jnp.broadcast_to(columns[None, :, None, :], shape),
        ],
        axis=-1,
    )

    def of_view(view: Views) -> Readings:
        pixels, weights = _corners(_source(places, view, size), size)
        cells = grid[0] * grid[1]
        weights = weights.reshape(cells, -1) / count**2
        whole = weights.sum(axis=-1, keepdims=True) > 1 - 1e-4
        return Readings(pixels.reshape(cells, -1), jnp.where(whole, weights, 0))

    return jax.vmap(of_view)(views)


def observe(readings: Readings, fine: Fine, chunk: int) -> Coarse:
    """D A_l h for every view: the cells' readings of fine maps."""

    def of_view(view: Readings) -> Float[Array, "n b"]:
        return (fine[view.pixels] * view.weights[..., None]).sum(axis=1)

    return jax.lax.map(of_view, readings, batch_size=chunk)


def spread(readings: Readings, coarse: Coarse, pixels: int, chunk: int) -> Fine:
    """The adjoint of ``observe``: every reading given back to the pixels it was made of."""
    views = coarse.shape[0]
    chunk = min(chunk, views)

    def add(total: Fine, start: Array) -> tuple[Fine, None]:
        # The last chunk begins earlier where views are no multiple of it; repeats count nothing.
        begin = jnp.minimum(start, views - chunk)
        part = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, begin, chunk), (readings, coarse)
        )
        fresh = begin + jnp.arange(chunk) >= start
        given = jnp.where(fresh[:, None, None], part[1], 0)
        parts = part[0].weights[..., None] * given[:, :, None, :]
        return total.at[part[0].pixels].add(parts), None

    start = jnp.zeros((pixels, coarse.shape[-1]), jnp.float32)
    return jax.lax.scan(add, start, jnp.arange(0, views, chunk))[0]


def total_variation(fine: Fine, size: Size) -> Float[Array, " b"]:
    """Sum of absolute forward differences, down and across."""
    down, across = _differences(fine, size)
    return jnp.abs(down).sum(axis=(0, 1)) + jnp.abs(across).sum(axis=(0, 1))


def objective(
    readings: Readings, wanted: Coarse, fine: Fine, size: Size, settings: Augmented
) -> Float[Array, " b"]:
    """The functional that ``super_resolve`` makes small, for each map."""
    used = (readings.weights.sum(axis=-1) > 0)[..., None]
    misses = jnp.where(used, observe(readings, fine, settings.chunk) - wanted, 0)
    data = (misses**2).sum(axis=(0, 1)) / (2 * wanted.shape[0])
    smooth = settings.smoothing * total_variation(fine, size)
    return data + smooth + settings.shrinking / 2 * (fine**2).sum(axis=0)


def super_resolve(readings: Readings, wanted: Coarse, size: Size, settings: Augmented) -> Solution:
    """The fine map whose readings are nearest to those wanted, smooth but for its edges."""
    views, pixels = wanted.shape[0], size[0] * size[1]
    root = views**0.5
    used = (readings.weights.sum(axis=-1) > 0)[..., None].astype(jnp.float32)
    wanted = wanted * used / root
    shares = spread(readings, used, pixels, settings.chunk) / root
    # Differences are scaled to the size of the readings, else their steps would be far too small.
    scale = jnp.maximum(shares.mean() / 4, 1e-6)
    limit, step = settings.smoothing / scale, 1 / (shares + 4 * scale)

    def back(dual: Array, down: Array, across: Array) -> Fine:
        data = spread(readings, dual, pixels, settings.chunk) / root
        return data + scale * _adjoint_differences(down, across)

    def iterate(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], Array]:
        fine, ahead, dual, down, across = state
        missed = observe(readings, ahead, settings.chunk) / root - wanted
        dual = used * (dual + root * missed) / (1 + root)
        moved = _differences(ahead, size)
        down, across = (
            jnp.clip(old + difference / 2, -limit, limit)
            for old, difference in zip((down, across), moved, strict=True)
        )
        new = (fine - step * back(dual, down, across)) / (1 + step * settings.shrinking)
        return (new, 2 * new - fine, dual, down, across), value(new)

    def value(fine: Fine) -> Float[Array, " b"]:
        return objective(readings, wanted * root, fine, size, settings)

    fine = jnp.zeros((pixels, wanted.shape[-1]), jnp.float32)
    zeros = tuple(jnp.zeros_like(part) for part in _differences(fine, size))
    state = (fine, fine, jnp.zeros_like(wanted), *zeros)
    state, values = jax.lax.scan(iterate, state, None, length=settings.iterations)
    return Solution(state[0], jnp.concatenate([value(fine)[None], values]))


def _source(places: Float[Array, "*n 2"], view: Views, size: Size) -> Float[Array, "*n 2"]:
    """Where in the image these places (row, column) of a view lie."""
    middle = (jnp.asarray(size, jnp.float32) - 1) / 2
    cosine, sine = jnp.cos(view.angles), jnp.sin(view.angles)
    there = places - (middle + view.shifts).reshape(*[1] * (places.ndim - 1), 2)
    rows = cosine * there[..., 0] - sine * there[..., 1]
    columns = sine * there[..., 0] + cosine * there[..., 1]
    return jnp.stack([rows + middle[0], columns + middle[1]], axis=-1)


def _corners(places: Float[Array, "*n 2"], size: Size) -> tuple[Array, Array]:
    """Numbers and bilinear weights (*n,4) of the pixels around places; zero weight outside."""
    low = jnp.floor(places)
    part = places - low
    pixels, weights = [], []
    for down in (0, 1):
        for across in (0, 1):
            row, column = low[..., 0] + down, low[..., 1] + across
            inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
            share = jnp.abs(1 - down - part[..., 0]) * jnp.abs(1 - across - part[..., 1])
            pixels.append(jnp.where(inside, row * size[1] + column, 0).astype(jnp.int32))
            weights.append(jnp.where(inside, share, 0))
    return jnp.stack(pixels, axis=-1), jnp.stack(weights, axis=-1)


def _differences(fine: Fine, size: Size) -> tuple[Array, Array]:
    square = fine.reshape(*size, -1)
    return jnp.diff(square, axis=0), jnp.diff(square, axis=1)


def _adjoint_differences(down: Float[Array, "h1 w b"], across: Float[Array, "h w1 b"]) -> Fine:
    rows = jnp.pad(down, ((1, 0), (0, 0), (0, 0))) - jnp.pad(down, ((0, 1), (0, 0), (0, 0)))
    columns = jnp.pad(across, ((0, 0), (1, 0), (0, 0))) - jnp.pad(across, ((0, 0), (0, 1), (0, 0)))
    return (rows + columns).reshape(-1, down.shape[-1])
