"""The plain classifier of a vision transformer: class token, last norm, linear layer.

Source: Dosovitskiy et al. 2021, equation 4. Where maps of a GAP head are wanted (CAM), put the
backbone under ``heads.Classifier`` instead.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsss_jax.backbones.layers import Images, Inside, Rngs, keep, normalised
from wsss_jax.backbones.vit import Encoder, cut_patches, patch_map
from wsss_jax.errors import UserError
from wsss_jax.ops import tokens
from wsss_jax.types import Affine, Attentive, BlockRecord, Embedding, Scorer


@runtime_checkable
class TokenBackbone(Protocol):
    """A transformer of any kind of patches: ``ViT`` or ``HybridViT``."""

    encoder: Encoder
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tokens(self, images: Array, inside: Array | None = None) -> Array:
        """Normalised images to tokens after the last norm, class token first."""
        ...

    def record(self, images: Array, inside: Array | None = None) -> tuple[Array, list[BlockRecord]]:
        """The same, and what each block saw."""
        ...

    def embedding(self, patches: Callable[[Array], tuple[Array, Array]]) -> Embedding | None:
        """How pixels become tokens, None where not by one linear layer."""
        ...


class TokenClassifier(nnx.Module):
    """Classifier on images in [0, 1]; logits are float32. The linear layer starts at zero bias."""

    def __init__(self, backbone: TokenBackbone, classes: int, *, rngs: nnx.Rngs):
        if classes < 1:
            raise UserError(f"{classes} classes, wanted at least one")
        self.backbone = backbone
        start = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(rngs.params(), (backbone.channels[-1], classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def __call__(
        self, images: Images, inside: Inside = None, rngs: Rngs = None
    ) -> Float[Array, "b c"]:
        """Class logits; nothing here is random, so ``rngs`` is not used."""
        del rngs
        return self._logits(self.backbone.tokens(normalised(images, self.backbone), inside)[:, 0])

    def record(
        self, images: Images, inside: Inside = None
    ) -> tuple[Float[Array, "b c"], list[BlockRecord]]:
        """Class logits, and what each block saw."""
        last, blocks = self.backbone.record(normalised(images, self.backbone), inside)
        return self._logits(last[:, 0]), blocks

    def attentive(self, inside: Inside = None) -> Attentive:
        """What attention explanations need, bound to the real pixels of a batch."""

        patch = self.backbone.strides[-1]

        def patches(images: Array) -> tuple[Array, Array]:
            x = normalised(images, self.backbone)
            real = jnp.ones(x.shape[:3], bool) if inside is None else inside
            low = jnp.where(real[..., None], x, jnp.inf).min(axis=(1, 2, 3))
            high = jnp.where(real[..., None], x, -jnp.inf).max(axis=(1, 2, 3))
            bounds = jnp.stack([low, high], axis=-1)
            # A row that only fills the batch up has no pixel, so no bounds.
            return cut_patches(keep(x, inside), patch), jnp.where(jnp.isfinite(bounds), bounds, 0)

        return Attentive(
            record=lambda images: self.record(images, inside),
            norm=self.backbone.encoder.norm.weights(),
            head=self._head(),
            stride=self.backbone.strides[-1],
            embedding=self.backbone.embedding(patches),
        )

    def last_norm(self, images: Images, inside: Inside = None) -> Scorer:
        """The features on which gradient methods explain this very batch.

        They are the patch tokens after the first norm of the last block: any later, and the
        class token no longer depends on the patches (their gradient is exactly zero). The scorer
        holds the class tokens of ``images`` and must be asked about no others, which rules out
        methods that change the image.
        """
        seen = self.backbone.record(normalised(images, self.backbone), inside)[1][-1]
        patch = self.backbone.strides[-1]
        normed = tokens.layer_norm(seen.tokens, seen.weights.norm1)

        def head(features: Array) -> Array:
            b, h, w, k = features.shape
            patches = features.reshape(b, h * w, k)
            token, further = normed[:, :1], normed[:, 1 + h * w :]
            parts = (token.astype(features.dtype), patches, further.astype(features.dtype))
            x = jnp.concatenate(parts, axis=1)
            mixed = tokens.attend(x, seen.weights, heads=seen.query.shape[1], keys=seen.keys)[0]
            middle = seen.tokens + tokens.affine(mixed, seen.weights.project)
            out = tokens.perceive(middle, seen.weights)[0]
            last = tokens.layer_norm(out, self.backbone.encoder.norm.weights())
            return self._logits(last[:, 0])

        return Scorer(lambda _: patch_map(normed, images, inside, patch), head)

    def _head(self) -> Affine:
        return Affine(self.kernel[...], self.bias[...])

    def _logits(self, token: Float[Array, "b k"]) -> Float[Array, "b c"]:
        return tokens.affine(token.astype(jnp.float32), self._head())
