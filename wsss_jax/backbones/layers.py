"""Convolutions and pooling with one fixed grid rule, and the one place that chooses by backend.

The grid rule: a layer of stride s maps n cells to ceil(n / s), with zeros to the right and below
only as far as the last window reaches; windows of stride 1 are centred, windows of stride 2 start
at even cells. For even sizes this is TensorFlow's SAME, which the pretrained MobileNets expect;
for odd sizes it keeps the same alignment, so that an image on a larger canvas and the image alone
see the same windows. Together with ``keep`` before every window wider than one cell, padding
changes nothing. (Where SAME pads an odd size on both sides, we differ by one cell.)

Speed: XLA's CPU backend is several times slower on grouped convolutions and on the gradient of
pooling than on shifted views (16×72×72×144, forward and backward: 186 ms against 1815 ms), and on
1×1 convolutions than on matrix products; on other backends the library convolutions are right.
Not here: networks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from wsss_jax.ops.channels import add_bias

_LAYOUT = ("NHWC", "HWIO", "NHWC")

Rngs = PRNGKeyArray | nnx.Rngs | None
"""Where chance comes from while training; None where nothing is trained."""

Images = Float[Array, "b H W 3"]
"""RGB photographs on a canvas, in [0, 1] or normalised."""

Inside = Bool[Array, "b H W"] | None
"""Which pixels of the canvas are real; None for all."""

Cells = Bool[Array, "b h w"] | None
"""Which cells of a map are real; None for all."""

Maps = tuple[Float[Array, "b _ _ _"], ...]
"""What a backbone returns, finest first."""

Margins = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below, and to the left and right of a map."""


@runtime_checkable
class Normal(Protocol):
    """Weights that want normalised images: mean and standard deviation by colour, in [0, 1]."""

    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102


_library = ContextVar("library", default=False)


@contextmanager
def library_convolutions() -> Iterator[None]:
    """Within the block every convolution is traced as one operation, for other programs."""
    token = _library.set(True)
    try:
        yield
    finally:
        _library.reset(token)


def normalised(images: Images, backbone: Normal) -> Images:
    """Images in [0, 1] as the weights of the backbone want them."""
    mean = jnp.asarray(backbone.mean, images.dtype)
    scale = jnp.asarray([1 / s for s in backbone.std], images.dtype)
    return (images - mean[None, None, None]) * scale[None, None, None]


def keep(x: Float[Array, "b h w k"], inside: Cells) -> Float[Array, "b h w k"]:
    """The map with zeros where nothing real lies; whatever stood there (even NaN) is gone."""
    if inside is None:
        return x
    return jnp.where(inside[..., None], x, jnp.zeros((), x.dtype))


def grid_inside(inside: Bool[Array, "b H W"], stride: int) -> Bool[Array, "b h w"]:
    """Which cells of the grid at ``stride`` belong to the image: those whose first pixel does."""
    return inside[:, ::stride, ::stride]


def cells_at(inside: Inside, stride: int) -> Cells:
    """``grid_inside`` of a canvas or a finer grid that may be real all over (None)."""
    return None if inside is None else grid_inside(inside, stride)


@jax.custom_jvp
def relu6(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """min(max(x, 0), 6). Its gradient is taken from the output, so no input has to be kept."""
    return jnp.clip(x, 0, 6)


@relu6.defjvp
def _relu6_jvp(primals: tuple, tangents: tuple) -> tuple:
    y = relu6(primals[0])
    return y, jnp.where((y > 0) & (y < 6), tangents[0], jnp.zeros((), y.dtype))


def pointwise(
    x: Float[Array, "*b k"], kernel: Float[Array, "k n"], bias: Float[Array, " n"]
) -> Float[Array, "*b n"]:
    """1×1 convolution, as a matrix product: the faster form on every backend."""
    y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return add_bias(y, bias)


def depthwise3x3(
    x: Float[Array, "b h w k"], kernel: Float[Array, "3 3 k"], *, stride: int = 1, dilation: int = 1
) -> Float[Array, "b h2 w2 k"]:
    """3×3 convolution of each channel with its own kernel, by the grid rule of this file."""
    height, width = (_margins(n, stride, dilation) for n in x.shape[1:3])
    return depthwise(x, kernel, margins=(height, width), stride=stride, dilation=dilation)


def depthwise(
    x: Float[Array, "b h w k"],
    kernel: Float[Array, "s s k"],
    *,
    margins: Margins,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b h2 w2 k"]:
    """Convolution of each channel with its own kernel, with so many zeros around the map.

    On CPU as s² shifted multiply-adds, because XLA's grouped convolution is slow there.
    """
    if jax.default_backend() == "cpu" and not _library.get():
        return _shifted(x, kernel, stride, dilation, margins)
    return convolve(x, kernel[:, :, None, :], margins=margins, stride=stride, dilation=dilation)


def convolve(
    x: Float[Array, "b h w k"],
    kernel: Float[Array, "s s k2 n"],
    *,
    margins: Margins,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b h2 w2 n"]:
    """Convolution with so many zeros around the map, in k / k2 groups."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        margins,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def same(
    x: Float[Array, "b h w k"],
    inside: Bool[Array, "b h w"] | None,
    *,
    size: int,
    stride: int,
    dilation: int = 1,
) -> tuple[Float[Array, "b h2 w2 k"], Margins]:
    """A map, perhaps shifted, and the zeros around it, so that windows lie as TensorFlow's SAME.

    With stride 2 they begin a cell earlier along an axis of odd length; and the length is that of
    each image, not of its canvas: images of odd length are moved by a cell on their canvas, which
    has one more. size: of the windows. stride: 1 or 2.
    """
    reach, counts = (size - 1) * dilation, x.shape[1:3]
    if stride == 1:
        half = (reach // 2, reach // 2)
        return x, (half, half)
    if inside is None:
        before = [(reach - 1 + n % 2) // 2 for n in counts]
    else:
        before = [(reach - 1) // 2] * 2
        for axis in (1, 2):
            odd = inside.any(axis=3 - axis).sum(axis=1) % 2 == 1
            front, back = (
                jnp.pad(x, [move if n == axis else (0, 0) for n in range(4)])
                for move in ((1, 0), (0, 1))
            )
            x = jnp.where(odd[:, None, None, None], front, back)
    rows, columns = (
        (first, max((-(-n // 2) - 1) * 2 + reach + 1 - have - first, 0))
        for first, n, have in zip(before, counts, x.shape[1:3], strict=True)
    )
    return x, (rows, columns)


def conv3x3(
    x: Float[Array, "b h w k"],
    kernel: Float[Array, "3 3 k n"],
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b h2 w2 n"]:
    """Full 3×3 convolution, by the grid rule of this file."""
    height, width = (_margins(n, stride, dilation) for n in x.shape[1:3])
    return convolve(x, kernel, margins=(height, width), stride=stride, dilation=dilation)


def max_pool3x3(x: Float[Array, "b h w k"], *, stride: int = 2) -> Float[Array, "b h2 w2 k"]:
    """Maximum over 3×3 windows, as the maximum of nine views; cells outside never win."""
    pooled = None
    height, width = (_margins(n, stride, 1) for n in x.shape[1:3])
    below = jnp.asarray(-jnp.inf, x.dtype)
    for _, _, view in _views(x, 3, stride, 1, (height, width), below):
        pooled = view if pooled is None else jnp.maximum(pooled, view)
    assert pooled is not None
    return pooled


class Pointwise(nnx.Module):
    """1×1 convolution with bias; He-normal start (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h w n"]:
        """Apply to a map; parameters follow its dtype."""
        return pointwise(x, self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype))


class Depthwise3x3(nnx.Module):
    """3×3 depthwise convolution with bias; normal start of variance 2/9."""

    def __init__(self, channels: int, *, stride: int = 1, dilation: int = 1, rngs: nnx.Rngs):
        start = nnx.initializers.normal((2 / 9) ** 0.5)
        self.kernel = nnx.Param(start(rngs.params(), (3, 3, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.stride, self.dilation = stride, dilation

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Bool[Array, "b h w"] | None
    ) -> Float[Array, "b h2 w2 k"]:
        """Apply to the part of a map that is inside; parameters follow its dtype."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        y = depthwise3x3(keep(x, inside), kernel, stride=self.stride, dilation=self.dilation)
        return add_bias(y, bias)


class Conv3x3(nnx.Module):
    """Full 3×3 convolution with bias; He-normal start (He et al. 2015)."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1, rngs: nnx.Rngs
    ):
        start = nnx.initializers.he_normal()
        self.kernel = nnx.Param(start(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride, self.dilation = stride, dilation

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Bool[Array, "b h w"] | None
    ) -> Float[Array, "b h2 w2 n"]:
        """Apply to the part of a map that is inside; parameters follow its dtype."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        y = conv3x3(keep(x, inside), kernel, stride=self.stride, dilation=self.dilation)
        return add_bias(y, bias)


def _margins(n: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after n cells, by the grid rule of this file."""
    before = dilation if stride == 1 else 0
    last = (-(-n // stride) - 1) * stride + 2 * dilation
    return before, max(last + 1 - n - before, 0)


def _views(
    x: Shaped[Array, "b h w k"],
    size: int,
    stride: int,
    dilation: int,
    margins: Margins,
    fill: Shaped[Array, ""],
) -> Iterator[tuple[int, int, Shaped[Array, "b h2 w2 k"]]]:
    """The views of a map that windows of ``size`` take, one per kernel position (i, j)."""
    padded = lax.pad(x, fill, ((0, 0, 0), *((*m, 0) for m in margins), (0, 0, 0)))
    reach = (size - 1) * dilation
    down, across = ((n - reach - 1) // stride * stride + 1 for n in padded.shape[1:3])
    for i in range(size):
        for j in range(size):
            top, left = i * dilation, j * dilation
            yield i, j, padded[:, top : top + down : stride, left : left + across : stride]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted(x: Array, kernel: Array, stride: int, dilation: int, margins: Margins) -> Array:
    """Depthwise convolution as shifted multiply-adds, with a gradient of its own."""
    return _multiply_add(x, kernel, stride, dilation, margins)


def _multiply_add(x: Array, kernel: Array, stride: int, dilation: int, margins: Margins) -> Array:
    """Shifted multiply-adds, which XLA fuses into one loop."""
    total, size = None, kernel.shape[0]
    for i, j, view in _views(x, size, stride, dilation, margins, jnp.zeros((), x.dtype)):
        term = view * kernel[i, j][None, None, None, :]
        total = term if total is None else total + term
    assert total is not None
    return total


def _shifted_forward(
    x: Array, kernel: Array, stride: int, dilation: int, margins: Margins
) -> tuple:
    return _shifted(x, kernel, stride, dilation, margins), (x, kernel)


def _shifted_backward(
    stride: int, dilation: int, margins: Margins, kept: tuple, g: Array
) -> tuple[Array, Array]:
    x, kernel = kept

    def along_x(x: Array) -> Array:
        return _multiply_add(x, kernel, stride, dilation, margins)

    (to_x,) = jax.linear_transpose(along_x, x)(g)
    to_kernel = _kernel_gradient(x, g, kernel.shape[0], stride, dilation, margins)
    return to_x, to_kernel.astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _kernel_gradient(
    x: Float[Array, "b h w k"],
    g: Float[Array, "b h2 w2 k"],
    size: int,
    stride: int,
    dilation: int,
    margins: Margins,
) -> Float[Array, "s s k"]:
    """Gradient of the depthwise kernel, row by row of the output.

    A sum over (b, h, w) for each channel is what XLA's CPU backend is worst at (16×72×72×144: 262
    ms of processor time for the nine sums, against 30 ms here): the rows are added up elementwise
    and only the totals are reduced. The batch axis stays whole, so sharding over it costs nothing.
    """
    height, width = g.shape[1:3]
    padded = jnp.pad(x, ((0, 0), *margins, (0, 0))).astype(jnp.float32)
    across = (width - 1) * stride + 1

    def add(row: Array, totals: list[Array]) -> list[Array]:
        below = lax.dynamic_index_in_dim(g, row, axis=1, keepdims=False).astype(jnp.float32)
        sums = []
        for i in range(size):
            above = lax.dynamic_index_in_dim(padded, row * stride + i * dilation, 1, False)
            for j in range(size):
                left = j * dilation
                sums.append(totals[size * i + j] + above[:, left : left + across : stride] * below)
        return sums

    start = [jnp.zeros((g.shape[0], width, g.shape[3]))] * (size * size)
    totals = lax.fori_loop(0, height, add, start)
    return jnp.stack([total.sum(axis=(0, 1)) for total in totals]).reshape(size, size, -1)
