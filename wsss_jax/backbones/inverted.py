"""Networks of inverted residual blocks with BatchNorm: EfficientNet-Lite and MobileNetV2.

EfficientNet-Lite 0 to 2 (Tan & Le 2019; without squeeze-excitation, with ReLU6: the authors'
``efficientnet-lite``) pad as TensorFlow's SAME does, from each image's own size, so that their
outputs are those of the original at every size. MobileNetV2 (Sandler et al. 2018) as PyTorch has
it pads symmetrically; the one of ``mobilenet`` has BatchNorm folded in and other windows.

The last stages are dilated where an output stride below 32 is wanted, as in ``mobilenet``.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from wsss_jax.backbones import layers, residual
from wsss_jax.backbones.layers import Cells, Images, Inside, Maps, Rngs, cells_at, keep, relu6
from wsss_jax.backbones.mobilenet import dilated
from wsss_jax.backbones.norms import FrozenBatchNorm, NormClass
from wsss_jax.backbones.residual import Conv
from wsss_jax.weights import normalisation
from wsss_jax.weights.import_names import torch_names
from wsss_jax.weights.normalisation import Normalisation

Map = Float[Array, "b h w k"]


class Stage(NamedTuple):
    """Blocks of one kind: how many, size of the window, stride of the first, expansion, width."""

    count: int
    size: int
    stride: int
    factor: int
    width: int


LITE = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip
"""Of EfficientNet-Lite 0."""

MOBILE = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(3, 3, 2, 6, 32), Stage(4, 3, 2, 6, 64),
    Stage(3, 3, 1, 6, 96), Stage(3, 3, 2, 6, 160), Stage(1, 3, 1, 6, 320),
)  # fmt: skip
"""Of MobileNetV2."""


class Family(NamedTuple):
    """What networks of one origin have in common.

    same: windows as TensorFlow's SAME, else centred. epsilon: of BatchNorm. lean: see
    ``types.Backbone``; with SAME it is 1 for even and 0 for odd lengths, stage by stage, so 1/2 is
    what photographs of all sizes have on average. colours: what its usual checkpoints want.
    """

    same: bool
    epsilon: float
    lean: float
    colours: Normalisation


TENSORFLOW = Family(True, 1e-3, 0.5, normalisation.LITE)
PYTORCH = Family(False, 1e-5, 0.0, normalisation.IMAGENET)


class Windows(nnx.Module):
    """Convolution without bias over windows wider than a cell; depthwise if ``outputs`` is None.

    The kernel is (size, size, inputs, outputs), or (size, size, inputs); He-normal start.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | None,
        size: int,
        *,
        stride: int,
        dilation: int = 1,
        same: bool,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, inputs) if outputs is None else (size, size, inputs, outputs)
        fan = size * size * (1 if outputs is None else inputs)
        start = nnx.initializers.normal((2 / fan) ** 0.5)
        self.kernel = nnx.Param(start(rngs.params(), shape))
        self.stride, self.dilation, self.same = stride, dilation, same

    def __call__(self, x: Map, inside: Cells) -> Float[Array, "b h2 w2 n"]:
        """Apply to the part of a map that is inside; the kernel follows its dtype."""
        kernel = self.kernel[...].astype(x.dtype)
        size, x = kernel.shape[0], keep(x, inside)
        half = (size - 1) * self.dilation // 2
        margins = ((half, half), (half, half))
        if self.same:
            x, margins = layers.same(
                x, inside, size=size, stride=self.stride, dilation=self.dilation
            )
        apply = layers.depthwise if kernel.ndim == 3 else layers.convolve
        return apply(x, kernel, margins=margins, stride=self.stride, dilation=self.dilation)


class Inverted(nnx.Module):
    """Expand (unless the factor is 1), depthwise, project; a normalisation after each.

    ReLU6 follows the first two; the input is added where shape allows it.
    """

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        *,
        stride: int,
        dilation: int,
        same: bool,
        norm: NormClass,
        rngs: nnx.Rngs,
    ):
        inner, size = inputs * stage.factor, stage.size
        self.stride = stride
        self.residual = stage.stride == 1 and inputs == stage.width
        self.expand = Conv(inputs, inner, 1, rngs=rngs) if stage.factor > 1 else None
        self.bn0 = norm(inner) if stage.factor > 1 else None
        self.depthwise = Windows(
            inner, None, size, stride=stride, dilation=dilation, same=same, rngs=rngs
        )
        self.bn1 = norm(inner)
        self.project = Conv(inner, stage.width, 1, rngs=rngs)
        self.bn2 = norm(stage.width)

    def __call__(self, x: Map, inside: Cells, training: bool) -> Float[Array, "b h2 w2 n"]:
        """One block; ``inside`` is that of its input grid."""
        after = cells_at(inside, self.stride)
        y = x
        if self.expand is not None and self.bn0 is not None:
            y = relu6(self.bn0(self.expand(x), inside, training))
        y = relu6(self.bn1(self.depthwise(y, inside), after, training))
        y = self.bn2(self.project(y), after, training)
        return x + y if self.residual else y


class InvertedNet(nnx.Module):
    """Stem of 32 channels and stride 2, the blocks of ``stages``, and 1280 channels at the end.

    Returns the maps before every stride (2, 4, 8 and 16) and the last one at ``output_stride`` (16
    or 32). ``norm`` is a class of ``norms``; ``remat`` trades time for memory in the gradient.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        family: Family,
        *,
        rngs: nnx.Rngs,
        output_stride: int = 16,
        norm: NormClass = FrozenBatchNorm,
        remat: bool = False,
    ):
        rows = list(_rows(stages))
        plan = dilated([row.stride for row in rows], output_stride)
        norm = partial(norm, epsilon=family.epsilon)
        self.mean, self.std = family.colours
        self.lean, self.remat = family.lean, remat
        self.counts = tuple(stage.count for stage in stages)
        self.taps = tuple(n for n, row in enumerate(rows[1:]) if row.stride == 2)
        self.strides = (2, 4, 8, 16, output_stride)
        self.channels = (*(rows[n].width for n in self.taps), 1280)
        self.stem = Windows(3, 32, 3, stride=2, same=family.same, rngs=rngs)
        self.bn0 = norm(32)
        blocks, inputs = [], 32
        for row, (stride, dilation) in zip(rows, plan, strict=True):
            blocks.append(
                Inverted(
                    inputs,
                    row,
                    stride=stride,
                    dilation=dilation,
                    same=family.same,
                    norm=norm,
                    rngs=rngs,
                )
            )
            inputs = row.width
        self.blocks = nnx.List(blocks)
        self.last = Conv(inputs, 1280, 1, rngs=rngs)
        self.bn1 = norm(1280)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to five maps. ``rngs`` only tells that this is training.

        Explanations find the maps inside by the names ``stem``, ``block0``, ``block1``, ….
        """
        training, maps = rngs is not None, []
        cells = cells_at(inside, 2)
        x = relu6(self.bn0(self.stem(images, inside), cells, training))
        x = checkpoint_name(x, "stem")
        for n, block in enumerate(self.blocks):
            x = residual.run(block, x, cells, training, remat=self.remat)
            x = checkpoint_name(x, f"block{n}")
            cells = cells_at(cells, block.stride)
            if n in self.taps:
                maps.append(keep(x, cells))
        x = relu6(self.bn1(self.last(x), cells, training))
        return (*maps, keep(x, cells))

    def layouts(self) -> tuple[Mapping[str, str | None], ...]:
        """Names in the files of the wheels, of timm and of torchvision to our paths."""
        return tuple(
            MappingProxyType(torch_names(self, table) | dict.fromkeys(heads))
            for table, heads in (
                (self._wheel(), ("_fc.weight", "_fc.bias")),
                (self._timm(), ("classifier.weight", "classifier.bias")),
                (self._torchvision(), ("classifier.1.weight", "classifier.1.bias")),
            )
        )

    def _wheel(self) -> dict[str, str]:
        """efficientnet-pytorch's names: blocks are counted through all stages."""
        table = {"_conv_stem": "stem", "_bn0": "bn0", "_conv_head": "last", "_bn1": "bn1"}
        for n, block in enumerate(self.blocks):
            table |= {
                f"_blocks.{n}._{theirs}": f"blocks/{n}/{ours}"
                for theirs, ours in (
                    ("expand_conv", "expand"), ("bn0", "bn0"), ("depthwise_conv", "depthwise"),
                    ("bn1", "bn1"), ("project_conv", "project"), ("bn2", "bn2"),
                )
                if getattr(block, ours) is not None
            }  # fmt: skip
        return table

    def _timm(self) -> dict[str, str]:
        """timm's: blocks are counted in each stage, their layers in the order in which they run."""
        table = {"conv_stem": "stem", "bn1": "bn0", "conv_head": "last", "bn2": "bn1"}
        places = [(s, i) for s, count in enumerate(self.counts) for i in range(count)]
        for n, (block, (stage, i)) in enumerate(zip(self.blocks, places, strict=True)):
            if block.expand is None:
                parts = ("conv_dw", "bn1", "conv_pw", "bn2")
            else:
                parts = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
            for theirs, ours in zip(parts, _parts(block), strict=True):
                table[f"blocks.{stage}.{i}.{theirs}"] = f"blocks/{n}/{ours}"
        return table

    def _torchvision(self) -> dict[str, str]:
        """torchvision's: one list of features, convolutions with a norm and ReLU6 in triples."""
        last = len(self.blocks) + 1
        table = {
            "features.0.0": "stem", "features.0.1": "bn0",
            f"features.{last}.0": "last", f"features.{last}.1": "bn1",
        }  # fmt: skip
        for n, block in enumerate(self.blocks):
            parts = ("0.0", "0.1", "1", "2") if block.expand is None else (
                "0.0", "0.1", "1.0", "1.1", "2", "3")  # fmt: skip
            for theirs, ours in zip(parts, _parts(block), strict=True):
                table[f"features.{n + 1}.conv.{theirs}"] = f"blocks/{n}/{ours}"
        return table


def scaled(stages: Sequence[Stage], *, depth: Sequence[int], width: float) -> tuple[Stage, ...]:
    """Stages with other counts, and widths times ``width`` to the nearest multiple of 8."""
    return tuple(
        stage._replace(count=count, width=int(stage.width * width + 4) // 8 * 8)
        for stage, count in zip(stages, depth, strict=True)
    )


def _rows(stages: Sequence[Stage]) -> Iterator[Stage]:
    """One stage of one block per block."""
    for stage in stages:
        for n in range(stage.count):
            yield stage._replace(count=1, stride=stage.stride if n == 0 else 1)


def _parts(block: Inverted) -> tuple[str, ...]:
    """The layers of a block in the order in which they run."""
    parts = ("expand", "bn0", "depthwise", "bn1", "project", "bn2")
    return parts if block.expand is not None else parts[2:]


efficientnet_lite0 = partial(InvertedNet, LITE, TENSORFLOW)
"""3.4 M parameters without the classifier; made for 224 pixels."""

_DEEPER = (1, 3, 3, 4, 4, 5, 1)

efficientnet_lite1 = partial(InvertedNet, scaled(LITE, depth=_DEEPER, width=1.0), TENSORFLOW)
"""4.1 M parameters; made for 240 pixels."""

efficientnet_lite2 = partial(InvertedNet, scaled(LITE, depth=_DEEPER, width=1.1), TENSORFLOW)
"""4.8 M parameters; made for 260 pixels."""

mobilenetv2 = partial(InvertedNet, MOBILE, PYTORCH)
"""MobileNetV2 of timm and torchvision, 2.2 M parameters."""
