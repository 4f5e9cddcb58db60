"""Photographs as people see them: upright, in 8-bit RGB, and of a size that can be worked with.

The EXIF orientation is honoured, 16-bit and grey are scaled, and photographs above WORKING_PIXELS
are reduced when they are read, so that memory is bounded whatever a camera makes. Not here: masks.
"""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from wsss_jax.data.files import decoded, opened
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.formats.bounded import DAMAGE
from wsss_jax.types import Size

WORKING_PIXELS = 2**20
"""Photographs with more pixels are reduced to about so many when they are read; masks of them, true
and made, have the full size. A photograph of 4000×3000 is worked on as 1182×886."""

WORKING_SIDE = 4096
"""The longest side that photographs are worked on with, for those that are long and narrow."""

VERIFIED = 2**21
"""Pixels up to which ``verify`` decodes all of a photograph."""

_DARK = 32  # of 255; 12 bits in 16 end at 15
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 2**16
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """What a picture says of itself before it is decoded.

    raw: (height, width) as stored. orientation: of EXIF, 1 to 8, 1 is upright. notes: what
    ``verify`` found unusual, in words.
    """

    raw: Size
    orientation: int
    mode: str
    format: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """(height, width) as people see it."""
        return self.raw if self.orientation < 5 else (self.raw[1], self.raw[0])


def working_size(size: Size) -> Size:
    """(height, width) that a photograph of this full size is worked on with."""
    scale = min(math.sqrt(WORKING_PIXELS / max(size[0] * size[1], 1)), WORKING_SIDE / max(*size, 1))
    if scale >= 1:
        return size
    # Rounded down, so that a working size is its own working size.
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def fit_mask(mask: UInt8[np.ndarray, "H W"], size: Size) -> UInt8[np.ndarray, "h w"]:
    """A mask of full size at the size that its photograph is worked on with."""
    if mask.shape == size:
        return mask
    picture = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(picture)


def header(source: Path | bytes, name: Path | str) -> Header:
    """Size, orientation, colour mode and format, without decoding. Raises BadFileError."""
    with opened(source, name) as picture:
        return _header(picture)


def image_size(path: Path) -> Size:
    """(height, width) as people see the picture, from its header. Raises BadFileError."""
    return header(path, path).size


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The photograph at its working size; see ``decode_image``."""
    return decode_image(path, path)


def decode_image(
    source: Path | bytes, name: Path | str, *, whole: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of a file, or of its bytes, as RGB: upright, and at the working size.

    16-bit grey is scaled to 8 bit (value // 257; where none is above 255 they stand as they are),
    palette, CMYK and the like are converted, alpha is dropped. name: what errors call it. whole: at
    full size. Raises BadFileError for what is missing, truncated, not a picture, or above
    MAX_PIXELS.
    """
    with opened(source, name) as picture:
        about = _header(picture)
        size = about.size if whole else working_size(about.size)
        left = 1 if about.format == "TIFF" else about.orientation  # Pillow turns TIFF by itself
        stored = size if left < 5 else (size[1], size[0])
        if stored != about.raw:
            picture.draft(None, (stored[1], stored[0]))  # JPEG skips what would be thrown away
        ready = in_colour(decoded(picture, name), name)
        if (ready.height, ready.width) != stored:
            ready = ready.resize((stored[1], stored[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return np.asarray(turned(ready, left))


def verify(source: Path | bytes, name: Path | str) -> Header:
    """The header of a photograph whose content is there to its end, with notes. BadFileError.

    Up to VERIFIED pixels all is decoded, coarsely where the format can. Of larger ones in JPEG and
    PNG the mark at their end is looked for first, so that 10,000 of a camera take no hour.
    """
    with opened(source, name) as picture:
        about = _header(picture)._replace(notes=_pages(picture))
        deep = picture.mode.startswith("I") or ";16" in str(getattr(picture, "tile", ""))
        mark = _ENDS.get(about.format)
        if mark and math.prod(about.raw) > VERIFIED and mark in _tail(source):
            return about
        picture.draft(None, (1, 1))
        ready = decoded(picture, name)
        ready = ready if ready.mode == "RGB" else in_colour(ready, name)
        return about._replace(notes=(*about.notes, *_darkness(ready))) if deep else about


def _pages(picture: Image.Image) -> tuple[str, ...]:
    """A note of a file with several pictures; the second one of MPO is a view for one eye."""
    several = False
    if picture.format != "MPO":
        with suppress(*DAMAGE):  # of later pictures, which nobody reads
            # Counting them would take long where a file was made to have many.
            several = getattr(picture, "is_animated", False)
    return ("holds several pictures, of which the first is read",) if several else ()


def _darkness(ready: Image.Image) -> tuple[str, ...]:
    """A note of a picture of 16 bits that uses only the lowest of them."""
    highest = np.asarray(ready).max(initial=0)
    if highest >= _DARK:
        return ()
    told = f"its 16-bit values reach {highest} of 255 only; if the camera gives fewer bits, "
    return (f"{told}scale it to 8 bits",)


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture as stored, turned upright as its EXIF orientation says."""
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def in_colour(picture: Image.Image, name: Path | str) -> Image.Image:
    """A decoded picture in 8-bit RGB. Raises BadFileError for values that have no such meaning."""
    try:
        if picture.mode.startswith("I") or picture.mode == "F":
            return Image.fromarray(_in_bytes(np.asarray(picture))).convert("RGB")
        if "transparency" in picture.info and picture.mode == "P":
            picture = picture.convert("RGBA")  # Pillow warns where it is done in one step
        return picture.convert("RGB")
    except DAMAGE as problem:
        raise BadFileError(f"{name}: mode {picture.mode} is not read ({problem})") from problem


def _in_bytes(values: np.ndarray) -> UInt8[np.ndarray, "H W"]:
    """Grey of 16 or 32 bits, or of floats in [0, 1] or [0, 255], as 8 bits."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and 0 <= low and high <= 255:
        return np.round(values * (255 if high <= 1 else 1)).astype(np.uint8)
    if values.dtype.kind == "f" or low < 0 or high > 65535:
        raise UserError(
            f"grey values from {low} to {high}, wanted 0 to 65535, or fractions of 1; save it with "
            "8 bits"
        )
    # What ends at 255 was 8-bit before it was saved with 16; scaled, it would be black.
    return (values // 257 if high > 255 else values).astype(np.uint8)


def _tail(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[-_TAIL:]
    with source.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read()


def _header(picture: Image.Image) -> Header:
    """Of a picture whose pixels were not read yet."""
    orientation, raw = 1, (picture.height, picture.width)
    # Pillow would decode a PNG to look for EXIF behind its pixels.
    if picture.format in ("JPEG", "MPO", "WEBP", "AVIF", "TIFF") or "exif" in picture.info:
        with suppress(*DAMAGE, Warning):  # damaged EXIF tells nothing
            orientation = int(picture.getexif().get(_ORIENTATION, 1))
    known = orientation if orientation in _TURNS else 1
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and known >= 5:
        raw = (picture.tag_v2[_HEIGHT], picture.tag_v2[_WIDTH])
    return Header(raw, known, picture.mode, picture.format or "")
