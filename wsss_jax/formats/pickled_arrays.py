"""Dictionaries of arrays that other programs pickled, read without unpickling.

``np.save`` of a dictionary writes a pickle behind the header of an array with one object. It is
stepped through by hand (``formats.pickles``); allowed are NumPy arrays of numbers and their types,
PyTorch's tensors (as old streams inside the pickle) and ordered dictionaries. Anything else, say a
call of ``eval``, is refused by its name. Sizes are compared with the bytes that are there, so no
header can ask for memory. Not here: what the keys mean.

Source: ``ndarray.__reduce__`` and ``dtype.__reduce__`` of NumPy 1 and 2, ``Tensor.__reduce_ex__``
and ``torch.storage._load_from_bytes`` of PyTorch.
"""

import io
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.lib import format as npy

from wsss_jax.errors import BadFileError, UserError
from wsss_jax.formats import npz, pickles, torch_tensors
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.formats.torch_tensors import Storage, Tensor

MAX_STEPS = 50_000
"""Operations of one pickle; 80 maps take about 3,000."""

_CODES = frozenset(
    {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "O", "O8"}
)


def read_dictionary(path: Path, steps: int = MAX_STEPS) -> Mapping[str | int, Any]:
    """The dictionary of an ``.npy`` or pickle file; its values are arrays and plain numbers.

    Arrays are read-only. Raises BadFileError for a file that is missing, damaged, above
    ``files.MAX_BYTES``, names anything but arrays, or holds no dictionary.
    """
    content = read_bytes(path)
    try:
        value = _described(content, steps)
        if not isinstance(value, dict):
            raise UserError(f"holds {_kind(value)}, wanted a dictionary of maps")
        return {_key(key): _plain(str(key), part) for key, part in value.items()}
    except (*pickles.PROBLEMS, struct.error) as problem:
        raise BadFileError(f"{path}: cannot be read as arrays: {_reason(problem)}") from problem


def _described(content: bytes, steps: int) -> Any:
    file = io.BytesIO(content)
    if content[:1] == b"\x80":
        return pickles.run(file, NAMES, steps=steps)  # pickle.dump without NumPy around it
    if not content.startswith(npy.MAGIC_PREFIX):
        raise UserError("neither an .npy file nor a pickle")
    shape, dtype, _ = npz.parsed(file, "the array")
    if dtype.kind != "O" or shape != ():
        raise UserError(
            f"an array of shape {shape} and type {dtype}, which does not say its classes; wanted "
            "np.save of a dictionary"
        )
    array = pickles.run(file, NAMES, steps=steps)
    if not isinstance(array, _Array) or array.content is None:
        raise UserError("no single object behind the header")
    return array.content[0] if isinstance(array.content, list) else array


class _Dtype(pickles.Unfinished):
    """A type of numbers, or "O"; byte order and the rest follow."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in _CODES:
            raise UserError(f"an array of type {str(code)[:20]!r}, wanted plain numbers")
        self.code: str = code
        self.order = "="

    def build(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in rest[:3]):
            raise UserError("an array of a compound type, wanted plain numbers")
        self.order = "<" if order == "=" else order

    @property
    def dtype(self) -> np.dtype:
        if self.code.startswith("O"):
            raise UserError("an array of objects inside the file, wanted plain numbers")
        return np.dtype(("<" if self.order == "=" else self.order) + self.code)


class _Array(pickles.Unfinished):
    """An array whose shape, type and content follow: numbers, or a list of one object."""

    def __init__(self, *_: Any) -> None:
        self.content: np.ndarray | list | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Dtype) or not isinstance(shape, tuple):
            raise UserError("an array without type or shape")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise UserError("an array with sides that are no numbers")
        if isinstance(content, list) and kind.code.startswith("O"):
            if len(content) != 1 or math.prod(shape) != 1:
                raise UserError(f"an array of {len(content)} objects, wanted one dictionary")
            self.content = content
            return
        content = _bytes(content)
        wanted = math.prod(shape) * kind.dtype.itemsize
        if len(content) != wanted:
            raise UserError(f"an array of shape {shape} in {len(content):,} bytes, not {wanted:,}")
        order = "F" if fortran else "C"
        self.content = np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _bytes(content: Any) -> bytes:
    # Python 2 wrote bytes as text.
    content = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(content, bytes):
        raise UserError("an array without its numbers")
    return content


def _encoded(text: Any, codec: Any = "latin1") -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if not isinstance(text, str) or codec != "latin1":
        raise UserError("text that is not encoded as latin1")
    return text.encode("latin-1")


def _scalar(kind: Any, content: Any) -> int | float:
    if not isinstance(kind, _Dtype):
        raise UserError("a number without type")
    return np.frombuffer(_bytes(content), kind.dtype).item()


def _storage(content: Any) -> Storage:
    nest, loaded = torch_tensors.read_stream(io.BytesIO(_bytes(content)), len(content))
    if not isinstance(nest, Storage):
        raise UserError("a stream of PyTorch that is no storage")
    return nest._replace(values=loaded[nest.key])


NAMES: pickles.Names = MappingProxyType({
    **torch_tensors.NAMES,
    "torch.storage _load_from_bytes": _storage,
    "numpy ndarray": None,
    "numpy dtype": _Dtype,
    "_codecs encode": _encoded,
    **{f"{home}.multiarray _reconstruct": _Array for home in ("numpy.core", "numpy._core")},
    **{f"{home}.multiarray scalar": _scalar for home in ("numpy.core", "numpy._core")},
})  # fmt: skip
"""All that a file of another program may name."""


def _key(key: Any) -> str | int:
    if isinstance(key, float) and not key.is_integer():
        raise UserError(f"key {key} is no class number")
    return key if isinstance(key, str) else int(key)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, _Array) and isinstance(value.content, np.ndarray):
        return value.content
    if isinstance(value, Tensor):
        if value.storage.values is None:
            raise UserError(f"{name} is a tensor whose values are elsewhere")
        return torch_tensors.cut(name, value, value.storage.values)
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(n, (int, float)) for n in value):
        return np.asarray(value)
    raise UserError(f"{name} is {_kind(value)}, wanted an array")


def _kind(value: Any) -> str:
    return "an array" if isinstance(value, _Array) else f"a {type(value).__name__.lstrip('_')}"


def _reason(problem: Exception) -> str:
    """The first line of a message; a bare key or index says which sort of error it was."""
    text = str(problem).split("\n")[0][:300]
    plain = isinstance(problem, (ValueError, EOFError)) and text
    return text if plain else f"damaged ({type(problem).__name__} {text})"
