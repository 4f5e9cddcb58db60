"""Arrays by name out of weight files of any layout; what the names mean is said by the networks.

Read are ``.npz`` (ours, Google's, anyone's), ``.safetensors``, PyTorch's files (``.pth``, ``.pt``,
``.bin``, ``.ckpt``, ``.pth.tar``), MXNet's ``.params``, ``.onnx`` that PyTorch exported, and HDF5
of Keras; the layout is told by the first bytes.
Sizes are checked against the file before anything is allocated, and no file can run anything.
"""

import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats import hdf5, npz, torch_tensors
from wsss_jax.formats.bounded import DAMAGE, once
from wsss_jax.weights import import_mxnet, import_onnx, import_torch

MAX_HEADER = 100_000_000
"""Longest header of a safetensors file in bytes, as in its own library."""

ABOUT = "about_json"
"""Name of the array in our own npz that holds its notes: the bytes of a JSON object of texts."""

MAX_RATIO = 200
"""An npz may unpack to this many times its size; weights hardly shrink at all."""

_SAFE_TYPES = MappingProxyType({
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bf16", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?",
})  # fmt: skip

Arrays = dict[str, Shaped[np.ndarray, "..."]]


class WeightFile(NamedTuple):
    """What a weight file holds.

    arrays: by their names. about: notes that it carries (``mean``, ``std``, ``network`` …). kind:
    npz, safetensors, torch, mxnet, onnx or hdf5.
    """

    arrays: Arrays
    about: Mapping[str, str]
    kind: str


def read(path: Path) -> WeightFile:
    """Every array of a weight file by its name in the file, and its notes.

    bfloat16 comes as float32. Raises MissingFileError, BadFileError for a damaged file, and
    UserError for a file of another kind, saying of which.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such weight file")
    kind = _kind(path)
    arrays, about = _READERS[kind](path)
    return WeightFile(arrays, about, kind)


def read_arrays(path: Path) -> Arrays:
    """The arrays alone; errors as for ``read``."""
    return read(path).arrays


def read_notes(path: Path) -> Mapping[str, str]:
    """The notes of our own npz without its arrays; none for other files. Errors as for ``read``."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such weight file")
    if _kind(path) != "npz" or ABOUT not in npz.headers(path):
        return {}
    return _notes(npz.read(path, {ABOUT: "u"})[ABOUT], path)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Write arrays and notes as an npz of ours; ``read`` gives them back."""
    notes = np.frombuffer(json.dumps(dict(about)).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **{**arrays, ABOUT: notes})


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(265)
    if start[8:9] == b"{":  # first: the length of its header may begin with any byte
        return "safetensors"
    for begins, what in _STRANGERS:
        if start.startswith(begins):
            raise UserError(f"{path}: {what}")
    if start[4:8] == b"TFL3":
        raise UserError(f"{path}: a TFLite model (.tflite), which is not read; {_WANTED}")
    if start[257:262] == b"ustar":
        raise UserError(f"{path}: a tar archive of files; unpack it and give the weight file in it")
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if start.startswith(b"\x89HDF"):
        return "hdf5"
    if start.startswith(b"\x80"):
        return "torch"
    if start.startswith((0x112).to_bytes(8, "little")):
        return "mxnet"
    if start.startswith(b"\x08"):
        return "onnx"
    if path.suffix in _BY_SUFFIX:
        return _BY_SUFFIX[path.suffix]
    raise UserError(f"{path}: no weight file of a known kind; {_WANTED}")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE:
        return _BY_SUFFIX.get(path.suffix, "torch")  # its reader says what is damaged
    if any(name.endswith("constants.pkl") for name in names):
        raise UserError(
            f"{path}: a TorchScript program; in PyTorch, save torch.jit.load(FILE).state_dict() "
            "with torch.save, and give that file"
        )
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if "model.weights.h5" in names:
        raise UserError(f"{path}: a Keras model, which is not read; {_WANTED}")
    return "npz"


def _read_npz(path: Path) -> tuple[Arrays, dict[str, str]]:
    found = npz.headers(path)
    total = sum(header.size for header in found.values())
    if total > MAX_RATIO * path.stat().st_size:
        raise BadFileError(
            f"{path}: {total:,} bytes of arrays in a file of {path.stat().st_size:,}; no weights "
            "shrink like that"
        )
    arrays = npz.read(path, dict.fromkeys(found, "fiub"))
    return arrays, _notes(arrays.pop(ABOUT, None), path)


def _notes(stored: np.ndarray | None, path: Path) -> dict[str, str]:
    if stored is None:
        return {}
    try:
        return _texts(json.loads(stored.tobytes()))
    except (ValueError, RecursionError) as problem:
        raise BadFileError(f"{path}: its notes ({ABOUT}) are damaged") from problem


def _texts(notes: object) -> dict[str, str]:
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise UserError("notes that are no object of texts")
    return notes


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """8 bytes of header length, a JSON header, raw values that no two tensors share.

    Source: the format description of huggingface/safetensors.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise UserError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length), object_pairs_hook=once)
            values = memoryview(file.read())
        about = _texts(header.pop("__metadata__", {}))
        _check_apart([tuple(entry["data_offsets"]) for entry in header.values()], len(values))
        return {name: _tensor(name, entry, values) for name, entry in header.items()}, about
    except (LookupError, TypeError, AttributeError, ValueError, OSError, RecursionError) as problem:
        raise BadFileError(f"{path}: damaged or no safetensors file ({problem})") from problem


def _check_apart(parts: list[tuple[int, int]], size: int) -> None:
    """UserError unless the parts of the tensors fill the values, one behind the other."""
    end = 0
    for begin, stop in sorted(parts):
        if begin != end:
            raise UserError(f"values from byte {begin} where {end} is wanted: overlaps or gaps")
        end = stop
    if end != size:
        raise UserError(f"tensors of {end:,} bytes in {size:,}")


def _tensor(name: str, entry: Mapping, values: memoryview) -> np.ndarray:
    if entry["dtype"] not in _SAFE_TYPES:
        raise UserError(f"{name} has the type {entry['dtype']}; save it as F32")
    dtype, shape = _SAFE_TYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise UserError(f"{name} has shape {shape} at {begin}:{end}")
    width = torch_tensors.width(dtype)
    if end - begin != math.prod(shape) * width or end > len(values):
        raise UserError(
            f"{name} of shape {shape} and type {entry['dtype']} at bytes {begin}:{end} of "
            f"{len(values)}"
        )
    return torch_tensors.decoded(values[begin:end], dtype).reshape(shape)


def _read_hdf5(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Keras's kernels (HWIO) are turned as PyTorch's lie (OIHW), which tables of names expect."""
    arrays = hdf5.read(path)
    turned = {name: x.transpose(3, 2, 0, 1) for name, x in arrays.items() if x.ndim == 4}
    return {**arrays, **turned}, {}


_READERS: Mapping[str, Callable[[Path], tuple[Arrays, dict[str, str]]]] = MappingProxyType(
    {
        "npz": _read_npz,
        "safetensors": _read_safetensors,
        "torch": lambda path: (import_torch.read(path), {}),
        "mxnet": lambda path: (import_mxnet.read(path), {}),
        "onnx": lambda path: (import_onnx.read(path), {}),
        "hdf5": _read_hdf5,
    }
)

_BY_SUFFIX: Mapping[str, str] = MappingProxyType({
    ".npz": "npz", ".safetensors": "safetensors", ".params": "mxnet", ".onnx": "onnx",
    ".h5": "hdf5",
    ".pth": "torch", ".pt": "torch", ".bin": "torch", ".ckpt": "torch", ".tar": "torch",
})  # fmt: skip
"""For files too short or damaged to be told by their first bytes."""

_WANTED = "wanted .pth, .pt, .bin, .ckpt, .pth.tar, .safetensors, .npz, .params, .onnx or .h5"

_STRANGERS = (
    (b"version https://git-lfs", "a pointer of Git LFS and not the file; fetch it: git lfs pull"),
    (b"<", "a web page and not a weight file; download the file itself again"),
    (b"\x1f\x8b", "a gzip archive; unpack it and give the file in it"),
)
