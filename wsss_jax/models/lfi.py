"""A classifier that learns which channels matter: the network behind LFI-CAM.

Source: Lee et al. 2021 (LFI-CAM). Features times the grey image go through an importance network,
whose pooled output, softmax over channels, weighs the features into one attention map; features
are raised by it before they are classified. No verified reference: the published file does not
import. Where we differ: the importance network is narrow (theirs keeps all channels through four
3×3 convolutions with BatchNorm, 15 M parameters each for 1280 channels), without statistics, and
of any grid size (theirs: 14×14).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wsss_jax.backbones.layers import Conv3x3, Images, Inside, Pointwise, Rngs, grid_inside, keep
from wsss_jax.errors import UserError
from wsss_jax.models.heads import Classifier
from wsss_jax.ops import images as image_ops
from wsss_jax.types import Backbone

Features = Float[Array, "b h w k"]


class LfiClassifier(nnx.Module):
    """A plain classifier whose features are raised where the important channels are.

    width: channels inside the importance network.
    """

    def __init__(self, plain: Classifier, *, width: int = 32, rngs: nnx.Rngs):
        self.plain = plain
        channels = plain.backbone.channels[-1]
        self.narrow = Pointwise(channels, width, rngs=rngs)
        self.first = Conv3x3(width, width, rngs=rngs)
        self.second = Conv3x3(width, width, rngs=rngs)
        self.widen = Pointwise(width, channels, rngs=rngs)

    @property
    def backbone(self) -> Backbone:
        """That of the plain classifier."""
        return self.plain.backbone

    def __call__(self, images: Images, inside: Inside = None, rngs: Rngs = None) -> Array:
        """Class logits (b,c) of the raised features."""
        return self.head(self.features(images, inside, rngs), inside)

    def features(self, images: Images, inside: Inside = None, rngs: Rngs = None) -> Features:
        """A (1 + M), with A the plain features and M the attention map in [0, 1]."""
        plain = self.plain.features(images, inside, rngs)
        weights = self.importance(images, plain, inside)
        raised = jax.nn.relu(jnp.einsum("bhwk,bk->bhw", plain.astype(jnp.float32), weights))
        attention = _unit(raised[..., None]).astype(plain.dtype)
        return plain * (1 + attention)

    def head(self, features: Features, inside: Inside = None) -> Array:
        """Class logits (b,c), as of the plain classifier."""
        return self.plain.head(features, inside)

    def class_maps(self, features: Features) -> Float[Array, "b h w c"]:
        """Scores of every cell, as of the plain classifier."""
        return self.plain.class_maps(features)

    def importance(
        self, images: Images, features: Features, inside: Inside = None
    ) -> Float[Array, "b k"]:
        """Weights of the channels of plain features; they sum to one.

        The grey image is resized with its canvas, so that padding changes them a little.
        """
        cells = None if inside is None else self._cells(inside)
        grid = features.shape[1], features.shape[2]
        grey = image_ops.resize(images.mean(axis=-1, keepdims=True), grid)
        seen = keep(_unit(features) * grey.astype(features.dtype), cells)
        x = jax.nn.relu(self.narrow(seen))
        x = jax.nn.relu(self.first(x, cells))
        x = keep(self.widen(jax.nn.relu(self.second(x, cells))), cells).astype(jnp.float32)
        real = jnp.ones(x.shape[:3]) if cells is None else cells.astype(jnp.float32)
        count = jnp.maximum(real.sum(axis=(1, 2)), 1)[:, None]
        return jax.nn.softmax(x.sum(axis=(1, 2)) / count, axis=-1)

    def _cells(self, inside: Bool[Array, "b H W"]) -> Bool[Array, "b h w"]:
        return grid_inside(inside, self.plain.backbone.strides[-1])


def with_importance(plain: nnx.Module, *, width: int, key: PRNGKeyArray) -> LfiClassifier:
    """An importance network with a random start beside a classifier.

    Raises ValueError for a head that does not read a map of features.
    """
    if not isinstance(plain, Classifier):
        raise UserError(f"LFI-CAM needs a head on a feature map, not {type(plain).__name__}")
    return LfiClassifier(plain, width=width, rngs=nnx.Rngs(key))


def _unit(x: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    """Every channel of every image from 0 to 1 by its minimum and maximum; 0 if it is constant."""
    low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
    return (x - low) / jnp.where(high > low, high - low, 1)
