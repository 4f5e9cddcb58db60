"""ResNeSt (Zhang et al. 2020): ResNets whose 3×3 convolution is a split attention.

A deep stem of three 3×3 convolutions, shortcuts that average before their 1×1 convolution, and
strides taken by an average pool behind the split attention; in the fast variants before it, which
no weight file tells: ``resnest50_fast_2s1x64d`` has the names and shapes of ``resnest50``.

Below output stride 32 the last stages are dilated by the two schemes the authors publish: stride
16 with dilations 1, 2 in the last stage; stride 8 with 1, 2 and 2, 4 in the last two (first block,
others). Weight files: the authors' ``resnest*.pth`` and timm's ``resnest*d`` / ``resnest*e``, which
share their names.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.backbones import residual
from wsss_jax.backbones.layers import (
    Cells,
    Images,
    Inside,
    Maps,
    Rngs,
    cells_at,
    keep,
    pointwise,
)
from wsss_jax.backbones.norms import FrozenBatchNorm, NormClass
from wsss_jax.backbones.residual import After, Conv
from wsss_jax.weights.import_names import torch_names
from wsss_jax.weights.normalisation import IMAGENET


class Splits(NamedTuple):
    """What the authors write as 2s1x64d: splits of each of so many groups of that base width."""

    radix: int = 2
    groups: int = 1
    base: int = 64

    def width(self, width: int) -> int:
        """Channels inside a block of ``width``."""
        return width * self.base // 64 * self.groups


class Grouped(nnx.Module):
    """1×1 convolution with bias in groups; the kernel is (inputs / groups, outputs)."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
        start = nnx.initializers.he_normal()
        self.kernel = nnx.Param(start(rngs.params(), (inputs // groups, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.groups = groups

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h w n"]:
        """Apply to a map; parameters follow its dtype."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        parts = [jnp.split(part, self.groups, axis=-1) for part in (x, kernel)]
        biases = jnp.split(bias, self.groups)
        maps = [pointwise(*part) for part in zip(*parts, biases, strict=True)]
        return maps[0] if self.groups == 1 else jnp.concatenate(maps, axis=-1)


class SplitAttention(nnx.Module):
    """A 3×3 convolution to ``radix`` maps of as many channels, mixed channel by channel.

    The weights of the mixture come from the mean of the maps' sum over the image and add up to
    one; of a single map the weight is a sigmoid.
    """

    def __init__(
        self, channels: int, splits: Splits, *, dilation: int, norm: NormClass, rngs: nnx.Rngs
    ):
        self.splits, both, groups = splits, channels * splits.radix, splits.groups
        inner = max(both // 4, 32)
        self.conv = Conv(
            channels, both, 3, dilation=dilation, groups=groups * splits.radix, rngs=rngs
        )
        self.bn0 = norm(both)
        self.fc1 = Grouped(channels, inner, groups, rngs=rngs)
        self.bn1 = norm(inner)
        self.fc2 = Grouped(inner, both, groups, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, training: bool
    ) -> Float[Array, "b h w k"]:
        """Apply on one grid; there is no activation at the end."""
        y = jax.nn.relu(self.bn0(self.conv(x, inside), inside, training))
        parts = jnp.split(y, self.splits.radix, axis=-1)
        means = _mean(sum(parts[1:], start=parts[0]), inside)
        weights = self.fc2(jax.nn.relu(self.bn1(self.fc1(means), _any(inside), training)))
        shares = self._shares(weights.astype(jnp.float32)).astype(x.dtype)
        terms = (
            part * jnp.broadcast_to(shares[:, n, None, None], part.shape)
            for n, part in enumerate(parts)
        )
        return sum(terms, start=jnp.zeros((), x.dtype))

    def _shares(self, weights: Float[Array, "b 1 1 n"]) -> Float[Array, "b r k"]:
        """Weights lie group by group, in each split by split."""
        radix, groups = self.splits.radix, self.splits.groups
        if radix == 1:
            return jax.nn.sigmoid(weights[:, 0])
        b, _, _, n = weights.shape
        by_group = weights.reshape(b, groups, radix, n // radix // groups)
        return jax.nn.softmax(by_group, axis=2).swapaxes(1, 2).reshape(b, radix, n // radix)


class Shortcut(nnx.Module):
    """Average over the cells that a stride merges, 1×1 convolution, normalisation."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: NormClass, rngs: nnx.Rngs):
        self.stride = stride
        self.conv = Conv(inputs, outputs, 1, rngs=rngs)
        self.norm = norm(outputs)

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, after: After, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """The input, real where ``inside``, on the output grid, real where ``after``."""
        if self.stride == 2:
            x = residual.average_pool2x2(x, inside)
        return self.norm(self.conv(x), after, training)


class Block(nnx.Module):
    """Bottleneck: 1×1, split attention, 1×1.

    pooled: averages 3×3, with the stride, ``first`` before the attention or else behind it.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        splits: Splits,
        pooled: bool,
        first: bool,
        norm: NormClass,
        rngs: nnx.Rngs,
    ):
        self.stride, self.pooled, self.first, outputs = stride, pooled, first, 4 * width
        inner = splits.width(width)
        self.conv1 = Conv(inputs, inner, 1, rngs=rngs)
        self.bn1 = norm(inner)
        self.conv2 = SplitAttention(inner, splits, dilation=dilation, norm=norm, rngs=rngs)
        self.conv3 = Conv(inner, outputs, 1, rngs=rngs)
        self.bn3 = norm(outputs)
        make = partial(Shortcut, inputs, outputs, stride=stride, norm=norm, rngs=rngs)
        self.downsample = make() if stride > 1 or inputs != outputs else None

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """One block; ``inside`` is that of its input grid."""
        after = cells_at(inside, self.stride)
        y = jax.nn.relu(self.bn1(self.conv1(x), inside, training))
        if self.pooled and self.first:
            y = residual.average_pool3x3(y, inside, stride=self.stride)
            y = self.conv2(y, after, training)
        else:
            y = self.conv2(y, inside, training)
        if self.pooled and not self.first:
            y = residual.average_pool3x3(y, inside, stride=self.stride)
        y = self.bn3(self.conv3(y), after, training)
        same = x if self.downsample is None else self.downsample(x, inside, after, training)
        return jax.nn.relu(y + same)


class Stem(nnx.Module):
    """Three 3×3 convolutions, the first of stride 2, to twice ``width`` channels."""

    def __init__(self, width: int, *, norm: NormClass, rngs: nnx.Rngs):
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
        cells = cells_at(inside, 2)
        x = jax.nn.relu(self.bn0(self.conv0(images, inside), cells, training))
        x = jax.nn.relu(self.bn1(self.conv1(x, cells), cells, training))
        return jax.nn.relu(self.bn2(self.conv2(x, cells), cells, training))


STEM: Mapping[str, str] = MappingProxyType(
    {
        "conv1.0": "stem/conv0", "conv1.1": "stem/bn0", "conv1.3": "stem/conv1",
        "conv1.4": "stem/bn1", "conv1.6": "stem/conv2", "bn1": "stem/bn2",
    }
)  # fmt: skip
"""Names of the deep stem's layers in public files to our paths."""


class ResNeSt(nnx.Module):
    """Deep stem and four stages of ``counts`` blocks.

    Returns the map after the stem's pooling and the outputs of the four stages. ``norm`` is a class
    of ``norms``; ``remat`` trades time for memory in the gradient, block by block. pool_first:
    whether strides are taken before the split attention.
    """

    mean, std = IMAGENET
    lean = 0.0

    def __init__(
        self,
        counts: Sequence[int],
        *,
        rngs: nnx.Rngs,
        output_stride: int = 16,
        stem: int = 64,
        splits: Splits = Splits(),  # noqa: B008 (a tuple)
        pool_first: bool = False,
        norm: NormClass = FrozenBatchNorm,
        remat: bool = False,
    ):
        rows = residual.plan((1, 2, 2, 2), output_stride, (8, 16, 32))
        self.remat = remat
        self.stem = Stem(stem, norm=norm, rngs=rngs)
        self.channels = (2 * stem, 256, 512, 1024, 2048)

        def block(n: int, head: bool, **grid: int) -> Block:
            return Block(
                self.channels[n if head else n + 1],
                64 * 2**n,
                splits=splits,
                pooled=n > 0 and head,
                first=pool_first,
                norm=norm,
                rngs=rngs,
                **grid,
            )

        stages, self.strides = residual.stages(counts, rows, block)
        self.layer1, self.layer2, self.layer3, self.layer4 = map(nnx.List, stages)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to five maps. ``rngs`` only tells that this is training."""
        training = rngs is not None
        x = self.stem(images, inside, training)
        cells = cells_at(inside, 2)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return residual.run_stages(stages, x, cells, training, remat=self.remat)

    def parameter_names(self) -> Mapping[str, str | None]:
        """Names in the authors' and timm's files to our paths; None for what is not imported."""
        layers = dict(STEM)
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


def _mean(x: Float[Array, "b h w k"], inside: Cells) -> Float[Array, "b 1 1 k"]:
    """Mean over the real cells, in float32; zero where an image has none."""
    y = keep(x.astype(jnp.float32), inside).sum(axis=(1, 2), keepdims=True)
    if inside is None:
        return (y / (x.shape[1] * x.shape[2])).astype(x.dtype)
    count = jnp.maximum(inside.sum(axis=(1, 2), dtype=jnp.float32), 1)
    return (y / count[:, None, None, None]).astype(x.dtype)


def _any(inside: Cells) -> Bool[Array, "b 1 1"] | None:
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

FAST: Mapping[str, Callable[..., ResNeSt]] = MappingProxyType(
    {
        f"resnest50_fast_{radix}s{groups}x{base}d": partial(
            resnest50, splits=Splits(radix, groups, base), pool_first=True
        )
        for radix, groups, base in (
            (1, 1, 64), (2, 1, 64), (4, 1, 64), (1, 2, 40), (2, 2, 40), (4, 2, 40), (1, 4, 24)
        )
    }
)  # fmt: skip
"""The authors' fast variants of ResNeSt-50, by their names."""
