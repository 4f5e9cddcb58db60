"""Arrays of an HDF5 file, as Keras writes weights (``.weights.h5``, ``.h5``), by ``h5py``.

Only plain arrays of numbers that lie in the file itself are read: no links to other files, no
arrays that are kept elsewhere or packed, and never more bytes than the file has.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import BadFileError, UserError


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array by its path in the file (``block1/layers/conv2d/vars/0``), numbers only.

    Raises UserError where h5py is not installed, BadFileError for a damaged or strange file.
    """
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as problem:
        raise UserError(f"{path}: an HDF5 file, which h5py reads: pip install h5py") from problem
    try:
        with h5py.File(path, "r") as file:
            found = _arrays_in(file, h5py)
            total = sum(array.nbytes for array in found.values())
            if total > path.stat().st_size:
                raise BadFileError(f"{path}: {total:,} bytes of arrays in a smaller file")
            return {name: np.asarray(array[()]) for name, array in found.items()}
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as problem:
        if isinstance(problem, BadFileError):
            raise
        raise BadFileError(f"{path}: damaged or no HDF5 file ({problem})") from problem


def _arrays_in(file: Any, h5py: Any) -> dict[str, Any]:
    """The file's arrays of numbers, not read yet. ValueError for one that is not wholly in it."""
    found: dict[str, Any] = {}

    def visit(name: str, one: Any) -> None:
        if not isinstance(one, h5py.Dataset) or one.dtype.kind not in "fiub":
            return
        if one.chunks is not None or one.external or one.is_virtual:
            raise ValueError(f"{name} is packed or lies elsewhere, weights are plain arrays")
        found[name] = one

    file.visititems(visit)  # follows neither soft links nor those to other files
    return found
