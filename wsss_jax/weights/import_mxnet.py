"""Arrays of MXNet's ``.params`` files, which nothing maintained can open any more.

Layout (little-endian; apache/mxnet src/ndarray/ndarray.cc): a list of arrays, then a list of names
with the prefix ``arg:`` (learnt) or ``aux:`` (running statistics), which is dropped here. Written
by three generations of MXNet, told apart by the first word of each array; of the legacy generation
(2016) that word is the number of axes itself.
"""

import math
import struct
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import UserError
from wsss_jax.formats.npz import MAX_VALUES

_LIST = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = MappingProxyType({0: "<f4", 1: "<f8", 2: "<f2", 3: "<u1", 4: "<i4", 5: "<i1", 6: "<i8"})
_MAX_AXES = 8


class _Cursor:
    """Reads forward through bytes and never past their end."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.content) - self.at:
            raise UserError(f"{count} bytes wanted at {self.at} of {len(self.content)}")
        self.at += count
        return memoryview(self.content)[self.at - count : self.at]

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array of the file by its name, without ``arg:`` or ``aux:``.

    Raises ValueError for damaged files, sparse arrays, and files whose names or bytes do not end
    exactly where the arrays do.
    """
    cursor = _Cursor(path.read_bytes())
    try:
        magic, _, count = cursor.numbers("QQQ")
        if magic != _LIST:
            raise UserError(f"begins with {magic:#x}, wanted {_LIST:#x}")
        if count > len(cursor.content) // 4:
            raise UserError(f"{count} arrays in {len(cursor.content)} bytes")
        arrays = [_array(cursor) for _ in range(count)]
        names = [_name(cursor) for _ in range(cursor.numbers("Q")[0])]
        if cursor.at != len(cursor.content):
            raise UserError(f"{len(cursor.content) - cursor.at} bytes follow the names")
        if len(set(names)) != count:
            raise UserError(f"{len(set(names))} different names for {count} arrays")
    except (struct.error, KeyError, UnicodeDecodeError, ValueError) as problem:
        raise UserError(f"{path}: damaged or no MXNet file ({problem})") from problem
    return dict(zip(names, arrays, strict=True))


def _array(cursor: _Cursor) -> np.ndarray:
    (word,) = cursor.numbers("I")
    if word in (_V2, _V3) and (storage := cursor.numbers("i")[0]) != 0:
        raise UserError(f"storage type {storage}, wanted 0 (dense)")
    modern = word in (_V1, _V2, _V3)
    axes = cursor.numbers("I")[0] if modern else word
    if axes > _MAX_AXES:
        raise UserError(f"an array of {axes} axes at byte {cursor.at}")
    shape = cursor.numbers(f"{axes}{'q' if modern else 'I'}")
    if axes == 0 and word != _V3:
        return np.zeros(0, np.float32)
    cursor.numbers("ii")  # the device it was saved from
    dtype = np.dtype(_TYPES[cursor.numbers("i")[0]])
    if min(shape, default=0) < 0 or math.prod(shape) > MAX_VALUES:
        raise UserError(f"an array of shape {shape}")
    content = cursor.take(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape)


def _name(cursor: _Cursor) -> str:
    text = bytes(cursor.take(cursor.numbers("Q")[0])).decode()
    return text.removeprefix("arg:").removeprefix("aux:")
