"""R50+ViT-B/16: a ResNetV2 stem of 3, 4 and 9 bottlenecks, and a transformer over its last map.

Source: Dosovitskiy et al. 2021, section 3.1 (hybrid); Kolesnikov et al. 2020 for weight
standardisation with GroupNorm. Standardisation divides by sqrt(variance + 1e-8) as timm does
(Google's own code: by the standard deviation + 1e-5). Padding is TensorFlow's SAME by the grid rule
of ``layers``. GroupNorm's statistics are those of the real cells, so that a canvas around an image
changes nothing.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from wsss_jax.backbones import residual
from wsss_jax.backbones.layers import (
    Cells,
    Images,
    Inside,
    Maps,
    Rngs,
    cells_at,
    conv3x3,
    convolve,
    keep,
    max_pool3x3,
)
from wsss_jax.backbones.vit import Encoder, Family, Linear, patch_map
from wsss_jax.errors import UserError
from wsss_jax.ops import tokens
from wsss_jax.types import BlockRecord, Size
from wsss_jax.weights.normalisation import HALF

STAGES = ((3, 256), (4, 512), (9, 1024))
"""Bottlenecks and output channels of each stage; all but the first begin with stride 2."""

GROUPS = 32

Map = Float[Array, "b h w k"]


class StandardConv(nnx.Module):
    """Convolution of 1, 3 or 7 cells whose kernel is standardised per output channel, no bias."""

    def __init__(self, size: int, inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs):
        start = nnx.initializers.he_normal()
        self.kernel = nnx.Param(start(rngs.params(), (size, size, inputs, outputs)))
        self.stride = stride

    def __call__(self, x: Map, cells: Cells) -> Float[Array, "b h2 w2 n"]:
        """Apply to the part of a map that is inside."""
        kernel = standardised(self.kernel[...]).astype(x.dtype)
        if kernel.shape[0] == 1:
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        if kernel.shape[0] == 3:
            return conv3x3(keep(x, cells), kernel, stride=self.stride)
        return conv7x7_by_two(keep(x, cells), kernel)


class GroupNorm(nnx.Module):
    """GroupNorm (Wu & He 2018) of 32 groups with epsilon 1e-5, over the real cells."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Map, cells: Cells) -> Map:
        """Normalise in float32, return in the dtype that came."""
        b, h, w, k = x.shape
        y = keep(x, cells).astype(jnp.float32).reshape(b, h * w, GROUPS, k // GROUPS)
        weight = jnp.ones((b, h * w)) if cells is None else cells.reshape(b, h * w).astype(y.dtype)
        count = jnp.maximum(weight.sum(axis=1), 1.0)[:, None, None, None] * (k // GROUPS)
        weight = weight[:, :, None, None]
        y = (y - y.sum(axis=(1, 3), keepdims=True) / count) * weight
        y = y * lax.rsqrt(jnp.square(y).sum(axis=(1, 3), keepdims=True) / count + 1e-5)
        scale, bias = self.scale[...][None, None, None], self.bias[...][None, None, None]
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)


class Bottleneck(nnx.Module):
    """1×1, 3×3 (with the stride) and 1×1, a norm after each; the last ReLU follows the sum."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, rngs: nnx.Rngs):
        inner = outputs // 4
        self.conv1 = StandardConv(1, inputs, inner, rngs=rngs)
        self.norm1 = GroupNorm(inner)
        self.conv2 = StandardConv(3, inner, inner, stride=stride, rngs=rngs)
        self.norm2 = GroupNorm(inner)
        self.conv3 = StandardConv(1, inner, outputs, rngs=rngs)
        self.norm3 = GroupNorm(outputs)
        changes = stride > 1 or inputs != outputs
        self.conv_proj = (
            StandardConv(1, inputs, outputs, stride=stride, rngs=rngs) if changes else None
        )
        self.norm_proj = GroupNorm(outputs) if changes else None

    def __call__(self, x: Map, cells: Cells) -> Float[Array, "b h2 w2 n"]:
        """One block; ``cells`` are those of its input grid."""
        after = cells_at(cells, self.conv2.stride)
        shortcut = x
        if self.conv_proj is not None and self.norm_proj is not None:
            shortcut = self.norm_proj(self.conv_proj(x, cells), after)
        y = jax.nn.relu(self.norm1(self.conv1(x, cells), cells))
        y = jax.nn.relu(self.norm2(self.conv2(y, cells), after))
        return jax.nn.relu(self.norm3(self.conv3(y, after), after) + shortcut)


class Stem(nnx.Module):
    """The convolutional part: 7×7 by two, max-pool by two, three stages. Maps at 4, 8 and 16."""

    strides = (4, 8, 16)
    channels = (256, 512, 1024)
    lean = 1.0
    mean, std = HALF

    def __init__(self, *, remat: bool = False, rngs: nnx.Rngs):
        self.root = StandardConv(7, 3, 64, stride=2, rngs=rngs)
        self.norm = GroupNorm(64)
        stages, inputs = [], 64
        for n, (count, outputs) in enumerate(STAGES):
            blocks = []
            for m in range(count):
                stride = 2 if n > 0 and m == 0 else 1
                blocks.append(Bottleneck(inputs, outputs, stride=stride, rngs=rngs))
                inputs = outputs
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.remat = remat

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to three maps, zero on padding; nothing is random."""
        del rngs
        cells = cells_at(inside, 2)
        x = jax.nn.relu(self.norm(self.root(images, inside), cells))
        x = max_pool3x3(keep(x, cells))  # after ReLU, so the zeros of padding never win
        cells = cells_at(cells, 2)
        found = []
        for stage in self.stages:
            for block in stage:
                x = residual.run(block, x, cells, remat=self.remat)
                cells = cells_at(cells, block.conv2.stride)
            found.append(keep(x, cells))
        return tuple(found)


class HybridViT(nnx.Module):
    """R50+ViT-B/16 without its classifier, 98 M parameters.

    Returns the stem's maps at strides 4, 8 and 16, and the patch tokens after the last norm at 16
    (the only ``output_stride``). Explanations see cells of the stem's last map as the patches.
    """

    strides = (4, 8, 16, 16)
    channels = (256, 512, 1024, 768)
    lean = 1.0
    mean, std = HALF

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        output_stride: int = 16,
        grid: Size = (14, 14),
        remat: bool = False,
    ):
        if output_stride != 16:
            raise UserError(f"output_stride is {output_stride}, wanted 16: the stem's stride")
        self.stem = Stem(remat=remat, rngs=rngs)
        self.embed = Linear(1024, 768, rngs=rngs)
        self.encoder = Encoder(768, 12, 12, Family(), grid=grid, remat=remat, rngs=rngs)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to four maps; nothing here is random, so ``rngs`` is not used."""
        del rngs
        maps = self.stem(images, inside=inside)
        embedded = tokens.affine(maps[-1], self.embed.weights())
        return (*maps, patch_map(self._last(embedded, inside), images, inside, 16))

    def tokens(self, images: Images, inside: Inside = None) -> Float[Array, "b t k"]:
        """Tokens after the last norm (b,1+h*w,k), the class token first."""
        return self._last(self._embedded(images, inside), inside)

    def _last(self, embedded: Map, inside: Inside) -> Float[Array, "b t k"]:
        return self.encoder(embedded, cells_at(inside, 16))

    def record(
        self, images: Images, inside: Inside = None
    ) -> tuple[Float[Array, "b t k"], list[BlockRecord]]:
        """The same, and what each block saw."""
        return self.encoder.record(self._embedded(images, inside), cells_at(inside, 16))

    def embedding(self, patches: object) -> None:
        """None: pixels do not enter by one linear layer."""
        del patches

    def _embedded(self, images: Images, inside: Inside) -> Map:
        return tokens.affine(self.stem(images, inside=inside)[-1], self.embed.weights())


def standardised(kernel: Float[Array, "s s k n"]) -> Float[Array, "s s k n"]:
    """Mean zero and variance one over everything that makes one output channel."""
    centred = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = jnp.square(centred).mean(axis=(0, 1, 2), keepdims=True)
    return centred * lax.rsqrt(variance + 1e-8)


def conv7x7_by_two(x: Map, kernel: Float[Array, "7 7 k n"]) -> Float[Array, "b h2 w2 n"]:
    """7×7 convolution of stride 2 whose windows begin two cells before every even cell."""
    height, width = ((2, (-(-n // 2) - 1) * 2 + 5 - n) for n in x.shape[1:3])
    return convolve(x, kernel, margins=(height, width), stride=2)
