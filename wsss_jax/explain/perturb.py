"""Maps from what happens to the scores when a channel or the image is masked.

Ablation-CAM and RISE; Score-CAM and SS-CAM are in ``score_weighted``. No forward pass here depends
on the class, so every class of every image of the batch comes from the same passes. Masks are made
inside the loop, ``chunk`` of them at a time for the whole batch: memory follows the chunk, not the
number of channels or masks. Random masks are the same for every image, so a batch equals its images
one by one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wsss_jax.explain.contract import (
    Images,
    Labels,
    Maps,
    check_labels,
    checked_features,
    logits_of,
    size_of,
)
from wsss_jax.types import Scorer, Size


def ablation_cam(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    relative: Callable[[Array, Array], Array] | None = None,
    chunk: int = 64,
) -> Maps:
    """Channels weighted by how much the score falls without them (Desai & Ramaswamy 2020).

    A channel is removed by setting it to 0; only the head is run again. ``relative`` turns the
    fall S - S_k and the score S into the weight: ``to_magnitude`` (fall / |S|, the default),
    ``to_score`` (fall / S, the paper's, which turns every sign where S < 0) or ``undivided``.
    """
    relative = relative or to_magnitude
    features = checked_features(scorer, images, labels)
    score = scorer.head(features).astype(jnp.float32)
    index = jnp.arange(features.shape[-1])

    def fall_of(channel: Array) -> Float[Array, "b c"]:
        kept = jnp.where(index[None, None, None, :] == channel, 0, features)
        return score - scorer.head(kept).astype(jnp.float32)

    falls = jax.lax.map(fall_of, index, batch_size=chunk)
    return combined(features, relative(falls, score[None]), labels)


def to_magnitude(fall: Array, score: Array) -> Array:
    """The fall relative to the absolute score: a channel that helps has a positive weight."""
    return fall / jnp.where(score == 0, 1, jnp.abs(score))


def to_score(fall: Array, score: Array) -> Array:
    """The fall relative to the score with its sign."""
    return fall / jnp.where(score == 0, 1, score)


def undivided(fall: Array, score: Array) -> Array:
    """The fall itself."""
    return fall


def rise(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, ""],
    masks: int = 1000,
    cells: int = 7,
    keep: float = 0.5,
    draw: Callable[..., Array] | None = None,
    score: Callable[[Array], Array] = jax.nn.sigmoid,
    chunk: int = 16,
) -> Maps:
    """RISE (Petsiuk et al. 2018): the mean of random masks, weighted by the scores they leave.

    ``masks`` random masks of ``cells`` x ``cells`` squares, each kept with probability ``keep``,
    are made by ``draw`` (None: ``rise_mask``); the sum is divided by masks x keep. Masked pixels
    are 0. The paper's score is the softmax; ours is the sigmoid, since several classes are in one
    image. The result has the image's size and does not depend on ``chunk``.
    """
    check_labels(labels, *jax.eval_shape(lambda x: logits_of(scorer, x), images).shape)
    size = size_of(images)
    chunk, draw = min(chunk, masks), draw or rise_mask

    def add(sums: Maps, start: Array) -> tuple[Maps, None]:
        index = start + jnp.arange(chunk)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        drawn = jax.vmap(lambda k: draw(k, size, cells=cells, keep=keep))(keys)
        seen = jax.vmap(lambda mask: images * mask[None, :, :, None])(drawn)
        scores = jax.vmap(lambda masked: score(logits_of(scorer, masked)))(seen)
        # The last chunk may be too long.
        scores = jnp.where((index < masks)[:, None, None], scores, 0)
        return sums + jnp.einsum("mbc,mhw->bhwc", scores, drawn, precision="highest"), None

    start = jnp.zeros((images.shape[0], *size, labels.shape[1]), jnp.float32)
    sums, _ = jax.lax.scan(add, start, jnp.arange(0, masks, chunk))
    return jnp.where(labels[:, None, None, :], sums / (masks * keep), 0)


def rise_mask(key: Key[Array, ""], size: Size, *, cells: int, keep: float) -> Float[Array, "H W"]:
    """One mask in [0, 1]: a coarse random grid, enlarged bilinearly, shifted by part of a cell."""
    key_grid, key_row, key_column = jax.random.split(key, 3)
    cell = (-(-size[0] // cells), -(-size[1] // cells))
    grid = jax.random.bernoulli(key_grid, keep, (cells, cells)).astype(jnp.float32)
    large = jax.image.resize(grid, tuple((cells + 1) * n for n in cell), "bilinear")
    row = jax.random.randint(key_row, (), 0, cell[0])
    column = jax.random.randint(key_column, (), 0, cell[1])
    return jax.lax.dynamic_slice(large, (row, column), size)


def combined(features: Array, weights: Float[Array, "k b c"], labels: Labels) -> Maps:
    """Sum over channels of weight times activation, for the label classes."""
    maps = jnp.einsum("bhwk,kbc->bhwc", features, weights, precision="highest")
    return jnp.where(labels[:, None, None, :], maps, 0)
