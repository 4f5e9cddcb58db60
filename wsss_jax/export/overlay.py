"""A photograph with its mask drawn over it, and the names of the classes below."""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from wsss_jax.data.classes import ClassList, palette
from wsss_jax.types import IGNORE

OPACITY = 0.5
"""Of a class's colour inside its region; on the border of the region it covers all."""

_PAPER, _INK = (255, 255, 255), (25, 25, 25)
_NARROWEST = 160
_UNKNOWN = "not decided"


def drawn_over(
    photo: UInt8[np.ndarray, "H W 3"], mask: UInt8[np.ndarray, "H W"], classes: ClassList
) -> UInt8[np.ndarray, "h w 3"]:
    """The photograph, its regions in the colours of mask files, above a legend of what is shown.

    Raises ValueError where the mask has another size.
    """
    if photo.shape[:2] != mask.shape:
        raise ValueError(f"a mask of {mask.shape} for a photograph of {photo.shape[:2]}")
    colours = palette()[mask].astype(np.float32)
    strength = np.where(_borders(mask), 1.0, OPACITY) * (mask > 0)
    blended = photo + strength[..., None].astype(np.float32) * (colours - photo)
    names = {value: name for value, name in enumerate(classes.mask_names()) if value}
    shown = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)).tolist()
    entries = [(names.get(value, _UNKNOWN), value) for value in shown if value]
    return _above_legend(np.rint(blended).astype(np.uint8), entries)


def _borders(mask: UInt8[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels with a neighbour of another value."""
    border = np.zeros(mask.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differs = mask[first] != mask[second]
        border[first] |= differs
        border[second] |= differs
    return border


def _above_legend(picture: np.ndarray, entries: list[tuple[str, int]]) -> np.ndarray:
    """The picture with one coloured box and name per entry below, in as many lines as needed."""
    height, width = picture.shape[:2]
    text = max(12, min(width, 2000) // 40)
    font = ImageFont.load_default(text)
    gap, line = text // 2, text + text // 2
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    wide = [round(pen.textlength(name, font)) + 3 * gap + text for name, _ in entries]
    across = max([width, _NARROWEST, *(part + gap for part in wide)])
    places, left, row = [], gap, 0
    for part in wide:
        if left + part > across and left > gap:
            left, row = gap, row + 1
        places.append((left, height + gap + row * line))
        left += part
    below = 2 * gap + (row + 1) * line if entries else 0
    canvas = Image.new("RGB", (across, height + below), _PAPER)
    canvas.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for (name, value), (x, y) in zip(entries, places, strict=True):
        fill = tuple(palette()[value].tolist())
        pen.rectangle((x, y, x + text, y + text), fill=fill, outline=_INK)
        pen.text((x + text + gap, y), name, _INK, font)
    return np.asarray(canvas)
