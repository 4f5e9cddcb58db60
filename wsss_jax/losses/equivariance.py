"""SEAM's losses and its pixel correlation, as functions of arrays.

Source: Wang et al. 2020 (SEAM) and its published code. Class maps hold foreground only; the
background channel is made where it is needed. ``cells`` says which cells belong to the image:
where we differ from the code, padding counts for nothing, neither in a mean nor as a lowest or
highest share. Not here: networks and the classification loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wsss_jax.losses.regularisers import EPSILON

Maps = Float[Array, "b h w c"]
Cells = Bool[Array, "b h w"]


def range_normalised(maps: Maps, cells: Cells) -> Maps:
    """Rectified maps of each class stretched to [0, 1) over their image's cells, zero elsewhere.

    relu(s - min - 1e-5) / (max - min + 1e-5), SEAM's max_norm.
    """
    maps, inside = jax.nn.relu(maps), cells[..., None]
    low = jnp.where(inside, maps, jnp.inf).min(axis=(1, 2), keepdims=True)
    low = jnp.where(jnp.isfinite(low), low, 0.0)
    high = jnp.where(inside, maps, 0.0).max(axis=(1, 2), keepdims=True)
    stretched = jax.nn.relu(maps - low - EPSILON) / (jnp.maximum(high - low, 0.0) + EPSILON)
    return jnp.where(inside, stretched, 0.0)


def with_background(maps: Maps) -> Float[Array, "b h w n"]:
    """Maps in [0, 1] with the channel 1 - max over classes put before them."""
    return jnp.concatenate([1 - maps.max(axis=-1, keepdims=True), maps], axis=-1)


def strongest_only(maps: Maps) -> Maps:
    """Maps with every class but the strongest of each cell set to zero (ties stay)."""
    return jnp.where(maps < maps.max(axis=-1, keepdims=True), 0.0, maps)


def correlation_target(maps: Maps, cells: Cells) -> Float[Array, "b h w n"]:
    """What pixel correlation spreads: background and the strongest class of each cell, in [0, 1].

    No gradient flows. Maps are divided by their class's maximum, 1e-5 taken off.
    """
    maps = jnp.where(cells[..., None], jax.nn.relu(jax.lax.stop_gradient(maps)), 0.0)
    share = jax.nn.relu(maps - EPSILON) / (maps.max(axis=(1, 2), keepdims=True) + EPSILON)
    spread = with_background(share)
    strongest = jnp.concatenate([spread[..., :1], strongest_only(share)], axis=-1)
    return jnp.where(cells[..., None], strongest, 0.0)


def correlate(
    maps: Float[Array, "b h w n"], features: Float[Array, "b h w k"], cells: Cells
) -> Float[Array, "b h w n"]:
    """Each cell becomes the mean of all cells, weighted by how similar their features are.

    Weights are relu(cosine), those of a cell sum to (nearly) one; padding gives and takes
    nothing. Memory is (h w)² per image. Source: SEAM, equation 8.
    """
    b, h, w, k = features.shape
    inside = cells.reshape(b, h * w)
    flat = jnp.where(inside[..., None], features.reshape(b, h * w, k), 0.0).astype(jnp.float32)
    # The square root has no gradient at zero, where padding is; there the length counts as 1.
    square = jnp.square(flat).sum(axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    flat = flat / (length + EPSILON)
    similarity = jax.nn.relu(jnp.einsum("bpk,bqk->bpq", flat, flat))
    similarity = similarity / (similarity.sum(axis=1, keepdims=True) + EPSILON)
    return jnp.einsum("bpn,bpq->bqn", maps.reshape(b, h * w, -1), similarity).reshape(b, h, w, -1)


def lowest_mean(values: Float[Array, "b h w"], cells: Cells, share: float) -> Float[Array, " b"]:
    """Mean of the smallest ``share`` of each image's cells: SEAM's adaptive minimum (1/4)."""
    flat, inside = _rows(values), _rows(cells)
    return -_top_mean(-flat, inside, share)


def highest_mean(values: Maps, cells: Cells, share: float) -> Float[Array, " b"]:
    """Mean of the largest ``share`` of all cells and classes of each image: hard examples (0.2)."""
    inside = jnp.broadcast_to(cells[..., None], values.shape)
    return _top_mean(_rows(values), _rows(inside), share)


def equivariance(one: Maps, other: Maps, cells: Cells) -> Float[Array, " b"]:
    """Mean absolute difference of two views' maps over cells and classes, one value per image."""
    inside = cells[..., None].astype(jnp.float32)
    total = (jnp.abs(one - other) * inside).sum(axis=(1, 2, 3))
    return total / (jnp.maximum(inside.sum(axis=(1, 2, 3)), 1.0) * one.shape[-1])


def _rows(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _top_mean(
    values: Float[Array, "b n"], inside: Bool[Array, "b n"], share: float
) -> Float[Array, " b"]:
    """Mean of the largest floor(share × count) of the values inside, at least one.

    The sort is of constants, gradients flow by weights: values that equal the smallest one that
    counts share what is left of the count.
    """
    fixed = jnp.where(inside, jax.lax.stop_gradient(values), -jnp.inf)
    count = inside.sum(axis=1, keepdims=True).astype(jnp.float32)
    wanted = jnp.maximum(jnp.floor(share * count), 1.0)
    ordered = -jnp.sort(-fixed, axis=1)
    last = jnp.take_along_axis(ordered, wanted.astype(jnp.int32) - 1, axis=1)
    above, equal = fixed > last, inside & (fixed == last)
    left = wanted - above.sum(axis=1, keepdims=True).astype(jnp.float32)
    ties = jnp.maximum(equal.sum(axis=1, keepdims=True).astype(jnp.float32), 1.0)
    weights = above.astype(jnp.float32) + equal.astype(jnp.float32) * left / ties
    chosen = jnp.where(weights > 0, values, 0.0) * weights
    return chosen.sum(axis=1) / wanted[:, 0]
