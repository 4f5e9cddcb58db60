"""Losses as pure functions: one value per image, unless the docstring says otherwise.

Dense targets are labels of cells, IGNORE where unknown. A head whose targets are missing for some
images of a batch gets them through ``where_given``, and costs nothing there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.losses.pairs import Pairs
from wsss_jax.types import IGNORE


def multilabel_soft_margin(
    logits: Float[Array, "b c"], targets: Float[Array, "b c"]
) -> Float[Array, " b"]:
    """Binary cross-entropy with logits, averaged over classes, one value per image.

    mean_c −[y log σ(x) + (1 − y) log(1 − σ(x))]. Source: the classification loss of every system
    here (torch's multilabel_soft_margin_loss, whose further mean over images is left to callers).
    """
    return cross_entropies(logits, targets).mean(axis=-1)


def cross_entropies(
    logits: Float[Array, "b c"], targets: Float[Array, "b c"]
) -> Float[Array, "b c"]:
    """Binary cross-entropy with logits of each class, −y log σ(x) − (1 − y) log(1 − σ(x))."""
    positive = jax.nn.log_sigmoid(logits)
    negative = jax.nn.log_sigmoid(-logits)
    return -(targets * positive + (1 - targets) * negative)


def smooth(labels: Bool[Array, "b c"], amount: float) -> Float[Array, "b c"]:
    """Label smoothing y' = (1 − e) y + e/2 for independent classes; e in [0, 1].

    Source: David, Pedrini & Dias, P-NOC (2024), which uses e = 0.1.
    """
    return (1 - amount) * labels.astype(jnp.float32) + amount / 2


def mean_over(values: Float[Array, " b"], real: Bool[Array, " b"]) -> Float[Array, ""]:
    """Mean over the real rows of a batch; 0 where there is none."""
    count = jnp.maximum(real.sum().astype(jnp.float32), 1.0)
    return jnp.where(real, values, 0.0).sum() / count


def binary(logits: Float[Array, "b h w"], labels: Int[Array, "b h w"]) -> Float[Array, " b"]:
    """Binary cross-entropy with logits, averaged over the known cells of each image.

    labels: 1 for yes, 0 for no, IGNORE for unknown. An image without a known cell costs 0. Used
    for saliency; PoolNet and its followers take the sum over pixels in place of the mean.
    """
    cost = _cross_entropy(logits, labels == 1)
    return _mean_where(cost, labels != IGNORE)


def balanced_binary(
    logits: Float[Array, "b h w"], labels: Int[Array, "b h w"]
) -> Float[Array, " b"]:
    """Binary cross-entropy in which the few cells of an edge weigh as much as all the others.

    Yes weighs the share of no among the image's known cells, no weighs 1.1 times the share of yes.
    labels: 1 edge, 0 none, IGNORE unknown; an image without edges, or without known cells, costs 0.
    Source: Xie & Tu 2015 (HED), with the 1.1 of PoolNet's joint training (Liu et al. 2019). Where
    we differ: the mean over known cells in place of the sum, so that size does not matter.
    """
    known = labels != IGNORE
    edge = labels == 1
    count = jnp.maximum(_per_image(known), 1)
    share = (_per_image(edge & known) / count)[:, None, None]
    weights = jnp.where(edge, 1 - share, 1.1 * share)
    return _mean_where(_cross_entropy(logits, edge) * weights, known)


def pair_affinity(affinity: Float[Array, "b p h w"], kinds: Pairs) -> Float[Array, ""]:
    """-log W over pairs that belong together, -log(1 - W) over those that do not.

    Background pairs, foreground pairs and different pairs are averaged each by itself, over the
    whole batch, and weigh 1/4, 1/4, 1/2; a kind without pairs costs 0. affinity: W in [0, 1] on
    the stencil that the pairs were made for; 1e-5 keeps the logarithms finite.

    Source: Ahn & Kwak 2018 (PSA), as in their code; the paper's fg + bg + 2 neg is four times this.
    IRN's ((bg / 2 + fg / 2) + neg) / 2 and Puzzle-CAM's and P-NOC's (pos + neg) / 2 are the same
    number; IRN adds terms for its displacement field.
    """
    together, apart = -jnp.log(affinity + 1e-5), -jnp.log(1 + 1e-5 - affinity)
    means = [
        jnp.where(kind, cost, 0.0).sum() / (kind.sum(dtype=jnp.float32) + 1e-5)
        for kind, cost in (
            (kinds.background, together),
            (kinds.foreground, together),
            (kinds.different, apart),
        )
    ]
    return means[0] / 4 + means[1] / 4 + means[2] / 2


def where_given(labels: Int[Array, "b h w"], given: Bool[Array, " b"]) -> Int[Array, "b h w"]:
    """The labels of the images that have any (a flag per row), IGNORE for all others."""
    return jnp.where(given[:, None, None], labels, jnp.asarray(IGNORE, labels.dtype))


def mean_over_given(values: Float[Array, " b"], labels: Int[Array, "b h w"]) -> Float[Array, ""]:
    """Mean of per-image losses over the images with at least one known cell; 0 without any."""
    return mean_over(values, (labels != IGNORE).any(axis=(1, 2)))


def _cross_entropy(logits: Array, yes: Bool[Array, "b h w"]) -> Array:
    logits = logits.astype(jnp.float32)
    return -jnp.where(yes, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))


def _per_image(mask: Bool[Array, "b h w"]) -> Float[Array, " b"]:
    return mask.sum(axis=(1, 2), dtype=jnp.float32)


def _mean_where(values: Array, known: Bool[Array, "b h w"]) -> Float[Array, " b"]:
    total = jnp.where(known, values, 0.0).sum(axis=(1, 2))
    return total / jnp.maximum(_per_image(known), 1)
