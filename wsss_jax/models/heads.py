"""Heads on a backbone. The classifier is average pooling and a linear layer, so it has class maps.

Source: Zhou et al. 2016 (class activation maps). The layer has no bias, as in PSA, IRN and P-NOC:
the mean of a class map over the image is then exactly the class's logit. A kernel may be
regularised before it is used (``KERNELS``); logits and class maps then both use that one.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.backbones.layers import Images, Inside, Maps, Rngs, grid_inside, normalised
from wsss_jax.errors import UserError
from wsss_jax.types import Backbone

Kernel = Float[Array, "k c"]


def as_it_is(kernel: Kernel) -> Kernel:
    """The plain linear layer."""
    return kernel


def kernel_usage(kernel: Kernel) -> Kernel:
    """Kernel usage regularisation: W × softmax(W), the softmax over the classes of each channel.

    Classes compete for channels: a channel that one class weighs highly is kept from the others.
    Source: David, Pedrini & Dias 2022 (MinMax-CAM), whose gate has no factor before it.
    """
    return kernel * jax.nn.softmax(kernel, axis=1)


def kernel_usage_scaled(kernel: Kernel) -> Kernel:
    """The same times the number of classes, so that it starts at the size of the plain layer.

    Source: an earlier version of P-NOC's code. With C classes the gate starts near 1/C, and
    without this factor logits and gradients start C times smaller.
    """
    return kernel_usage(kernel) * kernel.shape[1]


KERNELS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "linear": as_it_is,
        "kernel_usage": kernel_usage,
        "kernel_usage_scaled": kernel_usage_scaled,
    }
)
"""From the kernel that is learned to the one that is used."""


class Classifier(nnx.Module):
    """Multi-label classifier on images in [0, 1].

    kernel: (k, c), normal start of variance 1/k (LeCun), zero-mean so that every class begins
    near probability one half. effective: a function of KERNELS. dropout: the rate at which whole
    channels are dropped (and the others scaled up) when, and only when, ``rngs`` is given to a
    call.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        rngs: nnx.Rngs,
        dropout: float = 0.0,
        effective: Callable[[Array], Array] = as_it_is,
    ):
        if classes < 1:
            raise UserError(f"{classes} classes, wanted at least one")
        self.backbone, self.effective = backbone, effective
        start = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(rngs.params(), (backbone.channels[-1], classes)))
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def __call__(
        self, images: Images, inside: Inside = None, rngs: Rngs = None
    ) -> Float[Array, "b c"]:
        """Class logits. ``rngs`` (a key or nnx.Rngs) switches dropout on."""
        return self.head(self.features(images, inside, rngs), inside)

    def features(
        self, images: Images, inside: Inside = None, rngs: Rngs = None
    ) -> Float[Array, "b h w k"]:
        """The last map of the backbone, zero on padding."""
        return self.dropped(self.taps(images, inside, rngs)[-1], rngs)

    def taps(self, images: Images, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """All maps of the backbone."""
        return self.backbone(normalised(images, self.backbone), inside=inside, rngs=rngs)

    def dropped(self, features: Float[Array, "b h w k"], rngs: Rngs) -> Float[Array, "b h w k"]:
        """Features with whole channels dropped, if ``rngs`` are given."""
        if rngs is None or self.dropout.rate == 0:
            return features
        return self.dropout(features, deterministic=False, rngs=rngs)

    def head(
        self, features: Float[Array, "b h w k"], inside: Bool[Array, "b H W"] | None = None
    ) -> Float[Array, "b c"]:
        """Class logits of features: their mean over the real cells, then the linear layer.

        ``inside`` marks the real pixels of the image, not the cells. float32 whatever comes in.
        """
        features = features.astype(jnp.float32)
        if inside is None:
            pooled = features.mean(axis=(1, 2))
        else:
            cells = grid_inside(inside, self.backbone.strides[-1])
            if cells.shape != features.shape[:3]:
                raise UserError(
                    f"features on a grid {features.shape[1:3]}, inside {inside.shape[1:]} gives "
                    f"{cells.shape[1:]}; pass the inside of the images that were put in"
                )
            weights = cells.astype(jnp.float32)
            total = jnp.einsum("bhwk,bhw->bk", features, weights)
            # A row that only fills a batch up has no real cell; its logits are zero, not NaN.
            pooled = total / jnp.maximum(weights.sum(axis=(1, 2)), 1.0)[:, None]
        return pooled @ self.effective(self.kernel[...].astype(jnp.float32))

    def class_maps(self, features: Float[Array, "b h w k"]) -> Float[Array, "b h w c"]:
        """Class logits of every cell; their mean over real cells is ``head``. Not rectified."""
        return features @ self.effective(self.kernel[...]).astype(features.dtype)
