"""Tensors as PyTorch pickles them, without PyTorch: storages, views of them, and both containers.

A tensor is a view (offset, shape, strides) of a storage; the values of storages lie beside the
pickle, in members of a zip archive since PyTorch 1.6, before that behind it in one stream. Not
here: what the tensors mean.

Source: torch/serialization.py and torch/_utils.py of PyTorch 0.3 to 2.x.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import UserError
from wsss_jax.formats import pickles
from wsss_jax.formats.npz import MAX_VALUES

MAX_SHARED = 8
"""How often one stored value may be used; tied layers use theirs two or three times."""

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that opens a stream."""

_STREAM_VERSION = 1001
_MAX_PICKLE = 100_000_000  # bytes
_MAX_DIMENSIONS = 32

_TYPES = MappingProxyType({
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
    "ByteStorage": "<u1", "BoolStorage": "?",
})  # fmt: skip
# Versions before 1.6 name the storages of a GPU apart; the bytes are the same.
_STORAGES = {f"{home} {name}": t for home in ("torch", "torch.cuda") for name, t in _TYPES.items()}
PLAIN = "a plain pickle"
"""What a file is that starts as one and is none of ``torch.save``."""

Values = Callable[["Storage"], np.ndarray]
"""Gives the values of a storage, which may have to be read first."""


class Storage(NamedTuple):
    """A flat run of values. values: themselves, where they came with the pickle."""

    key: str
    dtype: str
    count: int
    values: Any = None


class Tensor(NamedTuple):
    """A view of a storage: offset and strides in values."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


def stored(reference: Any) -> Storage:
    """The storage that a pickle refers to (``persistent`` of ``pickles.run``)."""
    kind, storage, key, _, count, *view = reference
    if kind != "storage" or any(part is not None for part in view):
        raise UserError("a persistent object that is no whole storage")
    if not isinstance(storage, pickles.Name) or not isinstance(count, int):
        raise UserError("a storage without type or size")
    if not 0 <= count <= MAX_VALUES:
        raise UserError(f"a storage of {count:,} values, at most {MAX_VALUES:,} are read")
    if storage.text not in _STORAGES:
        raise UserError(f"a storage of type {storage.text.replace(' ', '.')}, wanted plain numbers")
    return Storage(str(key), _STORAGES[storage.text], count)


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise UserError("a tensor without storage")
    if any(more[2:]):  # behind requires_grad and hooks: marks such as "neg", negative when read
        raise UserError(f"holds a tensor whose values are marked {str(more[2])[:40]}")
    view = (offset, *shape, *strides)
    if not all(isinstance(n, int) and n >= 0 for n in view) or len(shape) != len(strides):
        raise UserError(f"a tensor of shape {shape} with strides {strides} at {offset}")
    if len(shape) > _MAX_DIMENSIONS:
        raise UserError(f"a tensor of {len(shape)} dimensions")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _with_attributes(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a subclass or with attributes of its own: what the function in it makes."""
    del kind
    text = function.text if isinstance(function, pickles.Name) else ""
    return pickles.call(function, arguments, _PLAIN if text in _PLAIN else {})


_PLAIN: pickles.Names = MappingProxyType({
    "torch._utils _rebuild_tensor": _rebuilt,
    "torch._utils _rebuild_tensor_v2": _rebuilt,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "torch._utils _rebuild_parameter_with_state": lambda data, *_: data,
})  # fmt: skip
NAMES: pickles.Names = MappingProxyType({
    **dict.fromkeys(_STORAGES),
    **_PLAIN,
    "torch._tensor _rebuild_from_type_v2": _with_attributes,
    "torch._tensor _rebuild_from_type": _with_attributes,
    "torch Size": lambda shape: tuple(shape),
    "collections OrderedDict": pickles.mapping,
    "collections defaultdict": lambda *_: {},
})  # fmt: skip
"""What a pickle of tensors may call."""


def read_archive(
    archive: zipfile.ZipFile, names: pickles.Names = NAMES, steps: int = pickles.MAX_STEPS
) -> tuple[Any, Values]:
    """The layout since PyTorch 1.6: what is described, and a function that reads storages.

    Raises the errors of ``bounded.DAMAGE``.
    """
    inside = set(archive.namelist())
    found = [name for name in inside if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise UserError(f"{len(found)} data.pkl in the archive, wanted one")
    root = found[0].removesuffix("data.pkl")
    order = b"little"
    if f"{root}byteorder" in inside:
        with archive.open(f"{root}byteorder") as file:
            order = file.read(20)
    if order != b"little":
        raise UserError(f"byte order {order!r}, wanted little")
    if archive.getinfo(found[0]).file_size > _MAX_PICKLE:
        raise UserError(f"{found[0]} has more than {_MAX_PICKLE:,} bytes")
    with archive.open(found[0]) as file:
        nest = pickles.run(io.BytesIO(file.read(_MAX_PICKLE)), names, stored, steps=steps)

    def values(storage: Storage) -> np.ndarray:
        name = f"{root}data/{storage.key}"
        size, packed = (info := archive.getinfo(name)).file_size, info.compress_type
        wanted = storage.count * width(storage.dtype)
        if size != wanted or packed != zipfile.ZIP_STORED:
            raise UserError(f"{name} has {size} bytes, wanted {wanted}, not compressed")
        return decoded(archive.read(name), storage.dtype)

    return nest, values


def read_stream(
    file: Any, size: int, names: pickles.Names = NAMES, steps: int = pickles.MAX_STEPS
) -> tuple[Any, Mapping[str, np.ndarray]]:
    """The layout before PyTorch 1.6: what is described, and the values of each storage by key.

    size: bytes of the whole stream. Raises the errors of ``bounded.DAMAGE``.
    """
    seen: dict[str, Storage] = {}

    def noted(reference: Any) -> Storage:
        storage = stored(reference)
        if seen.setdefault(storage.key, storage) != storage:
            raise UserError(f"storage {storage.key} is described twice")
        return storage

    if pickles.run(file, {}, steps=steps) != STREAM_MAGIC:
        raise UserError(PLAIN)
    version, system = (pickles.run(file, {}, steps=1000) for _ in range(2))
    if version != _STREAM_VERSION or not system["little_endian"]:
        raise UserError(f"neither an archive nor a stream of version {_STREAM_VERSION}")
    nest = pickles.run(file, names, noted, steps=steps)
    loaded: dict[str, np.ndarray] = {}
    for key in pickles.run(file, {}, steps=steps):
        if str(key) in loaded:
            raise UserError(f"storage {key} comes twice")
        (count,) = struct.unpack("<q", file.read(8))
        storage = seen[str(key)]
        wanted = count * width(storage.dtype)
        if count != storage.count or not 0 <= wanted <= size:
            raise UserError(f"storage {key} holds {count} values, {storage.count} announced")
        content = file.read(wanted)
        if len(content) != wanted:
            raise EOFError(f"storage {key} is cut off at {len(content)} of {wanted} bytes")
        loaded[storage.key] = decoded(content, storage.dtype)
    return nest, loaded


def cut(name: str, tensor: Tensor, values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "..."]:
    """The tensor as a view of its storage's values. Raises ValueError where it reaches beyond."""
    shape, strides = tensor.shape, tensor.strides
    if math.prod(shape) > MAX_VALUES:
        raise UserError(f"{name} has shape {shape}, above {MAX_VALUES:,} values")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if not math.prod(shape):
        return values[:0].reshape(shape)
    if last >= len(values):
        raise UserError(f"{name} reaches value {last} of a storage of {len(values)}")
    flat = values[tensor.offset :]
    steps = tuple(s * flat.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


def filled(tensors: Mapping[str, Tensor], values: Values) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every tensor as an array of its own; each storage is asked for once.

    Raises ValueError where the tensors are together more than MAX_SHARED times as large as the
    storages that they view: a view of stride 0 makes gigabytes of one value.
    """
    views = sum(math.prod(t.shape) * width(t.storage.dtype) for t in tensors.values())
    storages = {t.storage.key: t.storage for t in tensors.values()}.values()
    held = sum(storage.count * width(storage.dtype) for storage in storages)
    if views > MAX_SHARED * held:
        raise UserError(f"tensors of {views:,} bytes in all view storages of {held:,}")
    loaded: dict[Storage, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        if tensor.storage not in loaded:
            loaded[tensor.storage] = values(tensor.storage)
        arrays[name] = np.array(cut(name, tensor, loaded[tensor.storage]))
    return arrays


def width(dtype: str) -> int:
    """Bytes of one value; dtype as ``decoded`` takes it."""
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


def decoded(content: bytes | memoryview, dtype: str) -> Shaped[np.ndarray, " n"]:
    """Raw little-endian values as a flat array; bf16, the upper half of a float32, as float32."""
    if dtype == "bf16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(content, dtype)
