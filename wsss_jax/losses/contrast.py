"""Contrast between the foregrounds and the backgrounds of a batch, of which no class is known.

Sources: Xie et al. 2022, "C2AM: Contrastive learning of class-agnostic activation map" (CCAM):
foregrounds of different images resemble one another, and so do backgrounds; a foreground and a
background do not. David, Pedrini & Dias 2024, P-NOC (C2AM-H): class activation maps as hints where
foreground is.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LOWEST, HIGHEST = 0.0005, 0.9995
"""Cosines are kept between these, so that logarithms and their gradients stay finite."""

Square = Float[Array, "b b"]


def pooled(
    features: Float[Array, "b h w k"],
    foreground: Float[Array, "b h w"],
    cells: Bool[Array, "b h w"],
) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
    """Each image's foreground and background vector: mean of P·F and of (1 - P)·F over its cells.

    foreground: P in [0, 1]. Divided by the number of cells and not by the mass of P, as in CCAM:
    only directions matter later. Zero vectors for an image without a cell.
    """
    weights = cells.astype(features.dtype)
    count = jnp.maximum(weights.sum(axis=(1, 2)), 1)[:, None]
    whole = jnp.einsum("bhwk,bhw->bk", features, weights) / count
    front = jnp.einsum("bhwk,bhw->bk", features, weights * foreground) / count
    return front, whole - front


def cosines(a: Float[Array, "b k"], b: Float[Array, "b k"]) -> Square:
    """Cosine of every row of ``a`` with every row of ``b``, clipped to [LOWEST, HIGHEST]."""
    return jnp.clip(_unit(a) @ _unit(b).T, LOWEST, HIGHEST)


def rank_weights(similarity: Square, real: Bool[Array, " b"], decay: float) -> Square:
    """exp(-decay (rank - 1)), rank 0 for the most similar column of a row; no gradient.

    Each row is most similar to itself, so its best partner has weight 1, and the partners that
    look least similar, which may show another kind of foreground, count least. Columns that are not
    real come last.
    """
    ordered = jnp.where(real[None, :], jax.lax.stop_gradient(similarity), -1.0)
    rank = jnp.argsort(jnp.argsort(-ordered, axis=1), axis=1)
    return jnp.exp(-decay * (rank.astype(jnp.float32) - 1))


def pull(similarity: Square, real: Bool[Array, " b"], decay: float = 0.25) -> Float[Array, ""]:
    """Mean of -log s times its rank weight over all pairs of real rows (CCAM's SimMaxLoss)."""
    weights = rank_weights(similarity, real, decay)
    return _mean_pairs(-jnp.log(similarity) * weights, real)


def push(similarity: Square, real: Bool[Array, " b"]) -> Float[Array, ""]:
    """Mean of -log(1 - s) over all pairs of real rows (CCAM's SimMinLoss)."""
    return _mean_pairs(-jnp.log(1 - similarity), real)


def apart(
    front: Float[Array, "b k"],
    back: Float[Array, "b k"],
    real: Bool[Array, " b"],
    *,
    decay: float = 0.25,
) -> Float[Array, ""]:
    """The whole contrast of a batch: fronts together, backs together, fronts apart from backs."""
    return (
        pull(cosines(front, front), real, decay)
        + push(cosines(back, front), real)
        + pull(cosines(back, back), real, decay)
    )


def hinted(
    logits: Float[Array, "b h w"],
    hints: Float[Array, "b h w"],
    cells: Bool[Array, "b h w"],
    *,
    threshold: float,
    smoothing: float = 0.1,
) -> Float[Array, ""]:
    """Cross-entropy with foreground, mean over the cells whose hint reaches ``threshold``.

    hints: largest class score of each cell, in [0, 1]. smoothing: the target is 1 - smoothing / 2.
    Nothing is said of other cells: hints find parts of objects. 0 where no cell is hinted at.
    Source: P-NOC's code (threshold 0.4 for VOC, 0.3 for COCO); their paper has a sum.
    """
    target = 1 - smoothing / 2
    cost = -target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)
    chosen = cells & (hints >= threshold)
    return jnp.where(chosen, cost, 0.0).sum() / jnp.maximum(chosen.sum().astype(jnp.float32), 1)


def border_mean(
    foreground: Float[Array, "b h w"], cells: Bool[Array, "b h w"], margin: int
) -> Float[Array, ""]:
    """Mean foreground along the borders of the images, ``margin`` cells wide.

    Photographers put objects in the middle: above one half, foreground and background have been
    taken for each other (CCAM, 4 of 28 cells). Borders are where real cells end.
    """
    height, width = cells.shape[1:]
    padded = jnp.pad(cells, ((0, 0), (margin, margin), (margin, margin)))
    inner = cells
    for shift in range(2 * margin + 1):
        inner &= padded[:, shift : shift + height, margin : margin + width]
        inner &= padded[:, margin : margin + height, shift : shift + width]
    border = cells & ~inner
    total = jnp.where(border, foreground, 0.0).sum()
    return total / jnp.maximum(border.sum().astype(jnp.float32), 1)


def moments(
    values: Float[Array, "b h w"], cells: Bool[Array, "b h w"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and variance over the real cells of a batch."""
    count = jnp.maximum(cells.sum().astype(jnp.float32), 1)
    mean = jnp.where(cells, values, 0.0).sum() / count
    return mean, jnp.where(cells, jnp.square(values - mean), 0.0).sum() / count


def _unit(rows: Float[Array, "b k"]) -> Float[Array, "b k"]:
    return rows * jax.lax.rsqrt(jnp.square(rows).sum(axis=1, keepdims=True) + 1e-12)


def _mean_pairs(values: Square, real: Bool[Array, " b"]) -> Float[Array, ""]:
    pairs = real[:, None] & real[None, :]
    return jnp.where(pairs, values, 0.0).sum() / jnp.maximum(pairs.sum().astype(jnp.float32), 1)
