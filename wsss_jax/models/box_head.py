"""A box for each class beside the classifier: regression of (x, y, h, w) from where a map lies.

Source of the task: classification and localisation with two heads, in the lecture "Localization and
CNN Explanations" (Boracchi), with linear outputs as in its regression network, so that a box may
reach outside the image. Where we differ: there a dense layer reads the pooled features, which know
no place. Here each class has a map of its own, and its softmax over the image has a centre and a
spread (spatial softmax of Levine et al. 2016); the box is linear in these.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wsss_jax.backbones.layers import Rngs, grid_inside
from wsss_jax.models.heads import Classifier
from wsss_jax.types import Backbone

Inside = Bool[Array, "b H W"] | None
Features = Float[Array, "b h w k"]

_EVEN = 12**0.5  # the width of an even distribution, in standard deviations
_LEAST = 1e-4  # variance of a map that is a single point; keeps the root's gradient finite


class BoxHead(nnx.Module):
    """A classifier and the box of each class.

    kernel: (k,c), from features to the maps whose softmax is placed. scale and offset: (4,), from
    centre and spread to the box; they start as if the object filled its box evenly.
    """

    def __init__(self, plain: Classifier, *, key: PRNGKeyArray):
        self.classifier = plain
        start = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(jax.random.fold_in(key, 1), plain.kernel[...].shape))
        self.scale = nnx.Param(jnp.ones(4))
        self.offset = nnx.Param(jnp.zeros(4))

    @property
    def backbone(self) -> Backbone:
        """The classifier's body."""
        return self.classifier.backbone

    def features(
        self, images: Float[Array, "b H W 3"], inside: Inside = None, rngs: Rngs = None
    ) -> Features:
        """The classifier's features, zero on padding."""
        return self.classifier.features(images, inside, rngs)

    def head(self, features: Features, inside: Inside = None) -> Float[Array, "b c"]:
        """Class logits of features."""
        return self.classifier.head(features, inside)

    def class_maps(self, features: Features) -> Float[Array, "b h w c"]:
        """The classifier's class maps."""
        return self.classifier.class_maps(features)

    def boxes(self, features: Features, inside: Bool[Array, "b H W"]) -> Float[Array, "b c 4"]:
        """(x, y, h, w) of the box of each class, in shares of the image's height and width.

        The image is the rectangle of the real pixels, which ``inside`` marks. float32.
        """
        stride = self.backbone.strides[-1]
        cells = grid_inside(inside, stride)[..., None]
        maps = features.astype(jnp.float32) @ self.kernel[...].astype(jnp.float32)
        maps = jnp.where(cells, maps, jnp.finfo(jnp.float32).min)
        share = jax.nn.softmax(maps.reshape(len(maps), -1, maps.shape[-1]), axis=1)
        share = share.reshape(maps.shape)
        lean = self.backbone.lean
        y, h = _placed(share.sum(axis=2), inside.any(axis=2), stride, lean)
        x, w = _placed(share.sum(axis=1), inside.any(axis=1), stride, lean)
        placed = jnp.stack([x, y, h, w], axis=-1)
        return placed * self.scale[...][None, None] + self.offset[...][None, None]


def _placed(
    share: Float[Array, "b n c"], real: Bool[Array, "b N"], stride: int, lean: float
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Centre and width of each class along one axis, in shares of its real pixels."""
    length = jnp.maximum(real.sum(axis=1), 1).astype(jnp.float32)[:, None]
    first = real.argmax(axis=1).astype(jnp.float32)[:, None]
    pixels = jnp.arange(share.shape[1], dtype=jnp.float32) * stride + lean * (stride - 1) + 0.5
    places = ((pixels[None] - first) / length)[..., None]
    centre = (share * places).sum(axis=1)
    variance = (share * (places - centre[:, None]) ** 2).sum(axis=1)
    return centre, _EVEN * jnp.sqrt(variance + _LEAST)
