"""Masks as files: class indices in palette, grey, colour, 16-bit and 1-bit pictures.

Indices are read as they stand, never through a colour conversion. Colours mean something only by a
table: that of the data set (``colour_table``), else the colour map of PASCAL VOC. JPEG is refused,
since it changes the values. Not here: what the indices mean (``classes``, ``numbering``).
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data.classes import IGNORED, NO_CLASS, ClassList, palette, to_mask_index
from wsss_jax.data.files import decoded, opened
from wsss_jax.data.photographs import Header
from wsss_jax.data.texts import read_text
from wsss_jax.errors import BadFileError, first_few
from wsss_jax.types import IGNORE

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".jpg", ".jpeg")
"""Of files that are taken for masks; the last two so that they are refused by name."""

TABLES = ("labelmap.txt", "colours.csv", "colors.csv", "class_colors.csv", "class_dict.csv")
"""Files that tell the colours of classes, beside the masks or above them."""

Colours = Mapping[int, int]
"""Mask values by colour, red × 65536 + green × 256 + blue."""

_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def read_truth(path: Path, colours: Colours | None = None) -> UInt8[np.ndarray, "H W"]:
    """Class indices of a mask. Raises BadFileError for JPEG and for colours without a meaning."""
    return decode_truth(path, path, colours)


def decode_truth(
    source: Path | bytes, name: Path | str, colours: Colours | None = None
) -> UInt8[np.ndarray, "H W"]:
    """As read_truth, of a file or its bytes; ``name`` is what errors call it."""
    with opened(source, name) as picture:
        if picture.format in ("JPEG", "MPO"):
            raise BadFileError(
                f"{name}: a JPEG, whose compression changes the numbers of classes; save masks as "
                "PNG"
            )
        # The writers of GIF number colours anew.
        mode = "RGB" if picture.format == "GIF" else picture.mode
        if mode == "P" and colours is None:
            return np.asarray(decoded(picture, name))
        if mode in ("L", "LA", "1") or mode.startswith("I"):
            grey = decoded(picture, name)
            values = np.asarray(grey.getchannel("L") if mode == "LA" else grey)
            return _grey(values, name, colours)
        if mode in ("P", "RGB", "RGBA"):
            return _coloured(np.asarray(decoded(picture, name).convert("RGB")), name, colours)
        raise BadFileError(
            f"{name}: a mask of mode {mode}, wanted class indices (palette or grey) or colours"
        )


def upright(mask: UInt8[np.ndarray, "H W"], photograph: Header) -> UInt8[np.ndarray, "_ _"]:
    """The mask, turned with its photograph where it has the size that is stored there."""
    if photograph.orientation in _TURNS and mask.shape == photograph.raw:
        return np.ascontiguousarray(_TURNS[photograph.orientation](mask))
    return mask


def colour_table(folders: tuple[Path, ...], classes: ClassList) -> Colours | None:
    """Mask values by colour, as the first file of TABLES in the folders tells; None without one.

    A line holds a name and three numbers from 0 to 255, with commas or, as CVAT writes it,
    ``name:r,g,b``. Background is 0, void is IGNORE, others are classes of the data set. Raises
    BadFileError.
    """
    paths = (folder / name for folder in folders for name in TABLES)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    found: dict[int, int] = {}
    for cells in _lines(path):
        name, numbers = cells[0].strip(), [cell.strip() for cell in cells[1:4]]
        if len(numbers) == 3 and all(n.isdecimal() and int(n) < 256 for n in numbers):
            red, green, blue = (int(n) for n in numbers)
            found[red << 16 | green << 8 | blue] = _value(name, classes, path)
    if not found:
        raise BadFileError(f"{path}: no colours in it; wanted lines like cat,128,0,0")
    return found


def _lines(path: Path) -> list[list[str]]:
    text = read_text(path)[0].splitlines()
    lines = [line for line in text if line.strip() and not line.startswith("#")]
    if path.suffix == ".txt":
        return [[name, *rest.split(":")[0].split(",")] for name, _, rest in
                (line.partition(":") for line in lines)]  # fmt: skip
    return list(csv.reader(line.replace(";", ",").replace("\t", ",") for line in lines))


def _value(name: str, classes: ClassList, path: Path) -> int:
    if name.casefold() in NO_CLASS:
        return 0
    if name.casefold() in IGNORED:
        return IGNORE
    try:
        return int(to_mask_index(np.array([classes.index(name)]))[0])
    except ValueError as problem:
        raise BadFileError(f"{path}: {problem}") from problem


def _grey(
    values: np.ndarray, name: Path | str, colours: Colours | None
) -> UInt8[np.ndarray, "H W"]:
    """Whole numbers that fit a byte; 65535 is the IGNORE of 16 bits."""
    if values.dtype == np.uint8 and colours is not None:
        greys = {c & 255: v for c, v in colours.items() if c == (c & 255) * 0x10101}
        if set(np.unique(values).tolist()) <= set(greys):
            table = np.array([greys.get(grey, 0) for grey in range(256)], np.uint8)
            return table[values]
    if values.dtype == np.uint8:
        return values
    values = np.where(values == 65535, IGNORE, values)
    if values.min() < 0 or values.max() > IGNORE:
        raise BadFileError(
            f"{name}: 16-bit values up to {values.max()}, wanted class indices up to {IGNORE}; a "
            "mask of object numbers is no mask of classes"
        )
    return values.astype(np.uint8)


def _coloured(
    pixels: UInt8[np.ndarray, "H W 3"], name: Path | str, colours: Colours | None
) -> UInt8[np.ndarray, "H W"]:
    """Values by the table, else by the colour map of VOC; grey in colour is grey."""
    codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    found, where = np.unique(codes, return_inverse=True)
    if colours is None:
        greys = [(code & 255) for code in found.tolist()]
        if all(grey * 0x10101 == code for grey, code in zip(greys, found.tolist(), strict=True)):
            return pixels[..., 0]
        colours = {r << 16 | g << 8 | b: n for n, (r, g, b) in enumerate(palette().tolist())}
    strange = [code for code in found.tolist() if code not in colours]
    if strange:
        some = first_few(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in strange)
        raise BadFileError(
            f"{name}: {len(strange)} colours of an RGB mask without a class, such as {some}; "
            f"write name,r,g,b of every class into {TABLES[1]} next to the masks"
        )
    values = np.array([colours[code] for code in found.tolist()], np.uint8)
    return values[where].reshape(codes.shape)
