"""Tensors of PyTorch files (``.pth``, ``.pt``, ``.bin``) without PyTorch, and without unpickling.

Such a file is a pickle that describes a nest of dictionaries, plus the raw values of the tensors:
a zip archive since PyTorch 1.6, before that one stream. The pickle is a little program; here it is
stepped through by hand, and the only things it may name are the containers, the storages and the
two functions that rebuild a tensor. Everything else is refused by its name, so a file can hold
numbers and nothing that runs. Not here: what the tensors mean.

Layout: torch/serialization.py and torch/_utils.py of PyTorch 1.4 (stream) and 2.x (archive).
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from wsss_jax.npz import MAX_VALUES

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_STEPS = 10_000_000
_MAX_PICKLE = 100_000_000  # bytes

_STORAGES = MappingProxyType({
    "torch FloatStorage": "<f4", "torch DoubleStorage": "<f8", "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "bf16", "torch LongStorage": "<i8", "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2", "torch CharStorage": "<i1", "torch ByteStorage": "<u1",
    "torch BoolStorage": "?",
})  # fmt: skip
_REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED = "collections OrderedDict"
_SIZE = "torch Size"
_ALLOWED = frozenset({*_STORAGES, _REBUILD, _PARAMETER, _ORDERED, _SIZE})

_CONSTANTS = MappingProxyType({"NONE": None, "NEWTRUE": True, "NEWFALSE": False})
_LITERALS = frozenset({
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
})  # fmt: skip
_SHORT_TUPLES = MappingProxyType({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


_MARK = object()


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every tensor of the file by its name; bfloat16 comes as float32.

    A dictionary of tensors is taken as it is; of a training checkpoint, the one dictionary of
    tensors inside it (``state_dict`` or ``model`` where there are several). Raises ValueError for
    anything else: damaged files, names that are not tensors, and files that need PyTorch.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _from_archive(archive)
        return _from_stream(path)
    except (
        zipfile.BadZipFile, KeyError, IndexError, TypeError, ValueError, EOFError, OSError,
        struct.error, OverflowError, RecursionError,
    ) as problem:  # fmt: skip
        raise ValueError(
            f"{path}: cannot be read as a PyTorch file ({problem}); open it with PyTorch "
            "(weights_only=True) and save its state_dict anew"
        ) from problem


def _from_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = set(archive.namelist())
    found = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise ValueError(f"{len(found)} data.pkl in the archive, wanted one")
    root = found[0].removesuffix("data.pkl")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
    if order != b"little":
        raise ValueError(f"byte order {order!r}, wanted little")
    if archive.getinfo(found[0]).file_size > _MAX_PICKLE:
        raise ValueError(f"{found[0]} has more than {_MAX_PICKLE:,} bytes")
    with archive.open(found[0]) as file:
        tensors = _chosen(_run(file))

    def values(storage: _Storage) -> np.ndarray:
        name = f"{root}data/{storage.key}"
        size, packed = (info := archive.getinfo(name)).file_size, info.compress_type
        wanted = storage.count * _width(storage.dtype)
        if size != wanted or packed != zipfile.ZIP_STORED:
            raise ValueError(f"{name} has {size} bytes, wanted {wanted}, not compressed")
        return decoded(archive.read(name), storage.dtype)

    return _filled(tensors, values)


def _from_stream(path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    with path.open("rb") as file:
        magic, version, system, nest = (_run(file) for _ in range(4))
        if magic != _STREAM_MAGIC or version != 1001 or not system["little_endian"]:
            raise ValueError("neither an archive nor a stream of version 1001")
        keys = _run(file)
        tensors = _chosen(nest)
        kinds = {t.storage.key: t.storage for t in _tensors_in(nest)}
        loaded: dict[str, np.ndarray] = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            storage = kinds[key]
            wanted = count * _width(storage.dtype)
            if count != storage.count or not 0 <= wanted <= size:
                raise ValueError(f"storage {key} holds {count} values, {storage.count} announced")
            loaded[key] = decoded(file.read(wanted), storage.dtype)
    return _filled(tensors, lambda storage: loaded[storage.key])


def _chosen(nest: Any) -> dict[str, _Tensor]:
    """The dictionary of tensors in what the pickle holds."""
    if not isinstance(nest, dict):
        raise ValueError(f"holds a {type(nest).__name__}, wanted a dictionary of tensors")
    flat = {name: t for name, t in nest.items() if isinstance(t, _Tensor)}
    if flat:
        return flat
    inner = {
        name: part
        for name, part in nest.items()
        if isinstance(part, dict) and any(isinstance(t, _Tensor) for t in part.values())
    }
    for name in ("state_dict", "model", *(inner if len(inner) == 1 else ())):
        if name in inner:
            return {n: t for n, t in inner[name].items() if isinstance(t, _Tensor)}
    raise ValueError(f"no single dictionary of tensors among {sorted(map(str, nest))}")


def _tensors_in(nest: Any) -> list[_Tensor]:
    """Every tensor at any depth; what is reached on many ways is looked at once."""
    found, waiting, seen = [], [nest], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, _Tensor):
            found.append(part)
        elif isinstance(part, (dict, list)) and id(part) not in seen:
            seen.add(id(part))
            waiting += part.values() if isinstance(part, dict) else part
    return found


def _filled(
    tensors: Mapping[str, _Tensor], values: Callable[[_Storage], np.ndarray]
) -> dict[str, np.ndarray]:
    """Cut every tensor out of its storage, within the bounds of that storage."""
    loaded: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
        if not isinstance(name, str) or len(shape) != len(strides):
            raise ValueError(f"{name!r} has {len(shape)} axes and {len(strides)} strides")
        if min((tensor.offset, *shape, *strides)) < 0 or math.prod(shape) > MAX_VALUES:
            raise ValueError(f"{name} has shape {shape}, strides {strides}")
        last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.count:
            raise ValueError(f"{name} reaches value {last} of a storage of {storage.count}")
        if storage.key not in loaded:
            loaded[storage.key] = values(storage)
        flat = loaded[storage.key][tensor.offset :]
        steps = tuple(s * flat.itemsize for s in strides)
        view = np.lib.stride_tricks.as_strided(flat, shape, steps) if math.prod(shape) else flat[:0]
        arrays[name] = np.array(view.reshape(shape))
    return arrays


def _width(dtype: str) -> int:
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


def decoded(content: bytes | memoryview, dtype: str) -> Shaped[np.ndarray, " n"]:
    """Raw little-endian values as a flat array; bf16, the upper half of a float32, as float32."""
    if dtype == "bf16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(content, dtype)


def _run(file: Any) -> Any:
    """Step through one pickle; the result is made of plain containers and the tuples above."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for name, argument in _steps(file):
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUTS or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_allowed(argument if name == "GLOBAL" else _joined(stack)))
        else:
            _CONTAINERS.get(name, _refused(name))(stack)
    raise EOFError("the pickle is cut off")


def _steps(file: Any) -> Iterator[tuple[str, Any]]:
    """Operations of a pickle and their arguments, up to a number no file of tensors needs."""
    for n, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if n > _MAX_STEPS:
            raise ValueError("the pickle does not end")
        yield operation.name, argument


def _joined(stack: list) -> str:
    member, module = stack.pop(), stack.pop()
    return f"{module} {member}"


def _allowed(name: str) -> _Global:
    if name not in _ALLOWED:
        raise ValueError(f"names {name.replace(' ', '.')}, which is no tensor and is not loaded")
    return _Global(name)


def _refused(name: str) -> Callable[[list], None]:
    def refuse(stack: list) -> None:
        raise ValueError(f"the pickle uses {name}, which no file of tensors needs")

    return refuse


def _to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set_items(stack: list, items: list) -> None:
    target = stack[-1]
    if not isinstance(target, dict):
        raise ValueError("sets items of what is no dictionary")
    target.update(zip(items[::2], items[1::2], strict=True))


def _extend(stack: list, items: list) -> None:
    target = stack[-1]
    if not isinstance(target, list):
        raise ValueError("appends to what is no list")
    target.extend(items)


def _short_tuple(count: int) -> Callable[[list], None]:
    def make(stack: list) -> None:
        stack[-count:] = [tuple(stack[-count:])]

    return make


def _persistent(stack: list) -> None:
    kind, storage, key, _, count, *view = stack.pop()
    if kind != "storage" or any(part is not None for part in view):
        raise ValueError(f"persistent object {kind!r}, wanted a whole storage")
    if not isinstance(storage, _Global) or not 0 <= count <= MAX_VALUES:
        raise ValueError(f"a storage of {count} values")
    stack.append(_Storage(str(key), _STORAGES[storage.name], count))


def _reduce(stack: list) -> None:
    arguments, function = stack.pop(), stack.pop()
    name = function.name if isinstance(function, _Global) else ""
    if name == _REBUILD:
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without storage")
        stack.append(_Tensor(storage, offset, tuple(shape), tuple(strides)))
    elif name == _PARAMETER:
        stack.append(arguments[0])
    elif name == _SIZE:
        stack.append(tuple(arguments[0]))
    elif name == _ORDERED:
        stack.append(dict(*arguments))
    else:
        raise ValueError(f"calls {name or type(function).__name__}")


_CONTAINERS: Mapping[str, Callable[[list], None]] = MappingProxyType({
    "MARK": lambda stack: stack.append(_MARK),
    "POP": lambda stack: stack.pop() and None,
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "TUPLE": lambda stack: stack.append(tuple(_to_mark(stack))),
    "LIST": lambda stack: stack.append(_to_mark(stack)),
    **{name: _short_tuple(count) for name, count in _SHORT_TUPLES.items()},
    "SETITEMS": lambda stack: _set_items(stack, _to_mark(stack)),
    "SETITEM": lambda stack: _set_items(stack, [stack.pop(-2), stack.pop()]),
    "APPENDS": lambda stack: _extend(stack, _to_mark(stack)),
    "APPEND": lambda stack: _extend(stack, [stack.pop()]),
    # State of an object: only the version notes that a state_dict carries, which say nothing here.
    "BUILD": lambda stack: stack.pop() and None,
    "BINPERSID": _persistent,
    "REDUCE": _reduce,
})  # fmt: skip
