"""Tensors of PyTorch files (``.pth``, ``.pt``, ``.bin``) without PyTorch, and without unpickling.

Such a file is a pickle that describes a nest of dictionaries, plus the raw values of the tensors:
a zip archive since PyTorch 1.6, before that one stream. The pickle is stepped through by hand
(``formats.pickles``), so a file can hold numbers and nothing that runs. Not here: what the tensors
mean.

Layout: torch/serialization.py of PyTorch 1.4 (stream) and 2.x (archive).
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from wsss_jax.errors import UserError
from wsss_jax.formats.bounded import DAMAGE, open_file
from wsss_jax.formats.torch_tensors import Tensor, filled, read_archive, read_stream


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every tensor of the file by its name; bfloat16 comes as float32.

    A dictionary of tensors is taken as it is; of a training checkpoint, the one dictionary of
    tensors inside it (``state_dict`` or ``model`` where there are several). Raises ValueError for
    anything else: damaged files, names that are not tensors, and files that need PyTorch.
    """
    try:
        with open_file(path) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    nest, values = read_archive(archive)
                    return filled(_chosen(nest), values, _limit(path))
        return _from_stream(path)
    except DAMAGE as problem:
        raise UserError(
            f"{path}: cannot be read as a PyTorch file ({problem}); open it with PyTorch "
            "(weights_only=True) and save its state_dict anew"
        ) from problem


def _from_stream(path: Path) -> dict[str, np.ndarray]:
    with open_file(path) as file:
        nest, loaded = read_stream(file, path.stat().st_size)
    return filled(_chosen(nest), lambda storage: loaded[storage.key], _limit(path))


def _limit(path: Path) -> int:
    """Bytes that tensors may hold: weights that are shared by name come several times."""
    return 4 * path.stat().st_size + 2**26


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
