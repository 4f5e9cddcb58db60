"""Arrays to text that a page can carry: photographs, packed values, colour tables.

Score maps and masks are shipped as 8-bit values, not as colours: the page colours, cuts and
compares them itself, so that opacity, threshold and palette stay free. They are packed bytes and
not PNGs, because browsers that guard against fingerprinting add noise to pixels read from a canvas.
Not here: charts (``charts``) and the page (``page``).
"""

import base64
import io
import zlib

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wsss_jax.data.classes import palette
from wsss_jax.ops import metrics
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

# Tol's "bright" scheme (2021), so that a system is not taken for a class.
_SYSTEMS = ("4477aa", "ee6677", "228833", "ccbb44", "66ccee", "aa3377")


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
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def mask_values(mask: UInt8[np.ndarray, "H W"], side: int = PHOTO_SIDE) -> str:
    """Packed mask values of at most ``side`` pixels, by nearest neighbour: none is invented."""
    height, width = fitted((mask.shape[0], mask.shape[1]), side)
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return packed(np.asarray(small))


def map_values(scores: Float[np.ndarray, "h w k"], side: int = MAP_SIDE) -> tuple[str, Size]:
    """Packed scores, 255 for 1, one map after the other, and the size of each map.

    Values a rounding error outside [0, 1] are clipped.
    """
    size = fitted((scores.shape[0], scores.shape[1]), side)
    planes = np.zeros((scores.shape[-1], *size), np.float32)
    for k in range(len(planes)):
        planes[k] = _shrunk(scores[..., k].astype(np.float32), size)
    return packed(np.rint(255 * np.clip(planes, 0, 1)).astype(np.uint8)), size


def packed(values: UInt8[np.ndarray, "..."]) -> str:
    """Bytes as text: each as its difference to the one before (mod 256), deflated, in base 64.

    Neighbours are similar in maps and masks, so that differences deflate better than values.
    """
    flat = values.ravel()
    steps = np.diff(flat, prepend=np.uint8(0)).astype(np.uint8)
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode("ascii")


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
    ground = np.zeros((1, 3), np.uint8)
    safe = np.concatenate([ground, _rounds(_COLOUR_BLIND, classes - 1)])
    return {"VOC": palette()[:classes], "colour-blind": safe}


def system_colours(systems: int) -> UInt8[np.ndarray, "n 3"]:
    """One colour per system; from the seventh on the same colours made lighter."""
    return _rounds(_SYSTEMS, systems)


def image_ious(
    mask: UInt8[np.ndarray, "H W"], truth: UInt8[np.ndarray, "H W"], classes: int
) -> Float[np.ndarray, " n"]:
    """IoU per mask value of one image, background first, NaN where a class is in neither.

    A pixel the mask leaves open (255) counts as background. Raises ValueError for values that are
    no class.
    """
    decided = np.where(mask == IGNORE, np.uint8(0), mask)
    return metrics.iou(metrics.confusion(truth, decided, classes - 1).counts)


def _rounds(colours: tuple[str, ...], count: int) -> UInt8[np.ndarray, "n 3"]:
    """As many colours as are wanted: the given ones, then lighter ones."""
    base, found = _from_hex(colours), np.zeros((count, 3), np.uint8)
    for place in range(count):
        lighter = 1 - 0.55 ** (place // len(base))
        colour = base[place % len(base)]
        found[place] = np.rint(colour + lighter * (255.0 - colour))
    return found


def _shrunk(plane: np.ndarray, size: Size) -> np.ndarray:
    height, width = size
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))


def _from_hex(colours: tuple[str, ...]) -> np.ndarray:
    return np.array([list(bytes.fromhex(colour)) for colour in colours], np.float64)
