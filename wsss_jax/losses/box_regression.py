"""Boxes as numbers to learn: their two forms, and the losses of the difference of two.

Corners are (top, left, bottom, right), as everywhere else; what is learned is (x, y, h, w) with the
box's centre at (x, y). Both in shares of the image's height and width. Corners without area, such
as zeros, stand for no box. Not here: networks, and boxes in files (``datasets.boxes``).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

BETA = 1 / 9
"""Errors below this are squared: the σ = 3 of Faster R-CNN's code (β = 1/σ²)."""


def centred(corners: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """(x, y, h, w) of corners."""
    top, left, bottom, right = jnp.moveaxis(corners, -1, 0)
    return jnp.stack([(left + right) / 2, (top + bottom) / 2, bottom - top, right - left], axis=-1)


def corners(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Corners of (x, y, h, w); they may lie outside of the image."""
    x, y, h, w = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=-1)


def exist(corners: Float[Array, "*b 4"]) -> Bool[Array, "*b"]:
    """Which corners are those of a box: it has area."""
    return (corners[..., 2] > corners[..., 0]) & (corners[..., 3] > corners[..., 1])


def smooth_l1(error: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """e² / 2β for |e| < β, else |e| − β/2: one box that is far off weighs little more than others.

    Source: Girshick 2015 (Fast R-CNN), equation 3, with the β of Ren et al. 2015; Huber's loss / β.
    """
    size = jnp.abs(error)
    return jnp.where(size < BETA, size**2 / (2 * BETA), size - BETA / 2)


REGRESSIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {"smooth_l1": smooth_l1, "squared": jnp.square}
)
"""What an error of one of the four numbers costs, by name."""


def mean_loss(
    found: Float[Array, "b c 4"], given: Float[Array, "b c 4"], cost: Callable[[Array], Array]
) -> Float[Array, ""]:
    """Sum over the four numbers, mean over the boxes that are given; 0 where none is.

    found: (x, y, h, w). given: corners. Source: ‖(x, y, w, h) − (x, y, w, h)'‖² of the lecture
    "Localization and CNN Explanations" (Boracchi), for the cost ``squared``.
    """
    known = exist(given)
    each = cost(found - centred(given)).sum(axis=-1)
    return jnp.where(known, each, 0.0).sum() / jnp.maximum(known.sum().astype(jnp.float32), 1.0)
