"""Labels of cells from masks of pixels: where classes meet, and what is an object.

Masks hold IGNORE where nothing is known; nothing is said of cells that cannot be decided.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from wsss_jax.types import IGNORE

BASE = 85
"""Values a plane may take when two planes travel in one byte: classes 0 … 83, and 84 unknown."""

Masks = Int[Array, "b h w"]
Cells = Int[Array, "b h2 w2"]


def class_boundaries(masks: Masks) -> Masks:
    """1 where a 3×3 window around a known pixel holds two classes, 0 where it holds one, known.

    IGNORE elsewhere: pixels that are unknown, or have an unknown neighbour and no other class
    beside them. Beyond the canvas nothing is said, and nothing is asked.
    """
    unknown = masks == IGNORE
    height, width = masks.shape[1:]
    padded = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)), mode="edge")
    other = jnp.zeros(masks.shape, bool)
    near_unknown = jnp.zeros(masks.shape, bool)
    for i in range(3):
        for j in range(3):
            view = padded[:, i : i + height, j : j + width]
            near_unknown |= view == IGNORE
            other |= (view != IGNORE) & (view != masks)
    labels = jnp.where(other, 1, jnp.where(near_unknown, IGNORE, 0))
    return jnp.where(unknown, IGNORE, labels).astype(masks.dtype)


def any_in_cell(labels: Masks, stride: int) -> Cells:
    """1 for cells with a pixel of 1, else IGNORE for those with an unknown pixel, else 0."""
    blocks = _blocks(labels, stride)
    found = (blocks == 1).any(axis=(2, 4))
    unknown = (blocks == IGNORE).any(axis=(2, 4))
    return jnp.where(found, 1, jnp.where(unknown, IGNORE, 0)).astype(labels.dtype)


def most_of_cell(labels: Masks, stride: int) -> Cells:
    """What most known pixels of a cell are, 0 or 1; IGNORE where none is known or both tie."""
    blocks = _blocks(labels, stride)
    balance = jnp.where(blocks == IGNORE, 0, 2 * blocks - 1).sum(axis=(2, 4))
    return jnp.where(balance > 0, 1, jnp.where(balance < 0, 0, IGNORE)).astype(labels.dtype)


def packed(
    objects: UInt8[np.ndarray, "H W"], classes: UInt8[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W"]:
    """Two masks in one byte plane, which augmentation moves as one; 255 stays free for padding.

    objects: 0, 1 or IGNORE. classes: mask values, or IGNORE. Raises ValueError for values that do
    not fit.
    """
    low = np.where(classes == IGNORE, BASE - 1, classes)
    high = np.where(objects == IGNORE, 2, objects)
    if high.max() > 2 or (classes[classes != IGNORE] >= BASE - 1).any():
        raise ValueError(
            f"objects up to {high.max()} and classes up to {low.max()}: wanted objects 0 or 1, and "
            f"classes below {BASE - 1}"
        )
    return (high * BASE + low).astype(np.uint8)


def unpacked(planes: Masks) -> tuple[Masks, Masks]:
    """Objects and classes of ``packed`` planes, IGNORE on padding."""
    outside = planes == IGNORE
    high, low = planes // BASE, planes % BASE
    objects = jnp.where(outside | (high == 2), IGNORE, high)
    classes = jnp.where(outside | (low == BASE - 1), IGNORE, low)
    return objects.astype(planes.dtype), classes.astype(planes.dtype)


def _blocks(labels: Masks, stride: int) -> Int[Array, "b h2 s w2 s"]:
    """The pixels of each cell along two axes of their own; unknown ones fill the last cells up."""
    rows, columns = (-n % stride for n in labels.shape[1:])
    padded = jnp.pad(labels, ((0, 0), (0, rows), (0, columns)), constant_values=IGNORE)
    height, width = (n // stride for n in padded.shape[1:])
    return padded.reshape(labels.shape[0], height, stride, width, stride)
