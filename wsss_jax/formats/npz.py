"""Reading npy and npz files from anywhere: sizes are checked first, nothing is unpickled.

The header of an array is a Python dictionary in text; it is matched, not evaluated.
"""

import math
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss_jax.errors import UserError
from wsss_jax.formats.bounded import one_error, open_file

MAX_VALUES = 256_000_000
"""Larger arrays are refused from their header: a small archive can unpack to many gigabytes."""

MAX_ARCHIVE = 4 * 2**30
"""Bytes that all arrays of one npz may hold together, where no other limit is named."""

MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
_DESCRIPTION = re.compile(r"""['"]descr['"]\s*:\s*(?:['"]([^'"]*)['"]|[\[(].*[\])])\s*,""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([\d,\sL]*)\)""")  # Python 2 wrote 5L
_TYPE = re.compile(r"[<>|=]?[biufcSUVOmM?](\d{0,9})(\[\w+\])?")


class Header(NamedTuple):
    """What stands before the values of an array; a compound type is told as ``V``."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool = False

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def headers(path: Path, limit: int = MAX_ARCHIVE) -> dict[str, Header]:
    """Header of every array in the file, without reading one.

    limit: bytes that the arrays may hold together. Raises BadFileError when the file is damaged,
    is no npz, or holds more.
    """
    with (
        one_error(path, "damaged or no npz"),
        open_file(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if len(set(names)) != len(names):
            raise UserError("two arrays of one name")
        found = {}
        for name in names:
            with archive.open(f"{name}.npy") as member:
                found[name] = parsed(member, name)
        check_total(found, limit)
        return found


def read(path: Path, fields: Mapping[str, str], limit: int = MAX_ARCHIVE) -> dict[str, np.ndarray]:
    """Named arrays of the file.

    fields: name to the wanted dtype kinds ("f", "i", "uif" …); object arrays are always refused.
    limit: bytes that they may hold together. Raises BadFileError when the file is damaged, lacks a
    name, holds another kind, or more.
    """
    with (
        one_error(path, "damaged or not ours"),
        open_file(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        return read_members(archive, fields, limit)


def read_members(
    archive: zipfile.ZipFile, fields: Mapping[str, str], limit: int = MAX_ARCHIVE
) -> dict[str, np.ndarray]:
    """As ``read``, from an open archive. Raises the errors of ``bounded.DAMAGE``."""
    arrays, left = {}, limit
    for name, kinds in fields.items():
        with archive.open(f"{name}.npy") as file:
            header = parsed(file, name)
            if header.dtype.kind not in kinds or header.dtype.kind in "OV":
                raise UserError(f"{name} has dtype {header.dtype}, wanted kind {kinds}")
            left -= header.size
            if left < 0:
                raise UserError(f"the arrays hold more than {limit:,} bytes together")
            content = file.read(header.size)
            if file.read(1):  # the end must be reached, where the archive's checksum is compared
                raise UserError(f"{name} goes on behind its {header.size:,} bytes")
            arrays[name] = filled(header, content, name)
    return arrays


def check_total(found: Mapping[str, Header], limit: int) -> None:
    """UserError where the arrays hold more than ``limit`` bytes together."""
    total = sum(header.size for header in found.values())
    if total > limit:
        raise UserError(f"the arrays hold {total:,} bytes together, at most {limit:,} are read")


def parsed(file: Any, name: str) -> Header:
    """The header of an array; ValueError for a damaged one, and above MAX_VALUES."""
    start = file.read(8)
    if start[:6] != MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise UserError(f"{name} has a damaged header (no magic of NumPy)")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _MAX_HEADER:
        raise UserError(f"{name} has a damaged header ({length:,} bytes)")
    text = file.read(length).decode("latin-1")
    kind, order, sides = _DESCRIPTION.search(text), _ORDER.search(text), _SHAPE.search(text)
    if len(text) != length or not (kind and order and sides):
        raise UserError(f"{name} has a damaged header ({text[:60].strip()!r})")
    if any(len(side) > 20 for side in sides[1].split(",")):
        raise UserError(f"{name} has a damaged header (a side of many digits)")
    shape = tuple(int(side.strip(" L")) for side in sides[1].split(",") if side.strip())
    count = math.prod(shape)
    if count > MAX_VALUES or len(shape) > 32:
        raise UserError(f"{name} has shape {shape}, above {MAX_VALUES:,} values")
    return Header(shape, _dtype(kind[1], name), order[1] == "True")


def _dtype(text: str | None, name: str) -> np.dtype:
    if text is None:
        return np.dtype("V1")
    if not _TYPE.fullmatch(text):
        raise UserError(f"{name} has a damaged header (type {text[:20]!r})")
    return np.dtype(text)


def filled(header: Header, content: bytes | memoryview, name: str) -> np.ndarray:
    """The array of a header and its values. Raises ValueError where they are cut off."""
    if len(content) != header.size:
        raise UserError(f"{name} is cut off at {len(content)} bytes")
    order = "F" if header.fortran else "C"
    if not header.size:
        return np.zeros(header.shape, header.dtype, order)
    if header.dtype.kind == "U":
        points = np.frombuffer(content, ">u4" if header.dtype.byteorder == ">" else "<u4")
        if points.max(initial=0) > sys.maxunicode:
            raise UserError(f"{name} holds texts of characters that there are not")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order=order)
