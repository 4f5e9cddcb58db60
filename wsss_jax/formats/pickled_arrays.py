"""Arrays and dictionaries of arrays that other programs saved, read without unpickling.

``np.save`` of a dictionary writes a pickle behind the header of an array with one object;
``pickle.dump``, ``torch.save`` (archive and stream) and ``np.savez`` write the same numbers into
other containers, and the content tells which, not the name. Pickles are stepped through by hand
(``formats.pickles``): NumPy arrays, PyTorch's tensors, numbers, texts and dictionaries are read,
anything else stands as ``Opaque`` in its place and is an error only where it is needed. Sizes are
compared with the bytes that are there, and their sum is bounded. Not here: what the keys mean.

Source: ``ndarray.__reduce__`` and ``dtype.__reduce__`` of NumPy 1 and 2, ``Tensor.__reduce_ex__``
and ``torch.storage._load_from_bytes`` of PyTorch.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from wsss_jax.errors import UserError
from wsss_jax.formats import npz, pickles, torch_tensors
from wsss_jax.formats.bounded import MAX_TOTAL, Views, one_error, read_bytes
from wsss_jax.formats.pickles import Opaque
from wsss_jax.formats.torch_tensors import Storage, Tensor, Values

MAX_STEPS = 50_000
"""Operations of one pickle of maps; 80 maps take about 3,000."""

MAX_LABEL_STEPS = 10_000_000
"""Operations of one pickle of labels; a vector takes about 25."""

Content = Mapping[str | int, Any]
"""Values are arrays, numbers, texts, lists of texts, or Opaque."""

_CODES = frozenset({"b1", "?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"})
_MAX_DIMENSIONS = 32
_ALONE = ("arr_0", "data")  # what np.savez calls its one array


def read_dictionary(path: Path, steps: int = MAX_STEPS) -> Content:
    """The dictionary of a file of ``np.save``, ``np.savez``, ``torch.save`` or ``pickle.dump``.

    Arrays are read-only. What is no array, number or text is an Opaque. Raises BadFileError for a
    file that is missing, damaged or too large, names what acts, or holds no dictionary.
    """
    content = read_content(path, steps)
    if isinstance(content, np.ndarray):
        with one_error(path, "cannot be read as arrays"):
            raise UserError(
                f"an array of shape {content.shape} and type {content.dtype}, which does not say "
                "its classes; wanted a dictionary of maps"
            )
    return content


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Vectors by image id, as in ``cls_labels.npy`` of IRN, SEAM and PSA: id to (c,) of 0 and 1.

    Ids that are numbers come as their digits, and IRN's ``2007000032`` as VOC's ``2007_000032``.
    Raises BadFileError as ``read_dictionary``, and where a value is no vector of numbers.
    """
    found = read_dictionary(path, MAX_LABEL_STEPS)
    with one_error(path, "cannot be read as vectors by image id"):
        for key, value in found.items():
            if not isinstance(value, np.ndarray) or value.ndim != 1:
                raise UserError(f"{str(key)[:40]} is {kind_of(value)}, wanted a vector")
        return {_voc_id(key): value for key, value in found.items()}


def read_content(path: Path, steps: int = MAX_STEPS) -> Content | np.ndarray:
    """As ``read_dictionary``; a file of one array alone gives that array."""
    content = read_bytes(path)
    with one_error(path, "cannot be read as arrays"):
        found = _content(content, steps)
        if not isinstance(found, Mapping | np.ndarray):
            raise UserError(f"{kind_of(found)}, wanted numbers or a dictionary of maps")
        return found


def _content(content: bytes, steps: int) -> Any:
    if zipfile.is_zipfile(file := io.BytesIO(content)) and content[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            return _from_archive(archive, steps)
    if content.startswith(npz.MAGIC):
        return _from_npy(Views(content), steps)
    return _from_pickle(content, steps)


def kind_of(value: Any) -> str:
    """What a value of a file is, in words for a message."""
    if isinstance(value, Opaque):
        return value.kind
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__.lstrip('_')}"


def _from_archive(archive: zipfile.ZipFile, steps: int) -> Content | np.ndarray:
    names = archive.namelist()
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        nest, values = torch_tensors.read_archive(archive, NAMES, steps)
        return _finished(nest, values)
    found: dict[str, Any] = {}
    total = 0
    for name in names:
        key = name.removesuffix(".npy")
        size = archive.getinfo(name).file_size
        total += size
        if key in found:
            raise UserError(f"two arrays of the name {key[:40]}")
        if total > MAX_TOTAL:
            raise UserError(f"more than {MAX_TOTAL:,} bytes of arrays")
        with archive.open(name) as member:
            found[key] = _from_npy(Views(member.read(MAX_TOTAL)), steps)
    if len(found) == 1 and next(iter(found)) in _ALONE:
        return next(iter(found.values()))
    if any(isinstance(value, Mapping) for value in found.values()):
        found = {k: Opaque("a dict") if isinstance(v, Mapping) else v for k, v in found.items()}
    return {int(k) if k.isdecimal() and k.isascii() else k: v for k, v in found.items()}


def _from_npy(file: Views, steps: int) -> Any:
    """An array, the dictionary of an array of one object, or what stands for other objects."""
    header = npz.parsed(file, "the array")
    if header.dtype.kind == "O":
        if math.prod(header.shape) != 1:
            return Opaque(f"an array of {math.prod(header.shape)} objects")
        array = pickles.run(file, NAMES, steps=steps)
        content = array.content if isinstance(array, _Array) else array
        return _finished(content[0] if isinstance(content, list) and content else content, None)
    if header.size > MAX_TOTAL:
        raise UserError(f"an array of {header.size:,} bytes, at most {MAX_TOTAL:,} are read")
    array = npz.filled(header, file.read(header.size), "the array")
    if header.dtype.kind == "U" and array.ndim <= 1:
        return [str(text) for text in np.atleast_1d(array)]
    return array if header.dtype.kind in "fbiu" else Opaque(f"an array of type {header.dtype}")


def _from_pickle(content: bytes, steps: int) -> Content | np.ndarray:
    file = Views(content)
    first = _first(file, content, steps)
    if first == torch_tensors.STREAM_MAGIC:
        file.seek(0)
        nest, loaded = torch_tensors.read_stream(file, len(content), NAMES, steps)
        return _finished(nest, lambda storage: loaded[storage.key])
    return _finished(first, None)


def _first(file: Views, content: bytes, steps: int) -> Any:
    try:
        return pickles.run(file, NAMES, steps=steps)
    except (ValueError, LookupError, EOFError) as problem:
        if content[:1] == b"\x80":
            raise
        # Protocols 0 and 1 begin without a mark, so anything at all comes here.
        text = f"neither a file of NumPy, PyTorch or zip, nor a pickle ({problem})"
        raise UserError(text) from problem


def _finished(nest: Any, values: Values | None) -> Any:
    """What a pickle describes as arrays; their sizes together are bounded before any is made."""
    if isinstance(nest, list) and len(nest) == 1:
        nest = nest[0]
    reader = _Finisher(values)
    if isinstance(nest, (_Array, Tensor)):
        array = reader.plain(nest)
        if isinstance(array, np.ndarray):
            return array
        nest = array
    if not isinstance(nest, dict):
        raise UserError(f"holds {kind_of(nest)}, wanted a dictionary of maps")
    return {_key(key): reader.plain(part) for key, part in nest.items()}


class _Finisher:
    """Makes arrays of what a pickle describes, and counts their bytes."""

    def __init__(self, values: Values | None) -> None:
        self._values, self._loaded, self._total = values, {}, 0

    def plain(self, value: Any) -> Any:
        """The value as an array, number, text or list of texts; else an Opaque."""
        if isinstance(value, _Array):
            return self._array(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return self._list(value)
        return value if isinstance(value, Opaque) else Opaque(kind_of(value))

    def _count(self, size: int) -> None:
        self._total += size
        if self._total > MAX_TOTAL:
            raise UserError(f"the arrays hold more than {MAX_TOTAL:,} bytes together")

    def _array(self, value: "_Array") -> Any:
        if isinstance(value.content, np.ndarray):
            self._count(value.content.nbytes)
            return value.content
        return value.content if isinstance(value.content, Opaque) else Opaque("an array of objects")

    def _tensor(self, tensor: Tensor) -> Any:
        storage = tensor.storage
        self._count(math.prod(tensor.shape) * torch_tensors.width(storage.dtype))
        if storage.values is not None:
            return torch_tensors.cut("a tensor", tensor, storage.values)
        if self._values is None:
            return Opaque("a tensor whose values are elsewhere")
        if storage.key not in self._loaded:
            self._count(storage.count * torch_tensors.width(storage.dtype))
            self._loaded[storage.key] = self._values(storage)
        return torch_tensors.cut("a tensor", tensor, self._loaded[storage.key])

    def _list(self, value: Any) -> Any:
        if all(isinstance(item, (int, float)) for item in value):
            return np.asarray(value)
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(isinstance(item, (_Array, Tensor)) for item in value):
            arrays = [self.plain(item) for item in value]
            if len({np.shape(item) for item in arrays}) == 1 and isinstance(arrays[0], np.ndarray):
                self._count(sum(item.nbytes for item in arrays))
                return np.stack(arrays)
        return Opaque(kind_of(value))


class _Dtype(pickles.Unfinished):
    """A type of numbers, or another; byte order and the rest follow."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code if isinstance(code, str) else type(code).__name__
        self.plain = self.code.lstrip("<>=|") in _CODES
        self.order = self.code[0] if self.plain and self.code[0] in "<>" else "<"
        self.code = self.code.lstrip("<>=|") if self.plain else self.code

    def build(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in rest[:3]):
            self.plain = False
        elif order in "<>":
            self.order = order

    @property
    def dtype(self) -> np.dtype:
        if not self.plain:
            raise UserError(f"an array of type {self.code[:20]!r}, wanted plain numbers")
        return np.dtype(self.order + self.code)


class _Array(pickles.Unfinished):
    """An array whose shape, type and content follow: numbers, a list of objects, or Opaque."""

    def __init__(self, *_: Any) -> None:
        self.content: np.ndarray | list | Opaque | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Dtype) or not isinstance(shape, tuple):
            raise UserError("an array without type or shape")
        if isinstance(content, list):
            self.content = content if len(content) == 1 else Opaque(f"{len(content)} objects")
        elif kind.plain:
            self.content = _values(shape, kind.dtype, "F" if fortran else "C", content)
        else:
            self.content = Opaque(f"an array of type {kind.code[:20]!r}, wanted plain numbers")


def _values(shape: Any, dtype: np.dtype, order: Any, content: Any) -> np.ndarray:
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise UserError("an array without shape, or of too many dimensions")
    if not all(isinstance(n, int) and 0 <= n < 2**62 for n in shape):
        raise UserError("an array with sides that are no numbers")
    content = _bytes(content)
    wanted = math.prod(shape) * dtype.itemsize
    if len(content) != wanted:
        raise UserError(f"an array of shape {shape} in {len(content):,} bytes, not {wanted:,}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(
    content: Any, kind: Any, shape: Any, order: Any, axes: Any = None, *_: Any
) -> _Array:
    """An array as protocol 5 has it; axes: where each axis lies in ``shape``, if not in place."""
    made = _Array()
    if not isinstance(kind, _Dtype):
        raise UserError("an array without type")
    if not kind.plain:
        made.content = Opaque(f"an array of type {kind.code[:20]!r}, wanted plain numbers")
        return made
    values = _values(shape, kind.dtype, order, content)
    made.content = values.transpose(axes) if order == "K" and axes is not None else values
    return made


def _bytes(content: Any) -> bytes | bytearray | memoryview:
    # Python 2 wrote bytes as text.
    content = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise UserError("an array without its numbers")
    return content


def _encoded(text: Any = "", codec: Any = "latin1", *_: Any) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise UserError("text that is not encoded as latin1")
    return text.encode("latin-1")


def _scalar(kind: Any, content: Any) -> Any:
    if not isinstance(kind, _Dtype) or not kind.plain:
        return Opaque("a value that is no number")
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
    **{f"{home} {kind}": _encoded for home in ("builtins", "__builtin__")
       for kind in ("bytes", "bytearray")},
    **{f"{home}.multiarray _reconstruct": _Array for home in ("numpy.core", "numpy._core")},
    **{f"{home}.multiarray scalar": _scalar for home in ("numpy.core", "numpy._core")},
    **{f"{home}.numeric _frombuffer": _from_buffer for home in ("numpy.core", "numpy._core")},
})  # fmt: skip
"""All that a file of another program may call."""


def _key(key: Any) -> str | int:
    if isinstance(key, float) and not key.is_integer():
        raise UserError(f"key {key} is no class number")
    if not isinstance(key, (str, int, float)):
        raise UserError("a key of a dictionary that is neither text nor number")
    return key if isinstance(key, str) else int(key)


def _voc_id(key: str | int) -> str:
    text = str(key)
    return f"{text[:4]}_{text[4:]}" if isinstance(key, int) and len(text) == 10 else text
