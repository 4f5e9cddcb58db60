"""Resizing, mirroring and normalising of maps and images: pure, NHWC, conventions named.

Not here: reading files, and augmentation that draws random numbers.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from wsss_jax.types import Size

Method = Literal["bilinear", "bicubic", "nearest"]

_EXACT = jax.lax.Precision.HIGHEST  # TF32 products would move a map by 1e-3 on a GPU


def resize(
    x: Float[Array, "*b h w c"],
    size: Size,
    *,
    method: Method = "bilinear",
    align_corners: bool = False,
    antialias: bool = False,
) -> Float[Array, "*b H W c"]:
    """Resize to ``size`` (height, width) by one of the two conventions in use.

    align_corners=False: pixels are areas, as in OpenCV, PIL and torch's default. True: the centres
    of the corner pixels coincide (torch's ``UpsamplingBilinear2d``, bilinear only). antialias
    widens the filter when shrinking, as PIL does and torch and OpenCV do not. bicubic is Keys'
    a = -0.5 (PIL; torch and OpenCV use -0.75). Raises ValueError for a pair that nobody defines.
    """
    if min(size) < 1:
        raise ValueError(f"size is {size}, wanted a height and a width of at least 1")
    if align_corners:
        if method != "bilinear" or antialias:
            raise ValueError(
                f"align_corners goes with bilinear and no antialias, got {method}, {antialias}"
            )
        rows, columns = (
            _triangle(_corner_positions(n, m), n).astype(x.dtype)
            for n, m in zip(x.shape[-3:-1], size, strict=True)
        )
        return jnp.einsum("yh,...hwc,xw->...yxc", rows, x, columns, precision=_EXACT)
    shape = (*x.shape[:-3], *size, x.shape[-1])
    return jax.image.resize(x, shape, method, antialias=antialias, precision=_EXACT)


def sample_within(
    maps: Float[Array, "b h w c"],
    from_sizes: Int[Array, "b 2"],
    to_sizes: Int[Array, "b 2"],
    canvas: Size,
    *,
    start: Float[Array, "b 2"],
    step: Float[Array, "b 2"],
) -> Float[Array, "b H W c"]:
    """Read maps bilinearly on any axis-parallel grid: output i looks at position start + i step.

    Positions are in cells of the map (row, column), whole numbers at cell centres; a negative step
    mirrors. Positions outside the top-left ``from_sizes`` read the nearest edge, outputs outside
    the top-left ``to_sizes`` are zero, and cells outside ``from_sizes`` are not read.
    """
    matrices = jax.vmap(_reading, in_axes=(0, 0, 0, 0, None, None))

    def axis(n: int) -> Float[Array, "b m n"]:
        sizes = from_sizes[:, n], to_sizes[:, n]
        weights = matrices(*sizes, start[:, n], step[:, n], maps.shape[1 + n], canvas[n])
        return weights.astype(maps.dtype)

    real = (_below(from_sizes[:, 0], maps.shape[1])[:, :, None, None]
            & _below(from_sizes[:, 1], maps.shape[2])[:, None, :, None])  # fmt: skip
    maps = jnp.where(real, maps, jnp.zeros((), maps.dtype))  # 0 × NaN would not be 0
    across = jnp.einsum("bxw,bhwc->bhxc", axis(1), maps, precision=_EXACT)
    return jnp.einsum("byh,bhxc->byxc", axis(0), across, precision=_EXACT)


def flip_within(
    images: Shaped[Array, "b h w c"], sizes: Int[Array, "b 2"]
) -> Shaped[Array, "b h w c"]:
    """Mirror the left ``sizes[:, 1]`` columns of each image; the padding to the right stays."""
    columns = jnp.arange(images.shape[2])[None, :]
    width = sizes[:, 1:].astype(columns.dtype)
    source = jnp.where(columns < width, width - 1 - columns, columns)
    return jnp.take_along_axis(images, source[:, None, :, None], axis=2)


def _corner_positions(n: int, m: int) -> Float[Array, " m"]:
    """Where m outputs look into n inputs when the corner centres coincide."""
    return jnp.linspace(0, n - 1, m) if m > 1 else jnp.zeros(1)


def _triangle(positions: Float[Array, " m"], n: int) -> Float[Array, "m n"]:
    """Bilinear weights: row i reads the neighbours of positions[i], which lies in [0, n - 1]."""
    return jnp.maximum(
        1 - jnp.abs(positions[:, None] - jnp.arange(n, dtype=jnp.float32)[None, :]), 0
    )


def _reading(
    before: Int[Array, ""],
    after: Int[Array, ""],
    start: Float[Array, ""],
    step: Float[Array, ""],
    n: int,
    m: int,
) -> Float[Array, "m n"]:
    """Interpolation matrix from the first ``before`` of n cells to the first ``after`` of m."""
    positions = start + step * jnp.arange(m, dtype=jnp.float32)
    positions = jnp.clip(positions, 0, before.astype(jnp.float32) - 1)
    wanted = jnp.arange(m) < after
    return jnp.where(wanted[:, None], _triangle(positions, n), 0.0)


def _below(sizes: Int[Array, " b"], n: int) -> Shaped[Array, "b n"]:
    return jnp.arange(n)[None, :] < sizes[:, None]
