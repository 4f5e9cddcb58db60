"""ResNets (He et al. 2016) as torchvision has them: the stride of a bottleneck is that of its 3×3
convolution.

``irn`` is the ResNet-50 of IRN (Ahn et al. 2019): strides 2, 2, 2, 1 and no dilation. The class
activation network there keeps ``conv1`` and ``bn1`` fixed and lets nothing flow back beyond
``layer2``: the optimizer then leaves out the paths ``conv1``, ``bn1``, ``layer1`` and ``layer2``.
Weight files: torchvision's and timm's ``resnet*.pth`` / ``.safetensors``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from wsss_jax.backbones import residual, resnest
from wsss_jax.backbones.layers import Cells, Images, Inside, Maps, Rngs, cells_at
from wsss_jax.backbones.norms import FrozenBatchNorm, NormClass
from wsss_jax.backbones.residual import After, Conv
from wsss_jax.weights.import_names import torch_names
from wsss_jax.weights.normalisation import IMAGENET

STRIDES = (1, 2, 2, 2)
"""Of the four stages after the stem."""


class Shortcut(nnx.Module):
    """1×1 convolution, with the stride, and normalisation where a block changes its shape."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: NormClass, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 1, stride=stride, rngs=rngs)
        self.norm = norm(outputs)

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, after: After, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """The input, real where ``inside``, on the output grid, real where ``after``."""
        return self.norm(self.conv(x), after, training)


class Variant(NamedTuple):
    """What ResNets of one depth differ in.

    widen: the middle of a bottleneck is so many times wider (2: wide_resnet50_2). groups: of its
    3×3 convolution (32: ResNeXt, Xie et al. 2017). deep: three 3×3 convolutions as the stem, and
    shortcuts that average before their 1×1 convolution (He et al. 2019, ResNet-D).
    """

    widen: int = 1
    groups: int = 1
    deep: bool = False

    def shortcut(self) -> type[Shortcut] | type[resnest.Shortcut]:
        """The class of the shortcuts."""
        return resnest.Shortcut if self.deep else Shortcut


class Basic(nnx.Module):
    """Two 3×3 convolutions (ResNet-18 and 34); neither wider nor in groups."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        variant: Variant,
        *,
        stride: int,
        dilation: int,
        norm: NormClass,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.conv1 = Conv(inputs, width, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, width, 3, dilation=dilation, rngs=rngs)
        self.bn2 = norm(width)
        changes = stride > 1 or inputs != width
        make = partial(variant.shortcut(), inputs, width, stride=stride, norm=norm, rngs=rngs)
        self.downsample = make() if changes else None

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """One block; ``inside`` is that of its input grid."""
        after = cells_at(inside, self.stride)
        y = jax.nn.relu(self.bn1(self.conv1(x, inside), after, training))
        y = self.bn2(self.conv2(y, after), after, training)
        same = x if self.downsample is None else self.downsample(x, inside, after, training)
        return jax.nn.relu(y + same)


class Bottleneck(nnx.Module):
    """1×1, 3×3, 1×1 with four times as many channels at the ends (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        variant: Variant,
        *,
        stride: int,
        dilation: int,
        norm: NormClass,
        rngs: nnx.Rngs,
    ):
        self.stride, outputs, inner = stride, 4 * width, variant.widen * width
        self.conv1 = Conv(inputs, inner, 1, rngs=rngs)
        self.bn1 = norm(inner)
        self.conv2 = Conv(
            inner,
            inner,
            3,
            stride=stride,
            dilation=dilation,
            groups=variant.groups,
            rngs=rngs,
        )
        self.bn2 = norm(inner)
        self.conv3 = Conv(inner, outputs, 1, rngs=rngs)
        self.bn3 = norm(outputs)
        changes = stride > 1 or inputs != outputs
        make = partial(variant.shortcut(), inputs, outputs, stride=stride, norm=norm, rngs=rngs)
        self.downsample = make() if changes else None

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """One block; ``inside`` is that of its input grid."""
        after = cells_at(inside, self.stride)
        y = jax.nn.relu(self.bn1(self.conv1(x), inside, training))
        y = jax.nn.relu(self.bn2(self.conv2(y, inside), after, training))
        y = self.bn3(self.conv3(y), after, training)
        same = x if self.downsample is None else self.downsample(x, inside, after, training)
        return jax.nn.relu(y + same)


class ResNet(nnx.Module):
    """Stem and four stages of ``counts`` blocks.

    Returns the map after the stem's pooling and the outputs of the four stages. ``norm`` is a class
    of ``norms``; ``remat`` trades time for memory in the gradient, block by block.
    """

    mean, std = IMAGENET
    lean = 0.0

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        counts: Sequence[int],
        variant: Variant = Variant(),  # noqa: B008 (a tuple)
        *,
        rngs: nnx.Rngs,
        output_stride: int = 16,
        strides: Sequence[int] = STRIDES,
        allowed: Sequence[int] = (8, 16, 32),
        norm: NormClass = FrozenBatchNorm,
        remat: bool = False,
    ):
        rows = residual.plan(strides, output_stride, allowed)
        self.remat = remat
        self.stem = resnest.Stem(32, norm=norm, rngs=rngs) if variant.deep else None
        if not variant.deep:
            self.conv1 = Conv(3, 64, 7, stride=2, rngs=rngs)
            self.bn1 = norm(64)
        self.channels = (64, *(64 * 2**n * block.expansion for n in range(4)))

        def made(n: int, head: bool, **grid: int) -> Basic | Bottleneck:
            inputs = self.channels[n if head else n + 1]
            return block(inputs, 64 * 2**n, variant, norm=norm, rngs=rngs, **grid)

        stages, self.strides = residual.stages(counts, rows, made)
        self.layer1, self.layer2, self.layer3, self.layer4 = map(nnx.List, stages)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to five maps. ``rngs`` only tells that this is training."""
        training = rngs is not None
        cells = cells_at(inside, 2)
        if self.stem is None:
            x = jax.nn.relu(self.bn1(self.conv1(images, inside), cells, training))
        else:
            x = self.stem(images, inside, training)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return residual.run_stages(stages, x, cells, training, remat=self.remat)

    def parameter_names(self) -> Mapping[str, str | None]:
        """Names in torchvision's and timm's files to our paths; None for what is not imported."""
        layers = {"conv1": "conv1", "bn1": "bn1"} if self.stem is None else dict(resnest.STEM)
        shortcut = 0 if self.stem is None else 1  # behind the average
        for n, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), 1):
            for i, block in enumerate(stage):
                theirs, ours = f"layer{n}.{i}", f"layer{n}/{i}"
                for k in range(1, 3 if isinstance(block, Basic) else 4):
                    layers[f"{theirs}.conv{k}"] = f"{ours}/conv{k}"
                    layers[f"{theirs}.bn{k}"] = f"{ours}/bn{k}"
                if block.downsample is not None:
                    layers[f"{theirs}.downsample.{shortcut}"] = f"{ours}/downsample/conv"
                    layers[f"{theirs}.downsample.{shortcut + 1}"] = f"{ours}/downsample/norm"
        return MappingProxyType(torch_names(self, layers) | {"fc.weight": None, "fc.bias": None})


resnet18 = partial(ResNet, Basic, (2, 2, 2, 2))
"""11.2 M parameters."""

resnet34 = partial(ResNet, Basic, (3, 4, 6, 3))
"""21.3 M parameters."""

resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
"""23.5 M parameters."""

resnet50d = partial(ResNet, Bottleneck, (3, 4, 6, 3), Variant(deep=True))
"""timm's ResNet-D of 50 layers, 23.5 M parameters."""

wide_resnet50_2 = partial(ResNet, Bottleneck, (3, 4, 6, 3), Variant(widen=2))
"""66.8 M parameters (Zagoruyko & Komodakis 2016)."""

resnext50 = partial(ResNet, Bottleneck, (3, 4, 6, 3), Variant(widen=2, groups=32))
"""ResNeXt-50 32x4d, 23.0 M parameters."""

resnet101 = partial(ResNet, Bottleneck, (3, 4, 23, 3))
"""42.5 M parameters."""

resnet152 = partial(ResNet, Bottleneck, (3, 8, 36, 3))
"""58.1 M parameters."""

irn = partial(ResNet, Bottleneck, (3, 4, 6, 3), strides=(1, 2, 2, 1), allowed=(16,))
"""ResNet-50 with a last stage of stride 1 and no dilation, as IRN uses it."""
