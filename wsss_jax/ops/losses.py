"""Losses as pure elementwise functions: no reduction over images unless the name says so."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def multilabel_soft_margin(
    logits: Float[Array, "b c"], targets: Float[Array, "b c"]
) -> Float[Array, " b"]:
    """Binary cross-entropy with logits, averaged over classes, one value per image.

    mean_c −[y log σ(x) + (1 − y) log(1 − σ(x))]. Source: the classification loss of every system
    here (torch's multilabel_soft_margin_loss, whose further mean over images is left to callers).
    """
    positive = jax.nn.log_sigmoid(logits)
    negative = jax.nn.log_sigmoid(-logits)
    return -(targets * positive + (1 - targets) * negative).mean(axis=-1)


def smooth(labels: Bool[Array, "b c"], amount: float) -> Float[Array, "b c"]:
    """Label smoothing y' = (1 − e) y + e/2 for independent classes; e in [0, 1].

    Source: David, Pedrini & Dias, P-NOC (2024), which uses e = 0.1.
    """
    return (1 - amount) * labels.astype(jnp.float32) + amount / 2


def mean_over(values: Float[Array, " b"], real: Bool[Array, " b"]) -> Float[Array, ""]:
    """Mean over the real rows of a batch; 0 where there is none."""
    count = jnp.maximum(real.sum().astype(jnp.float32), 1.0)
    return jnp.where(real, values, 0.0).sum() / count
