"""What Puzzle-CAM, OC-CSE, P-OC and P-NOC add to a classifier's loss, as functions of arrays.

Schedules, tiles and their reconstruction, the choice of a class and its erasure from the image.
Sources: Jo & Yu 2021 (Puzzle-CAM), Kweon et al. 2021 (OC-CSE), David et al. 2024 (P-NOC) and their
published code. Where grids matter, ``cells`` says which cells of a map belong to the image, so
that padding changes nothing. Not here: networks, and what SEAM adds (``equivariance``).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from wsss_jax.ops.images import sample_within
from wsss_jax.types import Size

EPSILON = 1e-5
"""Added to a maximum before dividing by it, as the published codes do."""


def linear_schedule(
    step: Int[Array, ""] | int, total: int, *, first: float, last: float, share: float
) -> Float[Array, ""]:
    """From ``first`` at step 0 to ``last`` after ``share`` of all steps, then ``last``.

    share 0 is ``last`` from the start. Source: P-NOC's linear_schedule; Puzzle-CAM's weight of
    the reconstruction is (0, 4, 1/2).
    """
    if share <= 0 or total <= 0:
        return jnp.asarray(last, jnp.float32)
    done = jnp.asarray(step).astype(jnp.float32) / (total * share)
    return first + (last - first) * jnp.minimum(done, 1.0)


def staged_schedule(
    step: Int[Array, ""] | int, total: int, *, first: float, last: float, stages: int
) -> Float[Array, ""]:
    """``stages`` equal spans of constant value, evenly from ``first`` to ``last``.

    Source: OC-CSE's weight, 0.3 + 0.05 × epoch over 15 epochs: 0.3, 0.35, … 1.0.
    """
    if stages < 2 or total <= 0:
        return jnp.asarray(last, jnp.float32)
    stage = jnp.floor(jnp.asarray(step).astype(jnp.float32) * stages / total)
    return first + (last - first) * jnp.minimum(stage, stages - 1) / (stages - 1)


def tile(x: Shaped[Array, "b h w c"], pieces: int) -> Shaped[Array, "b2 h2 w2 c"]:
    """Cut each image into pieces × pieces tiles, which become images of their own.

    The tiles of one image follow one another, row by row, so that they stay on its device; the
    published code puts all first tiles first, which nothing here depends on. Raises ValueError
    where the size does not divide.
    """
    b, h, w, c = x.shape
    if h % pieces or w % pieces:
        raise ValueError(f"an image of {h} by {w} does not fall into {pieces} by {pieces} tiles")
    cut = x.reshape(b, pieces, h // pieces, pieces, w // pieces, c).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(b * pieces * pieces, h // pieces, w // pieces, c)


def merge(x: Shaped[Array, "b2 h2 w2 c"], pieces: int) -> Shaped[Array, "b h w c"]:
    """Put tiles together again: merge(tile(x, n), n) is x."""
    b, h, w, c = x.shape
    if b % (pieces * pieces):
        raise ValueError(f"{b} tiles are no whole number of {pieces} by {pieces} images")
    cut = x.reshape(-1, pieces, pieces, h, w, c).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, pieces * h, pieces * w, c)


def pooled(maps: Float[Array, "b h w c"], cells: Bool[Array, "b h w"]) -> Float[Array, "b c"]:
    """Mean over the cells of each image, zero where it has none: the logits of class maps."""
    weights = cells.astype(jnp.float32)
    total = jnp.einsum("bhwc,bhw->bc", maps.astype(jnp.float32), weights)
    return total / jnp.maximum(weights.sum(axis=(1, 2)), 1.0)[:, None]


def every_class(labels: Bool[Array, "b c"]) -> Float[Array, "b c"]:
    """Reconstruct the maps of all classes, present or not: the mean over them."""
    return jnp.full(labels.shape, 1 / labels.shape[1], jnp.float32)


def masked_classes(labels: Bool[Array, "b c"]) -> Float[Array, "b c"]:
    """Reconstruct present classes, absent ones count as zero difference (Puzzle-CAM's choice).

    The mean is over all classes, so the more classes a data set has, the weaker the term.
    """
    return labels.astype(jnp.float32) / labels.shape[1]


def selected_classes(labels: Bool[Array, "b c"]) -> Float[Array, "b c"]:
    """Reconstruct present classes, mean over these alone."""
    present = labels.astype(jnp.float32)
    return present / jnp.maximum(present.sum(axis=1, keepdims=True), 1.0)


RECONSTRUCTIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {"every": every_class, "masking": masked_classes, "selection": selected_classes}
)
"""How much each class of an image counts in its reconstruction (b,c), by Puzzle-CAM's names."""

DISTANCES: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {"l1": jnp.abs, "l2": jnp.square}
)
"""How the difference of two maps is measured, cell by cell."""


def reconstruction(
    maps: Float[Array, "b h w c"],
    rebuilt: Float[Array, "b h w c"],
    cells: Bool[Array, "b h w"],
    weights: Float[Array, "b c"],
    distance: Callable[[Array], Array] = jnp.abs,
) -> Float[Array, " b"]:
    """How far maps rebuilt from tiles are from those of the whole image, one value per image.

    The mean over the image's cells of the distance, summed over classes by ``weights`` (see
    RECONSTRUCTIONS). Both sides learn. Source: Puzzle-CAM, equation 5; where we differ: cells of
    padding do not count.
    """
    difference = distance((maps - rebuilt).astype(jnp.float32))
    return (pooled(difference, cells) * weights).sum(axis=1)


def cosine_distance(x: Float[Array, "b *s"], y: Float[Array, "b *s"]) -> Float[Array, " b"]:
    """1 - cosine of the angle between two arrays per image, in [0, 2]; 1 where one of them is zero.

    Each is divided by its largest value first: gradients of images are as small as 1e-8.
    """

    def unit(z: Array) -> Array:
        flat = z.astype(jnp.float32).reshape(z.shape[0], -1)
        largest = jnp.abs(flat).max(axis=1, keepdims=True)
        scaled = flat / jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
        # The square root has no derivative at zero, so something is added that squares of 1 hide.
        return scaled * jax.lax.rsqrt(jnp.square(scaled).sum(axis=1, keepdims=True) + 1e-12)

    return 1 - (unit(x) * unit(y)).sum(axis=1)


def chosen_class(labels: Bool[Array, "b c"], key: PRNGKeyArray) -> Bool[Array, "b c"]:
    """One present class per image, uniformly; none where none is present. Source: OC-CSE."""
    draws = jax.random.uniform(key, labels.shape)
    best = jnp.where(labels, draws, -1.0).argmax(axis=1)
    return labels & (jnp.arange(labels.shape[1])[None, :] == best[:, None])


def at_pixels(
    maps: Float[Array, "b h w"], size: Size, *, stride: int, lean: float
) -> Float[Array, "b H W"]:
    """Maps at every pixel, bilinear: cells lie where the network looked, edges are repeated.

    lean: which of its stride pixels a cell looks at, 0 (first) to 1 (last), see types.Backbone.
    The published codes stretch maps as if their cells tiled the image: lean 1/2.
    """
    b, h, w = maps.shape
    cells = jnp.broadcast_to(jnp.asarray([h, w], jnp.int32), (b, 2))
    pixels = jnp.broadcast_to(jnp.asarray(size, jnp.int32), (b, 2))
    step = jnp.full((b, 2), 1 / stride, jnp.float32)
    start = jnp.full((b, 2), -(stride - 1) * lean / stride, jnp.float32)
    return sample_within(maps[..., None], cells, pixels, size, start=start, step=step)[..., 0]


def soft_mask(maps: Float[Array, "b H W"], real: Bool[Array, " b"]) -> Float[Array, "b H W"]:
    """How much of each pixel to erase, in [0, 1): rectified maps over the maximum of the BATCH.

    A class that is hardly seen in its image is therefore hardly erased. Gradients flow through
    it. real: rows that count for the maximum. Source: OC-CSE (and P-NOC's generator).
    """
    maps = jnp.where(real[:, None, None], jax.nn.relu(maps), 0.0)
    return maps / (maps.max() + EPSILON)


def hard_mask(maps: Float[Array, "b H W"], threshold: float) -> Float[Array, "b H W"]:
    """1 where the rectified map exceeds this part of its image's maximum, else 0.

    Source: P-NOC's "not so ordinary" classifier, threshold 0.2.
    """
    maps = jax.nn.relu(maps)
    share = maps / (maps.max(axis=(1, 2), keepdims=True) + EPSILON)
    return (share > threshold).astype(jnp.float32)


def erase(
    images: Float[Array, "b H W 3"], mask: Float[Array, "b H W"], colour: tuple[float, ...]
) -> Float[Array, "b H W 3"]:
    """Images in [0, 1] faded to ``colour`` by the mask, 1 everything, 0 nothing.

    With a network's mean colour this is x (1 - m) on normalised images, as published.
    """
    mean = jnp.asarray(colour, images.dtype)[None, None, None]
    return mean + (images - mean) * (1 - mask[..., None])
