"""The closed form of each system: its map × saliency, after a random walk, maximum 1 per class.

Arrays only, and nothing learned. Axes: b images, s systems, an (h,w) grid, k class slots. Cells
that are not ``inside`` are zero in every result.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wsss_jax.ops import affinity, walk
from wsss_jax.ops.affinity import Affinity

_TINY = 1e-6

LEADING = 24
"""Frozen channels that a walk goes along: the first, which differ most from image to image."""

LIKENESS = 0.28
"""Deviation of these features, in standard deviations of a channel over all images."""

COLOUR, COLOUR_WITH_FEATURES = 0.06, 0.08
"""Deviation of colours, in units of [0, 1]; wider where features tell cells apart too."""

RADIUS, SPACE = 5, 3.0
"""How far a cell's neighbours lie, and the deviation of their distance, in cells."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Evidence:
    """A batch of images on one canvas.

    images: (b,h,w,3) RGB in [0, 1]. features: (b,h,w,f) leading channels of a frozen network, f may
    be 0. scores: (b,s,h,w,k) in [0, 1]. available: (b,s,k). present: (b,k), False on slots that
    only fill up. saliency: (b,h,w) in [0, 1], 1 where an image has none. inside: (b,h,w), False on
    padding.
    """

    images: Any
    features: Any
    scores: Any
    available: Any
    present: Any
    saliency: Any
    inside: Any


def of_each_system(evidence: Evidence, *, steps: int) -> Float[Array, "b s h w k"]:
    """Each system's map × (½ + ½ saliency), after a walk of ``steps``, maximum 1 for each class.

    A class that a system lacks has the mean of the other systems' maps. Half of the saliency's
    weight stays, since saliency misses objects. The walk is along colours and, where there are
    any, along frozen features.
    """
    scores = filled(evidence.scores, evidence.available)
    maps = scores * (0.5 + 0.5 * evidence.saliency)[:, None, :, :, None]
    maps = jnp.where(evidence.inside[:, None, :, :, None], maps, 0)
    b, s, h, w, k = maps.shape
    rows = normalised(maps).transpose(0, 2, 3, 1, 4).reshape(b, h, w, s * k)
    if steps:
        rows = walk.propagate(rows, neighbours(evidence), beta=1.0, steps=steps)
    return normalised(rows.reshape(b, h, w, s, k).transpose(0, 3, 1, 2, 4))


def filled(
    scores: Float[Array, "b s h w k"], available: Bool[Array, "b s k"]
) -> Float[Array, "b s h w k"]:
    """The scores, with the mean of the others where a system lacks a class; 0 where all lack it."""
    known = available[:, :, None, None, :]
    count = jnp.maximum(known.sum(axis=1, keepdims=True), 1).astype(scores.dtype)
    mean = jnp.where(known, scores, 0).sum(axis=1, keepdims=True) / count
    return jnp.where(known, scores, mean)


def neighbours(evidence: Evidence) -> Affinity:
    """How far neighbouring cells belong together, by colour, position and frozen features."""
    frozen = evidence.features.shape[-1] > 0
    colour = affinity.from_colour(
        evidence.images,
        radius=RADIUS,
        sigma_colour=COLOUR_WITH_FEATURES if frozen else COLOUR,
        sigma_space=SPACE,
        inside=evidence.inside,
    )
    if not frozen:
        return colour
    similar = affinity.from_likeness(
        evidence.features, radius=RADIUS, sigma=LIKENESS, inside=evidence.inside
    )
    return Affinity(colour.values * similar.values, RADIUS)


def normalised(maps: Float[Array, "b s h w k"]) -> Float[Array, "b s h w k"]:
    """Each map divided by its maximum over the grid; 0 where it has no positive score."""
    peak = maps.max(axis=(2, 3), keepdims=True)
    return jnp.maximum(maps, 0) / jnp.maximum(peak, _TINY)
