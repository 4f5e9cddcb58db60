"""Arrays by name out of weight files of any layout; what the names mean is said by the networks.

Read are ``.npz`` (ours, Google's, anyone's), ``.safetensors``, PyTorch's ``.pth`` / ``.pt`` /
``.bin`` and MXNet's ``.params``. Sizes are checked against the file before anything is allocated,
and no file can run anything.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Shaped

from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.formats import npz, torch_tensors
from wsss_jax.models import import_mxnet, import_torch

MAX_HEADER = 100_000_000
"""Longest header of a safetensors file in bytes, as in its own library."""

_SAFE_TYPES = MappingProxyType({
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bf16", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?",
})  # fmt: skip


def read_arrays(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array of a weight file by its name in the file; bfloat16 comes as float32.

    The layout is told by the suffix. Raises ValueError for a missing or damaged file, and for an
    unknown suffix (naming the known ones).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    return lookup(READERS, path.suffix, "weight file")(path)


def read_npz(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array of an npz file."""
    return npz.read(path, dict.fromkeys(npz.headers(path), "fiub"))


def read_safetensors(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array of a safetensors file: 8 bytes of header length, a JSON header, raw values.

    Source: the format description of huggingface/safetensors.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise UserError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length), object_pairs_hook=_once)
            values = memoryview(file.read())
        header.pop("__metadata__", None)
        return {name: _tensor(name, entry, values) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RecursionError) as problem:
        raise UserError(f"{path}: damaged or no safetensors file ({problem})") from problem


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise UserError("a name stands twice in the header")
    return dict(pairs)


def _tensor(name: str, entry: Mapping, values: memoryview) -> np.ndarray:
    dtype, shape = _SAFE_TYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise UserError(f"{name} has shape {shape} at {begin}:{end}")
    width = 2 if dtype == "bf16" else np.dtype(dtype).itemsize
    if end - begin != math.prod(shape) * width or end > len(values):
        raise UserError(
            f"{name} of shape {shape} and type {entry['dtype']} at bytes {begin}:{end} of "
            f"{len(values)}"
        )
    return torch_tensors.decoded(values[begin:end], dtype).reshape(shape)


READERS: Mapping[str, Callable[[Path], dict[str, np.ndarray]]] = MappingProxyType(
    {
        ".npz": read_npz,
        ".safetensors": read_safetensors,
        ".pth": import_torch.read,
        ".pt": import_torch.read,
        ".bin": import_torch.read,
        ".params": import_mxnet.read,
    }
)
"""Suffix of a weight file to the function that reads its arrays."""
