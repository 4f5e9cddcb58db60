"""SEAM's pixel correlation module on a classifier: maps refined by how similar their pixels are.

Source: Wang et al. 2020 (SEAM) and its code: the image, and two shallower maps reduced to 64 and
128 channels, are embedded in 192; the classifier's maps then spread among cells of like embedding
(``losses/equivariance.correlate``). No gradient reaches the classifier through the module.

Where we differ: background is made from the foreground maps, so the classifier has no channel for
it (the code's is overwritten before anything reads it).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from wsss_jax.backbones.layers import Inside, Rngs, cells_at, keep, normalised
from wsss_jax.errors import UserError
from wsss_jax.losses import equivariance
from wsss_jax.models.heads import Classifier
from wsss_jax.ops import images
from wsss_jax.types import Backbone

Features = Float[Array, "b h w k"]


class PixelCorrelation(nnx.Module):
    """A classifier and the embedding that refines its maps.

    Its features are those of the classifier with the embedding behind them, so that the refined
    maps can be made from features alone. Raises ValueError for a backbone of fewer than three maps.
    """

    def __init__(
        self, plain: Classifier, *, key: PRNGKeyArray, widths: tuple[int, int, int] = (64, 128, 192)
    ):
        channels = plain.backbone.channels
        if len(channels) < 3:
            raise UserError(
                f"pixel correlation needs a backbone of at least three maps, got {len(channels)}"
            )
        self.classifier, self.width = plain, widths[2]
        rngs = nnx.Rngs(jax.random.fold_in(key, 1))
        he = nnx.initializers.he_normal()
        wide = nnx.initializers.variance_scaling(16.0, "fan_avg", "uniform")  # Xavier, gain 4
        self.fine = nnx.Param(he(rngs.params(), (channels[-3], widths[0])))
        self.coarse = nnx.Param(he(rngs.params(), (channels[-2], widths[1])))
        self.embed = nnx.Param(wide(rngs.params(), (3 + widths[0] + widths[1], widths[2])))

    @property
    def backbone(self) -> Backbone:
        """The classifier's body."""
        return self.classifier.backbone

    def __call__(
        self, pixels: Float[Array, "b H W 3"], inside: Inside = None, rngs: Rngs = None
    ) -> Float[Array, "b c"]:
        """Class logits: the classifier's."""
        return self.classifier(pixels, inside, rngs)

    def features(
        self, pixels: Float[Array, "b H W 3"], inside: Inside = None, rngs: Rngs = None
    ) -> Features:
        """The classifier's features, then the embedding; zero on padding."""
        *_, fine, coarse, last = self.classifier.taps(pixels, inside, rngs)
        size = (last.shape[1], last.shape[2])
        shown = images.resize(
            normalised(pixels, self.classifier.backbone), size, align_corners=True
        )
        parts = [shown.astype(last.dtype)]
        for tap, kernel in ((fine, self.fine), (coarse, self.coarse)):
            reduced = jax.nn.relu(jax.lax.stop_gradient(tap) @ kernel[...].astype(tap.dtype))
            parts.append(images.resize(reduced, size))
        embedded = jnp.concatenate(parts, axis=-1) @ self.embed[...].astype(last.dtype)
        cells = cells_at(inside, self.backbone.strides[-1])
        dropped = self.classifier.dropped(last, rngs)
        return jnp.concatenate([dropped, keep(embedded, cells)], axis=-1)

    def head(self, features: Features, inside: Inside = None) -> Float[Array, "b c"]:
        """Class logits of features."""
        return self.classifier.head(features[..., : -self.width], inside)

    def plain_maps(self, features: Features) -> Float[Array, "b h w c"]:
        """Class logits of every cell, before correlation."""
        return self.classifier.class_maps(features[..., : -self.width])

    def correlated(self, features: Features) -> Float[Array, "b h w n"]:
        """Background and class maps in [0, 1], spread among similar cells."""
        embedded = features[..., -self.width :]
        # Padding is where the embedding is zero: like nothing, it gives and takes nothing.
        cells = (embedded != 0).any(axis=-1)
        target = equivariance.correlation_target(self.plain_maps(features), cells)
        return equivariance.correlate(target, embedded, cells)

    def class_maps(self, features: Features) -> Float[Array, "b h w c"]:
        """The correlated maps without background: what SEAM explains with, not logits."""
        return self.correlated(features)[..., 1:]
