"""Connected components of masks, and the box around what a score map shows most.

Pixels that touch at a corner are connected (8 neighbours), as in skimage and OpenCV. Boxes are
(top, left, bottom, right) in pixels, the last two exclusive; a box without pixels is (0, 0, 0, 0).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

BOX_SHARE = 0.2
"""Share of the maximum above which a pixel belongs to the object (Zhou et al. 2016, CAM)."""

_CORNERS_TOUCH = np.ones((3, 3), bool)


class Box(NamedTuple):
    """Half-open pixel ranges: rows top to bottom - 1, columns left to right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


def largest_component(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest 8-connected region of a mask; of equal ones the first in reading order."""
    from scipy import ndimage  # a quarter of a second, which most commands do without

    labels = np.zeros(mask.shape, np.int32)
    if not ndimage.label(mask, structure=_CORNERS_TOUCH, output=labels):
        return np.zeros_like(mask)
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def box_around(mask: Bool[np.ndarray, "h w"]) -> Box:
    """The smallest box that holds every pixel of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return Box(0, 0, 0, 0)
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def score_box(scores: Float[np.ndarray, "h w"], *, share: float = BOX_SHARE) -> Box:
    """Box around the largest component of the pixels above ``share`` times the maximum.

    A map without a positive score has an empty box. Source: Zhou et al. 2016, section 3.2; later
    papers (Grad-CAM) use 0.15.
    """
    peak = scores.max(initial=0)
    return box_around(largest_component((scores > share * peak) & (scores > 0)))


def box_iou(first: Box, second: Box) -> float:
    """Area that two boxes share over the area that they cover, in [0, 1]; 0 if both are empty."""
    rows = min(first.bottom, second.bottom) - max(first.top, second.top)
    columns = min(first.right, second.right) - max(first.left, second.left)
    shared = max(rows, 0) * max(columns, 0)
    covered = first.area + second.area - shared
    return shared / covered if covered else 0.0
