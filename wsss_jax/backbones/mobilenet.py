"""MobileNetV1 (Howard et al. 2017) and MobileNetV2 (Sandler et al. 2018), BatchNorm folded in.

The public weight files hold one kernel and one bias per convolution because BatchNorm was merged
into them, so these networks have no statistics: what trains is what is in the file. The last
stages are dilated instead of strided where an output stride below 32 is wanted (Chen et al. 2017):
a layer that loses its stride keeps its kernel, and the layers after it are dilated by two. A
window that loses its stride becomes centred, which moves the map by one cell of the finer grid
and nothing else; left as it was, class maps would lie a whole cell too far to the lower right.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from wsss_jax.backbones.layers import (
    Cells,
    Conv3x3,
    Depthwise3x3,
    Images,
    Inside,
    Maps,
    Pointwise,
    Rngs,
    cells_at,
    keep,
    relu6,
)
from wsss_jax.errors import UserError
from wsss_jax.weights.normalisation import HALF

_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2),
       (1024, 1))  # fmt: skip
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
       (6, 320, 1, 1))  # fmt: skip


class Separable(nnx.Module):
    """Block of V1: depthwise 3×3, then pointwise, each with ReLU6."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dilation: int, rngs: nnx.Rngs):
        self.depthwise = Depthwise3x3(inputs, stride=stride, dilation=dilation, rngs=rngs)
        self.project = Pointwise(inputs, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w k"], inside: Cells) -> Float[Array, "b h2 w2 n"]:
        """One block; ``inside`` is that of its input grid."""
        return relu6(self.project(relu6(self.depthwise(x, inside))))


class Inverted(nnx.Module):
    """Block of V2: expand (unless the factor is 1), depthwise 3×3, project without activation.

    The input is added where shape allows it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        factor: int,
        stride: int,
        dilation: int,
        residual: bool,
        rngs: nnx.Rngs,
    ):
        inner = inputs * factor
        self.expand = Pointwise(inputs, inner, rngs=rngs) if factor > 1 else None
        self.depthwise = Depthwise3x3(inner, stride=stride, dilation=dilation, rngs=rngs)
        self.project = Pointwise(inner, outputs, rngs=rngs)
        self.residual = residual

    def __call__(self, x: Float[Array, "b h w k"], inside: Cells) -> Float[Array, "b h2 w2 n"]:
        """One block; ``inside`` is that of its input grid."""
        y = x if self.expand is None else relu6(self.expand(x))
        y = self.project(relu6(self.depthwise(y, inside)))
        return x + y if self.residual else y


class MobileNetV1(nnx.Module):
    """MobileNetV1 of width 1.0, 3.2 M parameters.

    Returns the maps of 64, 128, 256, 512 and 1024 channels at strides 2, 4, 8, 16 and
    ``output_stride`` (16 or 32).
    """

    mean, std = HALF

    def __init__(self, *, rngs: nnx.Rngs, output_stride: int = 16):
        plan = dilated([stride for _, stride in _V1], output_stride)
        self.strides = (2, 4, 8, 16, output_stride)
        self.lean = 1.0
        self.channels = (64, 128, 256, 512, 1024)
        self.stem = Conv3x3(3, 32, stride=2, rngs=rngs)
        widths = (32, *(width for width, _ in _V1))
        self.blocks = nnx.List(
            Separable(widths[n], widths[n + 1], stride=stride, dilation=dilation, rngs=rngs)
            for n, (stride, dilation) in enumerate(plan)
        )

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to five maps; nothing here is random, so ``rngs`` is not used."""
        del rngs
        return _run(self.stem, self.blocks, (0, 2, 4, 10, 12), images, inside)

    def file_names(self) -> Mapping[str, str | None]:
        """Names in the public weight files to our paths; None for what is not imported."""
        numbers = iter(range(100))
        table: dict[str, str | None] = {f"{next(numbers):02d}_conv": "stem"}
        for n in range(len(self.blocks)):
            table[f"{next(numbers):02d}_dw"] = f"blocks/{n}/depthwise"
            table[f"{next(numbers):02d}_conv"] = f"blocks/{n}/project"
        return MappingProxyType(table)


class MobileNetV2(nnx.Module):
    """MobileNetV2 of width 1.0, 2.2 M parameters.

    Returns the block outputs of 16, 24, 32 and 96 channels at strides 2, 4, 8 and 16, and the
    1280 features at ``output_stride`` (16 or 32).
    """

    mean, std = HALF

    def __init__(self, *, rngs: nnx.Rngs, output_stride: int = 16):
        rows = [(t, c, s if n == 0 else 1) for t, c, count, s in _V2 for n in range(count)]
        plan = dilated([stride for _, _, stride in rows], output_stride)
        self.strides = (2, 4, 8, 16, output_stride)
        self.lean = 1.0
        self.channels = (16, 24, 32, 96, 1280)
        self.stem = Conv3x3(3, 32, stride=2, rngs=rngs)
        blocks, inputs = [], 32
        for (factor, outputs, trained), (stride, dilation) in zip(rows, plan, strict=True):
            blocks.append(
                Inverted(
                    inputs,
                    outputs,
                    factor=factor,
                    stride=stride,
                    dilation=dilation,
                    residual=trained == 1 and inputs == outputs,
                    rngs=rngs,
                )
            )
            inputs = outputs
        self.blocks = nnx.List(blocks)
        self.last = Pointwise(inputs, 1280, rngs=rngs)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to five maps; nothing here is random, so ``rngs`` is not used."""
        del rngs
        *taps, x = _run(self.stem, self.blocks, (0, 2, 5, 12, 16), images, inside)
        cells = cells_at(inside, self.strides[-1])
        return (*taps, keep(relu6(self.last(x)), cells))

    def file_names(self) -> Mapping[str, str | None]:
        """Names in the public weight files to our paths; None for what is not imported."""
        numbers = iter(range(100))
        table: dict[str, str | None] = {f"{next(numbers):02d}_conv": "stem"}
        for n, block in enumerate(self.blocks):
            if block.expand is not None:
                table[f"{next(numbers):02d}_conv"] = f"blocks/{n}/expand"
            table[f"{next(numbers):02d}_dw"] = f"blocks/{n}/depthwise"
            table[f"{next(numbers):02d}_conv"] = f"blocks/{n}/project"
        table[f"{next(numbers):02d}_conv"] = "last"
        table[f"{next(numbers):02d}_conv"] = None  # the 1001 ImageNet classes
        return MappingProxyType(table)


def dilated(strides: list[int], output_stride: int) -> list[tuple[int, int]]:
    """Stride and dilation of each block after the stem, for the wanted output stride."""
    if output_stride not in (16, 32):
        raise UserError(f"output_stride is {output_stride}, wanted 16 or 32")
    return list(_plan(strides, output_stride))


def _plan(strides: list[int], output_stride: int) -> Iterator[tuple[int, int]]:
    reached, dilation = 2, 1
    for stride in strides:
        if reached * stride > output_stride:
            yield 1, dilation
            dilation *= stride
        else:
            yield stride, dilation
            reached *= stride


def _run(
    stem: Conv3x3, blocks: Iterable, taps: tuple[int, ...], images: Array, inside: Array | None
) -> tuple[Array, ...]:
    """Stem and blocks; the outputs of the blocks numbered in ``taps``, zero on padding.

    Outputs bear the names ``stem``, ``block0``, ``block1``, …, by which explanations find them.
    """
    x, found = checkpoint_name(relu6(stem(images, inside)), "stem"), []
    cells = cells_at(inside, stem.stride)
    for n, block in enumerate(blocks):
        x = checkpoint_name(block(x, cells), f"block{n}")
        cells = cells_at(cells, block.depthwise.stride)
        if n in taps:
            found.append(keep(x, cells))
    return tuple(found)
