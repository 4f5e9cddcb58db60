"""Heads on a backbone. The classifier is average pooling and a linear layer, so it has class maps.

Source: Zhou et al. 2016 (class activation maps). The layer has no bias, as in PSA, IRN and P-NOC:
the mean of a class map over the image is then exactly the class's logit.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.models.layers import grid_inside
from wsss_jax.types import Backbone


class Classifier(nnx.Module):
    """Multi-label classifier on images in [0, 1].

    kernel: (k, c), normal start of variance 1/k (LeCun), zero-mean so that every class begins
    near probability one half. dropout: the rate at which whole channels are dropped (and the
    others scaled up) when, and only when, ``rngs`` is given to a call.
    """

    def __init__(self, backbone: Backbone, classes: int, *, rngs: nnx.Rngs, dropout: float = 0.0):
        if classes < 1:
            raise ValueError(f"{classes} classes, wanted at least one")
        self.backbone = backbone
        start = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(rngs.params(), (backbone.channels[-1], classes)))
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def __call__(
        self,
        images: Float[Array, "b H W 3"],
        inside: Bool[Array, "b H W"] | None = None,
        rngs: Any = None,
    ) -> Float[Array, "b c"]:
        """Class logits. ``rngs`` (a key or nnx.Rngs) switches dropout on."""
        return self.head(self.features(images, inside, rngs), inside)

    def features(
        self,
        images: Float[Array, "b H W 3"],
        inside: Bool[Array, "b H W"] | None = None,
        rngs: Any = None,
    ) -> Float[Array, "b h w k"]:
        """The last map of the backbone, zero on padding."""
        mean = jnp.asarray(self.backbone.mean, images.dtype)
        scale = jnp.asarray([1 / s for s in self.backbone.std], images.dtype)
        normalised = (images - mean[None, None, None]) * scale[None, None, None]
        features = self.backbone(normalised, inside=inside, rngs=rngs)[-1]
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
                raise ValueError(
                    f"features on a grid {features.shape[1:3]}, inside {inside.shape[1:]} gives "
                    f"{cells.shape[1:]}; pass the inside of the images that were put in"
                )
            weights = cells.astype(jnp.float32)
            total = jnp.einsum("bhwk,bhw->bk", features, weights)
            # A row that only fills a batch up has no real cell; its logits are zero, not NaN.
            pooled = total / jnp.maximum(weights.sum(axis=(1, 2)), 1.0)[:, None]
        return pooled @ self.kernel[...].astype(jnp.float32)

    def class_maps(self, features: Float[Array, "b h w k"]) -> Float[Array, "b h w c"]:
        """Class logits of every cell; their mean over real cells is ``head``. Not rectified."""
        return features @ self.kernel[...].astype(features.dtype)
