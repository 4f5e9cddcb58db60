"""Files from outside, read with suspicion, and files of ours, written whole or not at all.

Sizes are checked from the header before anything is allocated, masks are read as class indices
(never through colour conversion), images keep their raw orientation because the masks of VOC and
COCO do, and an id never becomes a path before it has been checked. Not here: what the files mean.
"""

import io
import itertools
import json
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.types import Size

MAX_PIXELS = 64_000_000
"""Larger pictures are refused from their header: a 47 KiB PNG can unpack to 400 megapixels."""


_ORIENTATION = 0x0112
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # whatever the name says; rare decoders stay shut
_PARTIAL = ".partial"
_HOST = re.sub(r"[^A-Za-z0-9.]", "_", os.uname().nodename)[:64]
_TEMPORARY = re.compile(rf"\.\d+-(\d+)-([A-Za-z0-9._]+){re.escape(_PARTIAL)}")
_OLD = 86_400.0
_counter = itertools.count()
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


def read_grey(path: Path) -> UInt8[np.ndarray, "H W"]:
    """An 8-bit grey picture, such as saliency; colour is refused. Raises BadFileError."""
    with _opened(path, path) as picture:
        if picture.mode not in ("L", "1"):
            raise BadFileError(f"{path}: mode {picture.mode}, wanted 8-bit grey")
        return np.asarray(_decoded(picture, path).convert("L"))


def decode_image(content: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """As read_image, from the bytes of a file; ``name`` is what errors call it."""
    with _opened(content, name) as picture:
        return np.asarray(_decoded(picture, name).convert("RGB"))


def decode_mask(content: bytes, name: str) -> UInt8[np.ndarray, "H W"]:
    """As read_mask, from the bytes of a file; ``name`` is what errors call it."""
    with _opened(content, name) as picture:
        return _indices(picture, name)


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
    """Write to a temporary name, flush to disk, rename: readers see the old file or the new one.

    The file's modes are those of the user's umask. What processes that were killed left in the
    folder is removed. Raises OSError that names the file, for a full disk among others.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.resolve())
        temporary = path.with_name(f".{next(_counter)}-{os.getpid()}-{_HOST}{_PARTIAL}")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in every OSError of the block: a write to a full disk does not by itself."""
    try:
        yield
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror or str(problem), str(path)) from problem


def read_json(path: Path) -> Any:
    """The content of a JSON file. MissingFileError; BadFileError for anything that is no JSON."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, UserError):
            raise
        reason = f"{type(problem).__name__}: {problem}"
        raise BadFileError(f"{path}: damaged, or no JSON ({reason})") from problem


@cache
def _sweep(folder: Path) -> None:
    """Once per process and folder: remove temporary files of processes that are no more.

    Of other hosts nobody knows here; theirs go when they are a day old.
    """
    for entry in os.scandir(folder):
        found = _TEMPORARY.fullmatch(entry.name)
        if found is None:
            continue
        process, host = int(found[1]), found[2]
        try:
            gone = not _runs(process) if host == _HOST else _age(entry) > _OLD
        except FileNotFoundError:
            continue  # renamed in the meantime
        if gone:
            Path(entry.path).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    return True


def _age(entry: os.DirEntry[str]) -> float:
    return time.time() - entry.stat().st_mtime


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
        raise BadFileError(
            f"{name}: a mask of mode {picture.mode}, wanted class indices (palette or 8-bit "
            "grey); colours say nothing about classes without their table"
        )
    return np.asarray(_decoded(picture, name))


def _decoded(picture: Image.Image, name: Path | str) -> Image.Image:
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError) as problem:
        raise BadFileError(f"{name}: truncated or damaged ({problem})") from problem
    return picture
