"""Loss of a segmentation network: cross-entropy per pixel, unknown pixels apart."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.types import IGNORE


def cross_entropy(
    logits: Float[Array, "*b c"], masks: Int[Array, "*b"], smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """−Σ_c y_c log softmax(logits)_c at each pixel; 0 where the mask is IGNORE.

    masks: 0 is background, the first of the ``c`` classes. smoothing: y is 1 − e + e/c for the
    mask's class and e/c for the others, e in [0, 1]. Source: torch's cross_entropy with ignored
    index 255, as Puzzle-CAM (e = 0) and P-NOC (e = 0.1) use it.
    """
    likelihood = jax.nn.log_softmax(logits, axis=-1)
    # A comparison and a sum: the gradient of picking by index is a scatter, slow on CPUs.
    chosen = (
        masks[..., None] == jnp.arange(logits.shape[-1], dtype=masks.dtype)[(None,) * masks.ndim]
    )
    own = jnp.where(chosen, likelihood, 0.0).sum(axis=-1)
    loss = -(1 - smoothing) * own - smoothing * likelihood.mean(axis=-1)
    return jnp.where(masks == IGNORE, 0.0, loss)


def mean_known(
    losses: Float[Array, "*b"], masks: Int[Array, "*b"], counts: Bool[Array, "*b"]
) -> Float[Array, ""]:
    """Mean over all pixels of the batch that count and whose mask is known; 0 where none is."""
    known = counts & (masks != IGNORE)
    total = jnp.where(known, losses, 0.0).sum()
    return total / jnp.maximum(known.sum().astype(jnp.float32), 1.0)
