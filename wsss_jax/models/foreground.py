"""One map of what stands out, on any convolutional backbone: the network of C2AM.

Source: Xie et al. 2022 (CCAM): one 3×3 convolution without bias over the last two maps of a
ResNet-50 side by side. Their BatchNorm of the single output is left to the system, which
standardises the logits of a batch.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.backbones.layers import Images, Rngs, grid_inside, normalised
from wsss_jax.backbones.residual import Conv
from wsss_jax.types import Backbone


class Foreground(nnx.Module):
    """Features that are compared, and a number per cell: how much it belongs to the foreground.

    Features are the maps of the backbone's last stride, the last two at most, side by side.
    """

    def __init__(self, backbone: Backbone, *, rngs: nnx.Rngs):
        self.backbone = backbone
        self.stride = backbone.strides[-1]
        same = [n for n, stride in enumerate(backbone.strides) if stride == self.stride]
        self.used = tuple(same[-2:])
        self.head = Conv(sum(backbone.channels[n] for n in self.used), 1, 3, rngs=rngs)

    def __call__(
        self, images: Images, inside: Bool[Array, "b H W"], rngs: Rngs = None
    ) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w"]]:
        """Features and raw numbers, float32; features are zero on padding."""
        maps = self.backbone(normalised(images, self.backbone), inside=inside, rngs=rngs)
        features = jnp.concatenate([maps[n] for n in self.used], axis=-1).astype(jnp.float32)
        return features, self.head(features, grid_inside(inside, self.stride))[..., 0]
