"""Tensors of PyTorch files (``.pth``, ``.pt``, ``.bin``) without PyTorch, and without unpickling.

Such a file is a pickle that describes a nest of dictionaries, plus the raw values of the tensors:
a zip archive since PyTorch 1.6, before that one stream. The pickle is stepped through by hand
(``formats.pickles``), so a file can hold numbers and nothing that runs. Not here: what the tensors
mean.

Layout: torch/serialization.py of PyTorch 1.4 (stream) and 2.x (archive).
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import UserError
from wsss_jax.formats import pickles
from wsss_jax.formats.torch_tensors import (
    NAMES,
    Storage,
    Tensor,
    decoded,
    filled,
    read_stream,
    stored,
    width,
)

_MAX_PICKLE = 100_000_000  # bytes


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
    except (*pickles.PROBLEMS, zipfile.BadZipFile, OSError, struct.error) as problem:
        raise UserError(
            f"{path}: cannot be read as a PyTorch file ({problem}); open it with PyTorch "
            "(weights_only=True) and save its state_dict anew"
        ) from problem


def _from_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = set(archive.namelist())
    found = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise UserError(f"{len(found)} data.pkl in the archive, wanted one")
    root = found[0].removesuffix("data.pkl")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
    if order != b"little":
        raise UserError(f"byte order {order!r}, wanted little")
    if archive.getinfo(found[0]).file_size > _MAX_PICKLE:
        raise UserError(f"{found[0]} has more than {_MAX_PICKLE:,} bytes")
    with archive.open(found[0]) as file:
        tensors = _chosen(pickles.run(file, NAMES, stored))

    def values(storage: Storage) -> np.ndarray:
        name = f"{root}data/{storage.key}"
        size, packed = (info := archive.getinfo(name)).file_size, info.compress_type
        wanted = storage.count * width(storage.dtype)
        if size != wanted or packed != zipfile.ZIP_STORED:
            raise UserError(f"{name} has {size} bytes, wanted {wanted}, not compressed")
        return decoded(archive.read(name), storage.dtype)

    return filled(tensors, values)


def _from_stream(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        nest, loaded = read_stream(file, path.stat().st_size)
    return filled(_chosen(nest), lambda storage: loaded[storage.key])


def _chosen(nest: Any) -> dict[str, Tensor]:
    """The dictionary of tensors in what the pickle holds."""
    if not isinstance(nest, dict):
        raise UserError(f"holds a {type(nest).__name__}, wanted a dictionary of tensors")
    flat = {name: t for name, t in nest.items() if isinstance(t, Tensor)}
    if flat:
        return flat
    inner = {
        name: part
        for name, part in nest.items()
        if isinstance(part, dict) and any(isinstance(t, Tensor) for t in part.values())
    }
    for name in ("state_dict", "model", *(inner if len(inner) == 1 else ())):
        if name in inner:
            return {n: t for n, t in inner[name].items() if isinstance(t, Tensor)}
    raise UserError(f"no single dictionary of tensors among {sorted(map(str, nest))}")
