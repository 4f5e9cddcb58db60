"""Reading npz files from anywhere: sizes are checked from the headers, nothing is unpickled."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy

from wsss_jax.errors import UserError

MAX_VALUES = 256_000_000
"""Larger arrays are refused from their header: a small archive can unpack to many gigabytes."""

Header = tuple[tuple[int, ...], np.dtype]


def headers(path: Path) -> dict[str, Header]:
    """Shape and dtype of every array in the file, without reading one.

    Raises ValueError when the file is damaged or is no npz.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if len(set(names)) != len(names):
                raise UserError("two arrays of one name")
            return {name: _header(archive, name)[:2] for name in names}
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as problem:
        raise UserError(f"{path}: damaged or no npz ({problem})") from problem


def read(path: Path, fields: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Named arrays of the file.

    fields: name to the wanted dtype kinds ("f", "i", "uif" …); object arrays are always refused.
    Raises ValueError when the file is damaged, lacks a name, or holds another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, name, kinds) for name, kinds in fields.items()}
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as problem:
        raise UserError(f"{path}: damaged or not ours ({problem})") from problem


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    with archive.open(f"{name}.npy") as file:
        return parsed(file, name)


def parsed(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, dtype and Fortran order from an array's header; ValueError above MAX_VALUES."""
    version = npy.read_magic(file)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = reader(file)
    except (SyntaxError, TokenError, RecursionError, MemoryError, TypeError) as problem:
        raise UserError(f"{name} has a damaged header ({type(problem).__name__})") from problem
    count = int(np.prod(shape, dtype=np.float64)) if all(n >= 0 for n in shape) else -1
    if not 0 <= count <= MAX_VALUES:
        raise UserError(f"{name} has shape {shape}, above {MAX_VALUES:,} values")
    return shape, dtype, fortran


def _array(archive: zipfile.ZipFile, name: str, kinds: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        shape, dtype, fortran = parsed(file, name)
        if dtype.kind not in kinds or dtype.kind == "O":
            raise UserError(f"{name} has dtype {dtype}, wanted kind {kinds}")
        count = int(np.prod(shape, dtype=np.int64))
        content = file.read(count * dtype.itemsize)
        rest = file.read(1)  # a checksum is compared when the end is reached
    if len(content) != count * dtype.itemsize or rest:
        raise UserError(f"{name} has not the size that its header says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
