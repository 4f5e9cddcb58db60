"""Pictures from outside, read with suspicion, and files of ours, written whole or not at all.

Sizes are checked from the header before anything is allocated, masks are read as class indices
(never through colour conversion), and an id never becomes a path before it was made safe. Not
here: photographs as people see them (``photographs``), masks in other people's forms
(``mask_files``), and what the files mean.
"""

import io
import itertools
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from wsss_jax.data.ids import check_id, disk_name
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import DAMAGE
from wsss_jax.types import Size

MAX_PIXELS = 128_000_000
"""Larger pictures are refused from their header: a 47 KiB PNG can unpack to 400 megapixels."""

MAX_SIDE = 100_000
"""Longer sides are refused too: the decoder takes memory and time for every row, even an empty one.
JPEG ends at 65,535."""

MOST_SCANS = 100
"""Progressive JPEGs of more scans are refused; cameras and converters write about ten. Every scan
passes over the whole picture, so that a file of 400 KB could take minutes."""

SLOW: MappingProxyType[str, int] = MappingProxyType(
    {"ppm": 4_000_000, "ppm_plain": 4_000_000, "bmp_rle": 16_000_000}
)
"""Pixels of what Pillow decodes in Python, a second or so for each million: netpbm as text or of
other depths than 8 bits, and BMP of run lengths. Larger ones are refused."""

_MOST_LEVELS = 64_000_000
"""Pixels of a picture that is read as numbers of four bytes."""

FORMATS = (
    "JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "TGA", "AVIF",
)  # fmt: skip
"""What is read, whatever the name of the file says; decoders that run programs stay shut."""

_GREY_SLACK = 8  # levels by which JPEG may part the channels of a grey picture
_MOST_COLOURS = 90  # more than any picture of classes has
_PARTIAL = ".partial"
_HOST = re.sub(r"[^A-Za-z0-9.]", "_", os.uname().nodename)[:64]
_TEMPORARY = re.compile(rf"\.\d+-(\d+)-([A-Za-z0-9._]+){re.escape(_PARTIAL)}")
_OLD = 86_400.0
_counter = itertools.count()

ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow would warn above 89 megapixels; here larger pictures than MAX_PIXELS are an error.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Of damaged tags of TIFF it would print lines that name no file; lacking pixels are errors.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def path_of(folder: Path, id: str, suffix: str) -> Path:
    """Where a record of ours lies: by ``ids.disk_name``; refuses links that lead out."""
    return _inside(folder, folder / f"{disk_name(check_id(id))}{suffix}")


def named_file(folder: Path, id: str, suffix: str) -> Path:
    """A file that other tools named by the id: as it stands, else as we would name it.

    The file need not be there. ValueError for links, and for names, that lead out of the folder.
    """
    plain = folder / f"{check_id(id)}{suffix}"
    named = plain.is_file() and "\\" not in id
    return _inside(folder, plain) if named else path_of(folder, id, suffix)


def image_size(path: Path) -> Size:
    """(height, width) from the header, without decoding. Raises BadFileError."""
    with opened(path, path) as picture:
        return picture.height, picture.width


def read_mask(path: Path) -> UInt8[np.ndarray, "H W"]:
    """Class indices of a palette or 8-bit grey PNG. Raises BadFileError, for RGB masks too."""
    with opened(path, path) as picture:
        return _indices(picture, path)


def read_levels(path: Path) -> Float[np.ndarray, "H W"]:
    """A picture of grey levels, such as saliency, in [0, 1]: white is 1, whatever its depth.

    8 or 16 bits, with alpha (which is left out), in grey colours, PNG or JPEG. Raises BadFileError,
    for real colours too: nothing tells their values.
    """
    with opened(path, path) as picture:
        if picture.width * picture.height > _MOST_LEVELS:
            _refuse(picture, path, f"at most {_MOST_LEVELS:,} of grey levels")
        picture = decoded(picture, path)
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
            "numbers; wanted the grey or palette PNG next to it (segs, prediction), or the logits "
            "(<id>.npy with msc_seg or segs)"
        )
    return (
        "colours of a heat map (as infer_cam and cam_on_img draw them): no scores can be read from "
        "them; wanted the .npy of the same run (logits with msc_seg or segs, or the CAM dictionary)"
    )


def decode_mask(content: bytes, name: str) -> UInt8[np.ndarray, "H W"]:
    """As read_mask, from the bytes of a file; ``name`` is what errors call it."""
    with opened(content, name) as picture:
        return _indices(picture, name)


def mask_png(mask: UInt8[np.ndarray, "H W"], palette: UInt8[np.ndarray, "256 3"]) -> bytes:
    """The mask as the bytes of an 8-bit palette PNG."""
    picture = Image.fromarray(mask, mode=None).convert("L")
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_atomic(path: Path, content: bytes) -> None:
    """Write to a temporary name, flush to disk, rename: readers see the old file or the new one.

    The file's modes are those of the user's umask. Raises OSError that names the file, for a full
    disk among others.
    """
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name, whose file takes the place of ``path`` where the block raises nothing.

    The file is flushed to disk first. What processes that were killed left in the folder is
    removed. Raises OSError that names the file.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.resolve())
        temporary = path.with_name(f".{next(_counter)}-{os.getpid()}-{_HOST}{_PARTIAL}")
        try:
            yield temporary
            with temporary.open("rb+") as file:
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


def opened(source: Path | bytes, name: Path | str) -> Image.Image:
    """A picture whose header was read and is not too large. Raises BadFileError."""
    if isinstance(source, Path) and not source.is_file():
        raise MissingFileError(f"{name}: no such file")
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        picture = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as problem:
        raise BadFileError(f"{name}: too many pixels ({problem})") from problem
    except UnidentifiedImageError as problem:
        raise BadFileError(f"{name}: {_no_picture(source)}") from problem
    except DAMAGE as problem:
        raise BadFileError(f"{name}: not a picture ({problem})") from problem
    if max(picture.size) > MAX_SIDE:
        _refuse(picture, name, f"sides of at most {MAX_SIDE:,}")
    if picture.width * picture.height > MAX_PIXELS:
        _refuse(picture, name, f"at most {MAX_PIXELS:,}")
    slow = min((SLOW.get(part[0], MAX_PIXELS) for part in picture.tile), default=MAX_PIXELS)
    if picture.width * picture.height > slow:
        _refuse(picture, name, f"at most {slow:,} of this kind of {picture.format}", "save as PNG")
    if picture.info.get("progressive") and _scans(source) > MOST_SCANS:
        picture.close()
        raise BadFileError(
            f"{name}: a JPEG of more than {MOST_SCANS} scans, made to be slow; save it anew"
        )
    return picture


def _no_picture(source: Path | bytes) -> str:
    """What a file is that no decoder knows, as far as its beginning tells."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(64)
    else:
        start = source[:64]
    if not start:
        return "an empty file; get it again"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS instead of the picture; run git lfs pull"
    if start[4:8] == b"ftyp":
        return "HEIC or a video, which are not read; save it as JPEG or PNG"
    if start.lstrip()[:1] == b"<":
        return "a web page or drawing instead of a picture; get it again, or save it as PNG"
    return "not a picture that is read; save it as JPEG or PNG"


def _scans(source: Path | bytes) -> int:
    """Scans of a JPEG; previews inside count too."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    return content.count(b"\xff\xda")


def _refuse(
    picture: Image.Image, name: Path | str, limit: str, advice: str = "scale it down"
) -> NoReturn:
    width, height = picture.size
    picture.close()
    raise BadFileError(f"{name}: {width}×{height} pixels, {limit} are read; {advice}")


def decoded(picture: Image.Image, name: Path | str) -> Image.Image:
    """The picture with its pixels read. Raises BadFileError."""
    try:
        picture.load()
    except DAMAGE as problem:
        raise BadFileError(f"{name}: truncated or damaged ({problem})") from problem
    return picture


def _indices(picture: Image.Image, name: Path | str) -> np.ndarray:
    if picture.mode not in ("P", "L"):
        told = f"a mask of mode {picture.mode}, wanted class indices (palette or 8-bit grey)"
        if picture.mode in ("RGB", "RGBA"):
            told += "; these are "
            told += colours(np.asarray(decoded(picture, name).convert("RGB")))
        raise BadFileError(f"{name}: {told}")
    return np.asarray(decoded(picture, name))


def _inside(folder: Path, path: Path) -> Path:
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is a link that leaves {folder}; copy the file instead")
    return path
