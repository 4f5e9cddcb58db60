"""Files from outside, read with suspicion, and files of ours, written whole or not at all.

Sizes are checked from the header before anything is allocated, masks are read as class indices
(never through colour conversion), images keep their raw orientation because the masks of VOC and
COCO do, and an id never becomes a path before it has been checked. Not here: what the files mean.
"""

import io
import os
import re
import struct
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.types import Size

MAX_PIXELS = 64_000_000
"""Larger pictures are refused from their header: a 47 KiB PNG can unpack to 400 megapixels."""


_ORIENTATION = 0x0112
_GREY_SLACK = 8  # levels by which JPEG may part the channels of a grey picture
_MOST_COLOURS = 90  # more than any picture of classes has
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # whatever the name says; rare decoders stay shut
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

ImageFile.LOAD_TRUNCATED_IMAGES = False


def check_id(id: str) -> str:
    """The id itself, when it is safe as a file name; else ValueError (``../x``, ``/x``, NUL …)."""
    if not _ID.fullmatch(id):
        raise UserError(
            f"id {id!r} is not usable as a file name: wanted letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, at most 128 characters"
        )
    return id


def path_of(folder: Path, id: str, suffix: str) -> Path:
    """``folder/id+suffix`` for a checked id; refuses links that lead out of the folder."""
    path = folder / f"{check_id(id)}{suffix}"
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is a link that leaves {folder}; copy the file instead")
    return path


def image_size(path: Path) -> Size:
    """(height, width) from the header, without decoding. Raises BadFileError."""
    with _opened(path, path) as picture:
        return picture.height, picture.width


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels as RGB in raw orientation; grey, palette, CMYK and RGBA are converted.

    Raises BadFileError for what is missing, truncated, not a picture, or above MAX_PIXELS.
    """
    with _opened(path, path) as picture:
        return np.asarray(_decoded(picture, path).convert("RGB"))


def read_mask(path: Path) -> UInt8[np.ndarray, "H W"]:
    """Class indices of a palette or 8-bit grey PNG. Raises BadFileError, for RGB masks too."""
    with _opened(path, path) as picture:
        return _indices(picture, path)


def read_levels(path: Path) -> Float[np.ndarray, "H W"]:
    """A picture of grey levels, such as saliency, in [0, 1]: white is 1, whatever its depth.

    8 or 16 bits, with alpha (which is left out), in grey colours, PNG or JPEG. Raises BadFileError,
    for real colours too: nothing tells their values.
    """
    with _opened(path, path) as picture:
        picture = _decoded(picture, path)
        if picture.mode in ("1", "L", "LA"):
            return np.asarray(picture.convert("L"), np.float32) / np.float32(255)
        if picture.mode.startswith("I"):
            return np.asarray(picture, np.float32) / np.float32(65535)
        if picture.mode not in ("RGB", "RGBA", "P", "PA"):
            raise BadFileError(f"{path}: mode {picture.mode}, wanted grey levels")
        channels = np.asarray(picture.convert("RGB"))
    grey = channels[..., 1]
    apart = np.abs(channels.astype(np.int16) - grey[..., np.newaxis]).max(initial=0)
    if apart > _GREY_SLACK:
        raise BadFileError(f"{path}: {colours(channels)}")
    return grey.astype(np.float32) / np.float32(255)


def colours(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    """What a picture of colours is, where scores were wanted, and the file that helps."""
    numbers = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    count = len(np.unique(numbers))
    if count <= _MOST_COLOURS:
        return (
            f"colours of classes ({count} of them, as in *_cmap.png and segs_rgb), not class "
            "numbers; wanted the grey or palette PNG beside it (segs, prediction), or the logits "
            "(<id>.npy with msc_seg or segs)"
        )
    return (
        "colours of a heat map (as infer_cam and cam_on_img draw them): no scores can be read from "
        "them; wanted the .npy of the same run (logits with msc_seg or segs, or the CAM dictionary)"
    )


def decode_image(content: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """As read_image, from the bytes of a file; ``name`` is what errors call it."""
    with _opened(content, name) as picture:
        return np.asarray(_decoded(picture, name).convert("RGB"))


def decode_mask(content: bytes, name: str) -> UInt8[np.ndarray, "H W"]:
    """As read_mask, from the bytes of a file; ``name`` is what errors call it."""
    with _opened(content, name) as picture:
        return _indices(picture, name)


def encoded_size(content: bytes, name: str) -> Size:
    """(height, width) from the header of an encoded picture. Raises BadFileError."""
    with _opened(content, name) as picture:
        return picture.height, picture.width


def encoded_mode(content: bytes, name: str) -> tuple[str, int]:
    """Colour mode ("RGB", "L", "CMYK" …) and EXIF orientation (1 = upright) from the header."""
    with _opened(content, name) as picture:
        try:
            turned = int(picture.getexif().get(_ORIENTATION, 1))
        except (OSError, ValueError, TypeError, SyntaxError, struct.error):
            turned = 1  # damaged EXIF says nothing, and the pixels are read without it
        return picture.mode, turned


def mask_png(mask: UInt8[np.ndarray, "H W"], palette: UInt8[np.ndarray, "256 3"]) -> bytes:
    """The mask as the bytes of an 8-bit palette PNG."""
    picture = Image.fromarray(mask, mode=None).convert("L")
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_atomic(path: Path, content: bytes) -> None:
    """Write to a temporary name, flush to disk, rename: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _opened(source: Path | bytes, name: Path | str) -> Image.Image:
    if isinstance(source, Path) and not source.is_file():
        raise MissingFileError(f"{name}: no such file")
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        picture = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombWarning as problem:  # raised where warnings are errors
        raise BadFileError(f"{name}: too many pixels ({problem})") from problem
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as problem:
        raise BadFileError(f"{name}: not a picture ({problem})") from problem
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise BadFileError(
            f"{name}: {picture.width}×{picture.height} pixels, at most {MAX_PIXELS:,} are read; "
            "scale it down"
        )
    return picture


def _indices(picture: Image.Image, name: Path | str) -> np.ndarray:
    if picture.mode not in ("P", "L"):
        told = f"a mask of mode {picture.mode}, wanted class indices (palette or 8-bit grey)"
        if picture.mode in ("RGB", "RGBA"):
            told += "; these are "
            told += colours(np.asarray(_decoded(picture, name).convert("RGB")))
        raise BadFileError(f"{name}: {told}")
    return np.asarray(_decoded(picture, name))


def _decoded(picture: Image.Image, name: Path | str) -> Image.Image:
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError) as problem:
        raise BadFileError(f"{name}: truncated or damaged ({problem})") from problem
    return picture
