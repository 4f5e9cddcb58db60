"""A very small residual network for drawn scenes: trained from scratch in minutes.

Each cell is normalised over its channels (root mean square, Zhang & Sennrich 2019) and never over
space or the batch, so there are no statistics to carry, batch size does not matter, and padding
cannot leak in.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from wsss_jax.backbones.layers import (
    Cells,
    Conv3x3,
    Images,
    Inside,
    Maps,
    Pointwise,
    Rngs,
    cells_at,
    keep,
)
from wsss_jax.errors import UserError


class Norm(nnx.Module):
    """Root-mean-square normalisation of each cell over its channels, with a learnt scale."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        """Normalise in float32, return in the dtype that came."""
        y, k = x.astype(jnp.float32), x.shape[-1]
        # The mean as a matrix product: XLA's own sum over channels rounds differently from cell
        # to cell, depending on the width of the map, and a canvas would not equal the image alone.
        power = jnp.square(y) @ jnp.full((k, k), 1 / k)
        y = y / jnp.sqrt(power + 1e-5)
        return (y * self.scale[...][None, None, None]).astype(x.dtype)


class Residual(nnx.Module):
    """x + conv(relu(norm(x))): pre-activation (He et al. 2016)."""

    def __init__(self, channels: int, *, dilation: int, rngs: nnx.Rngs):
        self.norm = Norm(channels)
        self.conv = Conv3x3(channels, channels, dilation=dilation, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w k"], inside: Cells) -> Float[Array, "b h w k"]:
        """One block."""
        return x + self.conv(jax.nn.relu(self.norm(x)), inside)


class Tiny(nnx.Module):
    """Three strided convolutions, residual blocks, and 128 features; 0.16 M parameters.

    Returns maps of 16, 32, 64 and 128 channels at strides 2, 4, 8 and ``output_stride`` (8 or 16).
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, *, rngs: nnx.Rngs, output_stride: int = 8):
        if output_stride not in (8, 16):
            raise UserError(f"output_stride is {output_stride}, wanted 8 or 16")
        widths = (3, 16, 32, 64)
        self.strides = (2, 4, 8, output_stride)
        self.lean = 1.0
        self.channels = (16, 32, 64, 128)
        self.down = nnx.List(
            Conv3x3(widths[n], widths[n + 1], stride=2, rngs=rngs) for n in range(3)
        )
        self.norms = nnx.List(Norm(width) for width in widths[1:])
        self.deeper = Conv3x3(64, 64, stride=output_stride // 8, rngs=rngs)
        self.blocks = nnx.List(Residual(64, dilation=d, rngs=rngs) for d in (1, 2))
        self.last_norm = Norm(64)
        self.last = Pointwise(64, 128, rngs=rngs)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to four maps; nothing here is random, so ``rngs`` is not used.

        Explanations find the maps inside by the names ``down0``, …, ``block0``, ….
        """
        del rngs
        x, cells, taps = images, inside, []
        for n, (conv, norm) in enumerate(zip(self.down, self.norms, strict=True)):
            x = checkpoint_name(jax.nn.relu(norm(conv(x, cells))), f"down{n}")
            cells = cells_at(cells, 2)
            taps.append(keep(x, cells))
        x = self.deeper(x, cells)
        cells = cells_at(cells, self.deeper.stride)
        for n, block in enumerate(self.blocks):
            x = checkpoint_name(block(x, cells), f"block{n}")
        features = jax.nn.relu(self.last(jax.nn.relu(self.last_norm(x))))
        return (*taps, keep(features, cells))
