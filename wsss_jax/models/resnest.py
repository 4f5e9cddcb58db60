"""ResNeSt (Zhang et al. 2020): ResNets whose 3×3 convolution is a split attention of radix 2.

A deep stem of three 3×3 convolutions, shortcuts that average before their 1×1 convolution, and
strides taken by an average pool behind the split attention. Below output stride 32 the last stages
are dilated by the two schemes the authors publish: stride 16 with dilations 1, 2 in the last
stage; stride 8 with 1, 2 and 2, 4 in the last two (first block, others). Weight files: the authors'
``resnest*.pth`` and timm's ``resnest*d`` / ``resnest*e``, which share their names.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.models import residual
from wsss_jax.models.import_names import torch_names
from wsss_jax.models.layers import Pointwise, grid_inside, keep
from wsss_jax.models.norms import FrozenBatchNorm
from wsss_jax.models.residual import After, Conv, Inside

RADIX = 2


class SplitAttention(nnx.Module):
    """Two 3×3 convolutions of half the channels each, mixed channel by channel.

    The weights of the mixture come from the mean of their sum over the image and add up to one.
    """

    def __init__(self, channels: int, *, dilation: int, norm: Any, rngs: nnx.Rngs):
        inner = max(channels * RADIX // 4, 32)
        both = channels * RADIX
        self.conv = Conv(channels, both, 3, dilation=dilation, groups=RADIX, rngs=rngs)
        self.bn0 = norm(both)
        self.fc1 = Pointwise(channels, inner, rngs=rngs)
        self.bn1 = norm(inner)
        self.fc2 = Pointwise(inner, both, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Inside, training: bool
    ) -> Float[Array, "b h w k"]:
        """Apply on one grid; there is no activation at the end."""
        y = jax.nn.relu(self.bn0(self.conv(x, inside), inside, training))
        first, second = jnp.split(y, RADIX, axis=-1)
        means = _mean(first + second, inside)
        weights = self.fc2(jax.nn.relu(self.bn1(self.fc1(means), _any(inside), training)))
        # A softmax over two is a sigmoid of the difference.
        one, other = jnp.split(weights.astype(jnp.float32), RADIX, axis=-1)
        share = jnp.broadcast_to(jax.nn.sigmoid(one - other).astype(x.dtype), first.shape)
        return first * share + second * (1 - share)


class Shortcut(nnx.Module):
    """Average over the cells that a stride merges, 1×1 convolution, normalisation."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Any, rngs: nnx.Rngs):
        self.stride = stride
        self.conv = Conv(inputs, outputs, 1, rngs=rngs)
        self.norm = norm(outputs)

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Inside, after: After, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """The input, real where ``inside``, on the output grid, real where ``after``."""
        if self.stride == 2:
            x = residual.average_pool2x2(x, inside)
        return self.norm(self.conv(x), after, training)


class Block(nnx.Module):
    """Bottleneck: 1×1, split attention, 1×1. ``pooled`` averages 3×3 behind the attention."""

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        pooled: bool,
        norm: Any,
        rngs: nnx.Rngs,
    ):
        self.stride, self.pooled, outputs = stride, pooled, 4 * width
        self.conv1 = Conv(inputs, width, 1, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = SplitAttention(width, dilation=dilation, norm=norm, rngs=rngs)
        self.conv3 = Conv(width, outputs, 1, rngs=rngs)
        self.bn3 = norm(outputs)
        make = partial(Shortcut, inputs, outputs, stride=stride, norm=norm, rngs=rngs)
        self.downsample = make() if stride > 1 or inputs != outputs else None

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Inside, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """One block; ``inside`` is that of its input grid."""
        after = None if inside is None else grid_inside(inside, self.stride)
        y = jax.nn.relu(self.bn1(self.conv1(x), inside, training))
        y = self.conv2(y, inside, training)
        if self.pooled:
            y = residual.average_pool3x3(y, inside, stride=self.stride)
        y = self.bn3(self.conv3(y), after, training)
        same = x if self.downsample is None else self.downsample(x, inside, after, training)
        return jax.nn.relu(y + same)


class Stem(nnx.Module):
    """Three 3×3 convolutions, the first of stride 2, to twice ``width`` channels."""

    def __init__(self, width: int, *, norm: Any, rngs: nnx.Rngs):
        self.conv0 = Conv(3, width, 3, stride=2, rngs=rngs)
        self.bn0 = norm(width)
        self.conv1 = Conv(width, width, 3, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, 2 * width, 3, rngs=rngs)
        self.bn2 = norm(2 * width)

    def __call__(
        self, images: Float[Array, "b H W 3"], inside: Bool[Array, "b H W"] | None, training: bool
    ) -> Float[Array, "b h w k"]:
        """From images to stride 2; ``inside`` is that of the images."""
        cells = None if inside is None else grid_inside(inside, 2)
        x = jax.nn.relu(self.bn0(self.conv0(images, inside), cells, training))
        x = jax.nn.relu(self.bn1(self.conv1(x, cells), cells, training))
        return jax.nn.relu(self.bn2(self.conv2(x, cells), cells, training))


class ResNeSt(nnx.Module):
    """Deep stem and four stages of ``counts`` blocks.

    Returns the map after the stem's pooling and the outputs of the four stages. ``norm`` is a class
    of ``norms``; ``remat`` trades time for memory in the gradient, block by block.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    lean = 0.0

    def __init__(
        self,
        counts: Sequence[int],
        *,
        rngs: nnx.Rngs,
        output_stride: int = 16,
        stem: int = 64,
        norm: Any = FrozenBatchNorm,
        remat: bool = False,
    ):
        rows = residual.plan((1, 2, 2, 2), output_stride, (8, 16, 32))
        self.remat = remat
        self.stem = Stem(stem, norm=norm, rngs=rngs)
        stages, inputs, steps = [], 2 * stem, [4]
        for n, (count, (stride, first, others)) in enumerate(zip(counts, rows, strict=True)):
            width, stage = 64 * 2**n, []
            for i in range(count):
                stage.append(
                    Block(
                        inputs,
                        width,
                        stride=stride if i == 0 else 1,
                        dilation=first if i == 0 else others,
                        pooled=n > 0 and i == 0,
                        norm=norm,
                        rngs=rngs,
                    )
                )
                inputs = 4 * width
            stages.append(nnx.List(stage))
            steps.append(steps[-1] * stride)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.strides = tuple(steps)
        self.channels = (2 * stem, 256, 512, 1024, 2048)

    def __call__(
        self,
        images: Float[Array, "b H W 3"],
        *,
        inside: Bool[Array, "b H W"] | None = None,
        rngs: Any = None,
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Normalised images to five maps. ``rngs`` only says that this is training."""
        training = rngs is not None
        x = self.stem(images, inside, training)
        cells = None if inside is None else grid_inside(inside, 2)
        x = residual.max_pool3x3(x, cells)
        cells = None if cells is None else grid_inside(cells, 2)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return residual.run_stages(stages, x, cells, training, remat=self.remat)

    def parameter_names(self) -> Mapping[str, str | None]:
        """Names in the authors' and timm's files to our paths; None for what is not imported."""
        layers = {
            "conv1.0": "stem/conv0", "conv1.1": "stem/bn0", "conv1.3": "stem/conv1",
            "conv1.4": "stem/bn1", "conv1.6": "stem/conv2", "bn1": "stem/bn2",
        }  # fmt: skip
        for n, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), 1):
            for i, block in enumerate(stage):
                theirs, ours = f"layer{n}.{i}", f"layer{n}/{i}"
                for part in ("conv1", "bn1", "conv3", "bn3"):
                    layers[f"{theirs}.{part}"] = f"{ours}/{part}"
                for part in ("conv", "bn0", "fc1", "bn1", "fc2"):
                    layers[f"{theirs}.conv2.{part}"] = f"{ours}/conv2/{part}"
                if block.downsample is not None:
                    layers[f"{theirs}.downsample.1"] = f"{ours}/downsample/conv"
                    layers[f"{theirs}.downsample.2"] = f"{ours}/downsample/norm"
        return MappingProxyType(torch_names(self, layers) | {"fc.weight": None, "fc.bias": None})


def _mean(x: Float[Array, "b h w k"], inside: Inside) -> Float[Array, "b 1 1 k"]:
    """Mean over the real cells, in float32; zero where an image has none."""
    y = keep(x.astype(jnp.float32), inside).sum(axis=(1, 2), keepdims=True)
    if inside is None:
        return (y / (x.shape[1] * x.shape[2])).astype(x.dtype)
    count = jnp.maximum(inside.sum(axis=(1, 2), dtype=jnp.float32), 1)
    return (y / count[:, None, None, None]).astype(x.dtype)


def _any(inside: Inside) -> Bool[Array, "b 1 1"] | None:
    """Which images have a real cell: the inside of a grid of one cell."""
    return None if inside is None else inside.any(axis=(1, 2), keepdims=True)


resnest14 = partial(ResNeSt, (1, 1, 1, 1), stem=32)
"""8.6 M parameters."""

resnest26 = partial(ResNeSt, (2, 2, 2, 2), stem=32)
"""15.0 M parameters."""

resnest50 = partial(ResNeSt, (3, 4, 6, 3), stem=32)
"""25.4 M parameters."""

resnest101 = partial(ResNeSt, (3, 4, 23, 3))
"""46.2 M parameters."""

resnest200 = partial(ResNeSt, (3, 24, 36, 3))
"""68.2 M parameters."""

resnest269 = partial(ResNeSt, (3, 30, 48, 8))
"""108.9 M parameters."""
