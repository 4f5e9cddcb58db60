"""Outlines of regions along the edges of their pixels, as polygons that fill back exactly.

A corner (x, y) is a whole number of pixels from the upper left of the image, so the outline of one
pixel is a square of side 1. Pixels that touch at a corner are one region, as in ``components``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

Loop = Float[np.ndarray, "n 2"]
"""Corners (x, y) of a closed line; the last is joined to the first."""

_Corner = tuple[int, int]
_Heading = tuple[int, int]
_Edges = dict[_Corner, list[_Heading]]
_CORNERS_TOUCH = np.ones((3, 3), bool)


class Outline(NamedTuple):
    """One connected region: its outer line, clockwise as seen on the screen, and its holes."""

    outer: Loop
    holes: tuple[Loop, ...]


def regions(mask: Bool[np.ndarray, "H W"]) -> Iterator[tuple[Bool[np.ndarray, "H W"], tuple]]:
    """Each 8-connected region of a mask in reading order, and the slices of the box around it.

    The first is the region's pixels inside that box.
    """
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, structure=_CORNERS_TOUCH, output=labels)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        yield labels[box] == number, box


def outline(region: Bool[np.ndarray, "h w"]) -> Outline:
    """The lines around one 8-connected region. Raises ValueError where it has no pixel."""
    loops = _loops(region)
    if not loops:
        raise ValueError("an empty region has no outline")
    # The line with the uppermost corner is the outer one, and comes first.
    return Outline(loops[0], tuple(loops[1:]))


def bridged(shape: Outline) -> Loop:
    """The region as one line: each hole is joined to the outer line by a cut of no width.

    Filled by the even-odd rule it gives the region, holes left out; for formats whose polygons
    have no holes.
    """
    line = shape.outer
    for hole in shape.holes:
        # From the hole's uppermost corner: all pairs of corners would take minutes on a photograph.
        at = int(((line - hole[0]) ** 2).sum(axis=-1).argmin())
        line = np.concatenate([line[: at + 1], hole, hole[:1], line[at:]])
    return line


def _loops(region: np.ndarray) -> list[Loop]:
    """All closed lines between the region and what is not, the region on their right."""
    headings = _edges(region)
    unused = {(corner, heading) for corner, found in headings.items() for heading in found}
    loops = []
    for corner in sorted(headings):
        for heading in headings[corner]:
            line = []
            edge, before = (corner, heading), None
            while edge in unused:
                unused.remove(edge)
                (y, x), (down, right) = edge
                if edge[1] != before:
                    line.append((x, y))
                before = edge[1]
                edge = _next((y + down, x + right), before, headings)
            if line:
                loops.append(np.asarray(line, np.float64))
    return loops


def _next(corner: _Corner, heading: _Heading, headings: _Edges) -> tuple[_Corner, _Heading]:
    """The edge that follows; to the left where two start, so that touching pixels stay joined."""
    choices = headings[corner]
    left = (-heading[1], heading[0])
    return corner, choices[0] if len(choices) == 1 else left


def _edges(region: np.ndarray) -> _Edges:
    """The directions of the pixel edges that start at each corner, the region on their right."""
    padded = np.pad(region, 1)
    sides: tuple[tuple[np.ndarray, _Corner, _Heading], ...] = (
        (padded[:-2, 1:-1], (0, 0), (0, 1)),  # nothing above: right along the upper edge
        (padded[1:-1, 2:], (0, 1), (1, 0)),
        (padded[2:, 1:-1], (1, 1), (0, -1)),
        (padded[1:-1, :-2], (1, 0), (-1, 0)),
    )
    headings: _Edges = {}
    for neighbour, (down, right), heading in sides:
        for y, x in np.argwhere(region & ~neighbour).tolist():
            headings.setdefault((y + down, x + right), []).append(heading)
    return headings
