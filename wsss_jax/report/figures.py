"""Arrays to small pictures inside text: data URIs, colour tables, and one image's IoU.

Score maps and masks are shipped as plain 8-bit PNGs of their values, not of colours: the page
colours, cuts and compares them itself, so that opacity, threshold and palette stay free.
Not here: charts (``charts``) and the page (``page``).
"""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wsss_jax.data.classes import palette
from wsss_jax.types import IGNORE, Size

PHOTO_SIDE = 320
"""Longer side of a shipped photograph and of its masks, in pixels."""
MAP_SIDE = 96
"""Longer side of a shipped score map: twice the grid of a stride-8 network on VOC pictures."""
_JPEG_QUALITY = 80

# Nine points of matplotlib's "inferno" (CC0; van der Walt & Smith 2015): even steps of lightness,
# readable with every common colour vision.
_HEAT = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "fcffa4")

# Okabe & Ito (2008) without black, then Tol's "muted" scheme (2021): pairs stay apart for readers
# with red-green or blue-yellow deficiency, far more than the VOC colours do.
_COLOUR_BLIND = (
    "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7",
    "332288", "88ccee", "44aa99", "117733", "999933", "ddcc77", "cc6677", "882255", "aa4499",
)  # fmt: skip


def fitted(size: Size, side: int) -> Size:
    """The size scaled down, never up, until its longer side is at most ``side``; at least 1×1."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def photo_uri(photo: UInt8[np.ndarray, "H W 3"], side: int = PHOTO_SIDE) -> str:
    """The photograph as a JPEG data URI of at most ``side`` pixels."""
    height, width = fitted((photo.shape[0], photo.shape[1]), side)
    picture = Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return _uri("jpeg", buffer.getvalue())


def mask_uri(mask: UInt8[np.ndarray, "H W"], side: int = PHOTO_SIDE) -> str:
    """Mask values as a grey PNG data URI, by nearest neighbour: no value is ever invented."""
    height, width = fitted((mask.shape[0], mask.shape[1]), side)
    return _png_uri(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def maps_uri(scores: Float[np.ndarray, "h w k"], side: int = MAP_SIDE) -> tuple[str, Size]:
    """Scores in [0, 1] as one grey PNG, maps below each other, and the size of each map.

    1 is written as 255. Values a rounding error outside the range are clipped.
    """
    size = fitted((scores.shape[0], scores.shape[1]), side)
    planes = [_shrunk(scores[..., k].astype(np.float32), size) for k in range(scores.shape[-1])]
    levels = np.rint(255 * np.clip(np.concatenate(planes), 0, 1)).astype(np.uint8)
    return _png_uri(Image.fromarray(levels)), size


def heat_ramp() -> UInt8[np.ndarray, "256 3"]:
    """Colours of the scores 0/255 to 255/255, dark to light."""
    stops = _from_hex(_HEAT)
    at, knots = np.linspace(0, 1, 256), np.linspace(0, 1, len(stops))
    channels = [np.interp(at, knots, stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def class_colours(classes: int) -> dict[str, UInt8[np.ndarray, "n 3"]]:
    """Two palettes over mask values 0..classes-1: VOC's own, and one for colour-blind readers.

    The second has 16 colours for objects; further rounds are the same colours made lighter.
    """
    base = _from_hex(_COLOUR_BLIND)
    safe = np.zeros((classes, 3), np.uint8)
    for value in range(1, classes):
        rounds, place = divmod(value - 1, len(base))
        lighter = 1 - 0.55**rounds
        safe[value] = np.rint(base[place] + lighter * (255.0 - base[place]))
    return {"VOC": palette()[:classes], "colour-blind": safe}


def image_ious(
    mask: UInt8[np.ndarray, "H W"], truth: UInt8[np.ndarray, "H W"], classes: int
) -> Float[np.ndarray, " n"]:
    """IoU per mask value of one image, NaN where a class is in neither; ignored truth counts not.

    A predicted 255 on counted truth is a miss of the true class and a hit of none.
    """
    counted = truth != IGNORE
    mask, truth = mask[counted], truth[counted]
    hits = np.bincount(truth[mask == truth], minlength=256)[:classes]
    union = np.bincount(truth, minlength=256)[:classes] - hits
    union = union + np.bincount(mask, minlength=256)[:classes]
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def _shrunk(plane: np.ndarray, size: Size) -> np.ndarray:
    height, width = size
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))


def _from_hex(colours: tuple[str, ...]) -> np.ndarray:
    return np.array([list(bytes.fromhex(colour)) for colour in colours], np.float64)


def _png_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _uri("png", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
