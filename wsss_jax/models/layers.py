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
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from wsss_jax.ops.channels import add_bias

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def keep(
    x: Float[Array, "b h w k"], inside: Bool[Array, "b h w"] | None
) -> Float[Array, "b h w k"]:
    """The map with zeros where nothing real lies; whatever stood there (even NaN) is gone."""
    if inside is None:
        return x
    return jnp.where(inside[..., None], x, jnp.zeros((), x.dtype))


def grid_inside(inside: Bool[Array, "b H W"], stride: int) -> Bool[Array, "b h w"]:
    """Which cells of the grid at ``stride`` belong to the image: those whose first pixel does."""
    return inside[:, ::stride, ::stride]


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
    """3×3 convolution of each channel with its own kernel."""
    if jax.default_backend() == "cpu":
        return _shifted(x, kernel, stride, dilation)
    return _conv(x, kernel[:, :, None, :], stride, dilation)


def conv3x3(
    x: Float[Array, "b h w k"],
    kernel: Float[Array, "3 3 k n"],
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b h2 w2 n"]:
    """Full 3×3 convolution."""
    return _conv(x, kernel, stride, dilation)


def max_pool3x3(x: Float[Array, "b h w k"], *, stride: int = 2) -> Float[Array, "b h2 w2 k"]:
    """Maximum over 3×3 windows, as the maximum of nine views; cells outside never win."""
    pooled = None
    for _, _, view in _views(x, stride, 1, jnp.asarray(-jnp.inf, x.dtype)):
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
    x: Shaped[Array, "b h w k"], stride: int, dilation: int, fill: Shaped[Array, ""]
) -> Iterator[tuple[int, int, Shaped[Array, "b h2 w2 k"]]]:
    """The nine views of a map that a 3×3 window takes, one per kernel position (i, j)."""
    height, width = x.shape[1:3]
    rows, columns = _margins(height, stride, dilation), _margins(width, stride, dilation)
    padded = lax.pad(x, fill, ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
    down, across = (-(-n // stride) * stride - stride + 1 for n in (height, width))
    for i in range(3):
        for j in range(3):
            top, left = i * dilation, j * dilation
            yield i, j, padded[:, top : top + down : stride, left : left + across : stride]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    """Depthwise convolution as nine shifted multiply-adds, with a gradient of its own."""
    return _multiply_add(x, kernel, stride, dilation)


def _multiply_add(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    """Nine shifted multiply-adds, which XLA fuses into one loop."""
    total = None
    for i, j, view in _views(x, stride, dilation, jnp.zeros((), x.dtype)):
        term = view * kernel[i, j][None, None, None, :]
        total = term if total is None else total + term
    assert total is not None
    return total


def _shifted_forward(x: Array, kernel: Array, stride: int, dilation: int) -> tuple:
    return _shifted(x, kernel, stride, dilation), (x, kernel)


def _shifted_backward(stride: int, dilation: int, kept: tuple, g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    (to_x,) = jax.linear_transpose(lambda x: _multiply_add(x, kernel, stride, dilation), x)(g)
    return to_x, _kernel_gradient(x, g, stride, dilation).astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _kernel_gradient(
    x: Float[Array, "b h w k"], g: Float[Array, "b h2 w2 k"], stride: int, dilation: int
) -> Float[Array, "3 3 k"]:
    """Gradient of the depthwise kernel, row by row of the output.

    A sum over (b, h, w) for each channel is what XLA's CPU backend is worst at (16×72×72×144: 262
    ms of processor time for the nine sums, against 30 ms here): the rows are added up elementwise
    and only the totals are reduced. The batch axis stays whole, so sharding over it costs nothing.
    """
    height, width = g.shape[1:3]
    margins = (_margins(n, stride, dilation) for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *margins, (0, 0))).astype(jnp.float32)
    across = (width - 1) * stride + 1

    def add(row: Array, totals: list[Array]) -> list[Array]:
        below = lax.dynamic_index_in_dim(g, row, axis=1, keepdims=False).astype(jnp.float32)
        sums = []
        for i in range(3):
            above = lax.dynamic_index_in_dim(padded, row * stride + i * dilation, 1, False)
            for j in range(3):
                left = j * dilation
                sums.append(totals[3 * i + j] + above[:, left : left + across : stride] * below)
        return sums

    start = [jnp.zeros((g.shape[0], width, g.shape[3]))] * 9
    totals = lax.fori_loop(0, height, add, start)
    return jnp.stack([total.sum(axis=(0, 1)) for total in totals]).reshape(3, 3, -1)


def _conv(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    margins = [_margins(n, stride, dilation) for n in x.shape[1:3]]
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        margins,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )
