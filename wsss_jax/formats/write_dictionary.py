"""Dictionaries of arrays written as other tools load them: ``np.load(path, allow_pickle=True)``.

IRN, PSA and their successors keep one ``.npy`` of a dictionary per image, and that is a pickle
behind the header of an array. Nothing is pickled here: the few operations that such a file needs
are written byte by byte, so the file names NumPy's and PyTorch's own constructors and nothing else.
It names ``numpy.core``, which NumPy 1 and 2 both know; ``np.save`` of NumPy 2 writes
``numpy._core``, which the tools of 2018 to 2023 cannot load. Reading is ``pickled_arrays``.

Source: ``pickletools`` of the standard library; ``ndarray.__reduce__`` of NumPy,
``Tensor.__reduce_ex__`` and the stream of ``torch.save`` before PyTorch 1.6.
"""

import io
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy.lib import format as npy

from wsss_jax.errors import UserError

_TORCH_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_VERSION = 1001
_START, _END = b"\x80\x03", b"."  # protocol 3: the first with byte strings


class AsTensor(NamedTuple):
    """An array that the other tool expects as a PyTorch tensor (it calls ``.cuda()`` on it)."""

    values: Shaped[np.ndarray, "..."]


Content = Mapping[Any, Any]
"""Keys are texts or whole numbers; values are arrays of plain numbers, or AsTensor."""


def dictionary_npy(content: Content) -> bytes:
    """The bytes of an ``.npy`` file whose one object is the dictionary.

    Raises UserError for arrays whose type no tool would read.
    """
    buffer = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    npy.write_array_header_1_0(buffer, header)
    held = b"]" + _dictionary(content) + b"a"
    buffer.write(_START + _array_of((), _dtype("O8", "|", flags=63), held) + _END)
    return buffer.getvalue()


def _dictionary(content: Content) -> bytes:
    items = b"".join(_key(key) + _value(value) for key, value in content.items())
    return b"}(" + items + b"u"


def _key(key: Any) -> bytes:
    if isinstance(key, str):
        return _text(key)
    return _number(int(key))


def _value(value: Any) -> bytes:
    return _tensor(value.values) if isinstance(value, AsTensor) else _array(value)


def _array(values: Shaped[np.ndarray, "..."]) -> bytes:
    values = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    if values.dtype.kind not in "fbiu":
        raise UserError(f"an array of type {values.dtype}, wanted plain numbers")
    code = values.dtype.str[1:]
    order = "|" if values.itemsize == 1 else "<"
    return _array_of(values.shape, _dtype(code, order), _bytes(values.tobytes()))


def _array_of(shape: tuple[int, ...], dtype: bytes, content: bytes) -> bytes:
    """``_reconstruct(ndarray, (0,), b"b")`` and its state."""
    made = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + (b"cnumpy\nndarray\n" + _tuple(_number(0)) + _bytes(b"b"))
        + b"\x87R"
    )
    fortran = b"\x89"
    state = b"(" + _number(1) + _tuple(*map(_number, shape)) + dtype + fortran + content + b"t"
    return made + state + b"b"


def _dtype(code: str, order: str, flags: int = 0) -> bytes:
    made = b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R"
    ends = _number(-1) + _number(-1) + _number(flags)
    return made + b"(" + _number(3) + _text(order) + b"NNN" + ends + b"tb"


def _tensor(values: Shaped[np.ndarray, "..."]) -> bytes:
    """``torch._utils._rebuild_tensor_v2`` of a storage that comes as a stream of its own."""
    values = np.ascontiguousarray(values)
    kind = _TORCH_STORAGES.get(values.dtype.name)
    if kind is None:
        raise UserError(f"a tensor of type {values.dtype}, wanted {', '.join(_TORCH_STORAGES)}")
    storage = b"ctorch.storage\n_load_from_bytes\n" + _bytes(_storage(kind, values)) + b"\x85R"
    strides = tuple(stride // values.itemsize for stride in values.strides)
    shape, steps = (_tuple(*map(_number, numbers)) for numbers in (values.shape, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + _number(0) + shape + steps + b"\x89" + hooks + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _storage(kind: str, values: Shaped[np.ndarray, "..."]) -> bytes:
    """One storage as ``torch.save`` wrote it before PyTorch 1.6: five pickles and the numbers."""
    magic = b"\x8a\x0a" + _TORCH_MAGIC.to_bytes(10, "little")
    sizes = b"".join(
        _text(name) + _number(n) for name, n in (("short", 2), ("int", 4), ("long", 4))
    )
    machine = (
        b"}("
        + (_text("protocol_version") + _number(_TORCH_VERSION))
        + (_text("little_endian") + b"\x88")
        + (_text("type_sizes") + b"}(" + sizes + b"u")
        + b"u"
    )
    key = _text("0")
    named = _text("storage") + b"ctorch\n" + kind.encode() + b"\n" + key + _text("cpu")
    reference = b"(" + named + _number(values.size) + b"NtQ"
    parts = (magic, _number(_TORCH_VERSION), machine, reference, b"]" + key + b"a")
    pickles = b"".join(_START + part + _END for part in parts)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return pickles + struct.pack("<q", values.size) + little.tobytes()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
