"""From features back to the image they came from, for Perception Visualization. Experimental.

No verified reference for its layers (Giulivi et al. 2021 invert a ResNet-50); ours is the least
that can: one narrow layer, then doublings of the grid with a 3×3 convolution each.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from wsss_jax.backbones.layers import Conv3x3, Pointwise
from wsss_jax.errors import UserError
from wsss_jax.ops import images as image_ops


class Decoder(nnx.Module):
    """Features (b,h,w,k) to images (b,h·stride,w·stride,3) in [0, 1].

    stride: of the features, a power of two. width: channels inside.
    """

    def __init__(self, channels: int, *, stride: int, width: int = 32, rngs: nnx.Rngs):
        doublings = stride.bit_length() - 1
        if stride < 1 or 2**doublings != stride:
            raise UserError(f"stride is {stride}, wanted a power of two")
        self.narrow = Pointwise(channels, width, rngs=rngs)
        self.finer = nnx.List(Conv3x3(width, width, rngs=rngs) for _ in range(doublings))
        self.last = Conv3x3(width, 3, rngs=rngs)

    def __call__(self, features: Float[Array, "b h w k"]) -> Float[Array, "b H W 3"]:
        """The image that the features remember."""
        x = jax.nn.relu(self.narrow(features))
        for conv in self.finer:
            x = image_ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            x = jax.nn.relu(conv(x, None))
        return jax.nn.sigmoid(self.last(x, None))


def decoder(channels: int, *, stride: int, width: int, key: jax.Array) -> Decoder:
    """A decoder with a random start."""
    return Decoder(channels, stride=stride, width=width, rngs=nnx.Rngs(key))
