"""What the residual networks share: convolutions with PyTorch's grid rule, strides, repetition.

The grid rule: windows are centred on their cell at every stride, cells lie at every s-th position,
n cells become ceil(n / s). (``layers`` has the rule of the MobileNets, whose strided windows begin
at their cell.) Every window wider than one cell sees zeros outside the image. Convolutions have no
bias, as a normalisation follows. Not here: networks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from wsss_jax.backbones.layers import Cells, cells_at, convolve, keep
from wsss_jax.errors import UserError

Block = TypeVar("Block", bound=nnx.Module)

MANY = 8
"""Up to so many groups are separate convolutions: on XLA's CPU backend several times as fast."""

After = Bool[Array, "b h2 w2"] | None
"""Real cells of the grid it puts out."""


class Conv(nnx.Module):
    """Convolution without bias, ``size`` odd; He-normal start (He et al. 2015).

    The kernel is (inputs, outputs) for size 1, else (size, size, inputs / groups, outputs).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        rngs: nnx.Rngs,
    ):
        shape = (inputs, outputs) if size == 1 else (size, size, inputs // groups, outputs)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
        self.stride, self.dilation, self.groups = stride, dilation, groups

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells = None
    ) -> Float[Array, "b h2 w2 n"]:
        """Apply to the part of a map that is inside; the kernel follows its dtype."""
        kernel = self.kernel[...].astype(x.dtype)
        if kernel.ndim == 2:
            s = self.stride
            return lax.dot_general(x[:, ::s, ::s], kernel, (((3,), (0,)), ((), ())))
        x = keep(x, inside)
        if self.groups > MANY:
            return conv(x, kernel, stride=self.stride, dilation=self.dilation)
        parts = zip(jnp.split(x, self.groups, -1), jnp.split(kernel, self.groups, -1), strict=True)
        maps = [conv(part, k, stride=self.stride, dilation=self.dilation) for part, k in parts]
        return maps[0] if self.groups == 1 else jnp.concatenate(maps, axis=-1)


def conv(
    x: Float[Array, "b h w k"], kernel: Float[Array, "s s k2 n"], *, stride: int, dilation: int
) -> Float[Array, "b h2 w2 n"]:
    """Convolution with centred windows and zeros around the map, in as many groups as fit."""
    height, width = (_margins(n, kernel.shape[0], stride, dilation) for n in x.shape[1:3])
    return convolve(x, kernel, margins=(height, width), stride=stride, dilation=dilation)


def max_pool3x3(x: Float[Array, "b h w k"], inside: Cells) -> Float[Array, "b h2 w2 k"]:
    """Maximum over 3×3 windows at every second cell; for maps that are nowhere negative.

    The maximum of nine views, whose gradient XLA's CPU backend computes four times as fast as
    that of its own pooling.
    """
    pooled = None
    for view in _nine(keep(x, inside), 2):
        pooled = view if pooled is None else jnp.maximum(pooled, view)
    assert pooled is not None
    return pooled


def average_pool3x3(
    x: Float[Array, "b h w k"], inside: Cells, *, stride: int
) -> Float[Array, "b h2 w2 k"]:
    """Mean over 3×3 windows, in which cells outside count as zeros."""
    total = None
    for view in _nine(keep(x, inside), stride):
        total = view if total is None else total + view
    assert total is not None
    return total / 9


def average_pool2x2(x: Float[Array, "b h w k"], inside: Cells) -> Float[Array, "b h2 w2 k"]:
    """Mean over the real cells of 2×2 windows, at every second cell; zero where there is none."""
    if inside is None:
        inside = jnp.ones(x.shape[:3], bool)
    margins = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2))
    weights = jnp.pad(inside.astype(x.dtype), margins)
    padded = jnp.pad(keep(x, inside), (*margins, (0, 0)))
    corners = [(i, j) for i in (0, 1) for j in (0, 1)]
    total = sum((padded[:, i::2, j::2] for i, j in corners[1:]), start=padded[:, ::2, ::2])
    count = sum((weights[:, i::2, j::2] for i, j in corners[1:]), start=weights[:, ::2, ::2])
    return total / jnp.maximum(count, 1)[..., None]


def plan(
    strides: Sequence[int], output_stride: int, allowed: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Per stage after a stem of stride 4: stride, dilation of its first block, of the others.

    Where a stage would exceed the output stride it is dilated instead; its first block keeps the
    dilation before it, since its input grid has not changed (Chen et al. 2017; the scheme of
    torchvision and of the ResNeSt authors).
    """
    if output_stride not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise UserError(f"output_stride is {output_stride}, wanted {wanted}")
    rows, reached, dilation = [], 4, 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            dilation *= stride
            stride = 1
        reached *= stride
        rows.append((stride, before, dilation))
    return rows


def stages(
    counts: Sequence[int],
    rows: Sequence[tuple[int, int, int]],
    block: Callable[..., Block],
) -> tuple[list[list[Block]], tuple[int, ...]]:
    """Stages of ``counts`` blocks, and the strides of all maps from the stem's on.

    rows: of ``plan``. block: called with the number of its stage, whether it is the first there,
    and stride and dilation by name.
    """
    made, steps = [], [4]
    for n, (count, (stride, first, others)) in enumerate(zip(counts, rows, strict=True)):
        later = (block(n, False, stride=1, dilation=others) for _ in range(count - 1))
        made.append([block(n, True, stride=stride, dilation=first), *later])
        steps.append(steps[-1] * stride)
    return made, tuple(steps)


def run(block: nnx.Module, x: Float[Array, "b h w k"], *rest: Any, remat: bool) -> Any:
    """``block(x, *rest)``; with ``remat`` its inner maps are computed anew for the gradient.

    Saves memory for time (Chen et al. 2016): of a chain of blocks only the maps between them are
    kept. Changed statistics are written back to the block.
    """
    if not remat:
        return block(x, *rest)  # pyright: ignore[reportCallIssue]: any block of these networks
    graph, params, held = nnx.split(block, nnx.Param, ...)

    @jax.checkpoint
    def again(params: Any, held: Any, x: Array) -> tuple[Any, Any]:
        bound: Any = nnx.merge(graph, params, held, copy=True)
        return bound(x, *rest), nnx.state(bound, nnx.BatchStat)

    y, statistics = again(params, held, x)
    if any(part is True for part in rest):  # training: outside a transformed function, too
        nnx.update(block, statistics)
    return y


def run_stages(
    stages: Sequence[Any],
    x: Float[Array, "b h w k"],
    cells: Cells,
    training: bool,
    *,
    remat: bool,
) -> tuple[Float[Array, "b _ _ _"], ...]:
    """The pooled map that comes in and the outputs of the stages, zero on padding.

    x: of the stem, before its pooling; cells: which of its cells are real.

    They bear the names ``stem``, ``layer1``, ``layer2``, …, by which explanations find them.
    """
    x = max_pool3x3(x, cells)
    cells = cells_at(cells, 2)
    x = checkpoint_name(x, "stem")
    taps = [keep(x, cells)]
    for n, stage in enumerate(stages, 1):
        for block in stage:
            x = run(block, x, cells, training, remat=remat)
            cells = cells_at(cells, block.stride)
        x = checkpoint_name(x, f"layer{n}")
        taps.append(keep(x, cells))
    return tuple(taps)


def _margins(n: int, size: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after n cells."""
    before = (size - 1) // 2 * dilation
    last = (-(-n // stride) - 1) * stride + (size - 1) * dilation
    return before, max(last + 1 - n - before, 0)


def _nine(x: Float[Array, "b h w k"], stride: int) -> Iterator[Float[Array, "b h2 w2 k"]]:
    """The nine views that a centred 3×3 window takes."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    down, across = (-(-n // stride) * stride - stride + 1 for n in (height, width))
    for i in range(3):
        for j in range(3):
            yield padded[:, i : i + down : stride, j : j + across : stride]
