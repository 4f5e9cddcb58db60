"""Pretrained weights into networks, and networks into files: the one door for every layout.

Read are PyTorch's ``.pth``, ``.safetensors``, Google's ``.npz`` of transformers, MXNet's
``.params``, the folded ``.npz`` of MobileNets, and our own ``.npz``, which ``save`` writes. Every
name is used once and every value is filled, or one error lists all that does not fit.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Shaped

from wsss_jax.errors import UserError
from wsss_jax.models import import_folded, import_names, vit_names
from wsss_jax.models.import_files import read_arrays
from wsss_jax.models.import_names import Named, Published, Renamed, Source, Table

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]

_WRAPPER = "module."  # what torch.nn.DataParallel puts before every name


def load(module: nnx.Module, path: Path) -> None:
    """Fill every parameter and running statistic of a network from a weight file.

    The layout is told by the suffix and the names. A network of shapes (``nnx.eval_shape``) does
    as well as one of arrays. Raises ValueError that lists all missing, unused and mis-shaped
    names, the latter with both shapes; the network is then unchanged.
    """
    arrays = read_arrays(path)
    if path.suffix == ".params":
        if not isinstance(module, Renamed):
            raise UserError(f"{type(module).__name__} was never published for MXNet: {path}")
        arrays = {module.from_mxnet(name): value for name, value in arrays.items()}
    fill(module, arrays, called=str(path))


def fill(module: nnx.Module, arrays: Arrays, *, called: str = "the file") -> None:
    """The same from arrays by their names in a file; ``called`` is what errors call them."""
    arrays, table = meaning(module, arrays, called=called)
    import_names.fill(module, arrays, table, called=called)


def meaning(
    module: nnx.Module, arrays: Arrays, *, called: str = "the file"
) -> tuple[Arrays, Table]:
    """What arrays mean to a network: they under their plain names, and the table for these.

    Raises ValueError for a network that was never published, given any but our own file.
    """
    paths = import_names.values_of(module)
    if arrays.keys() & paths.keys():
        return arrays, _own(module)
    if arrays and all(name.startswith(_WRAPPER) for name in arrays):
        arrays = {name.removeprefix(_WRAPPER): value for name, value in arrays.items()}
    if isinstance(module, (Named, Published)):
        return arrays, import_names.named_table(module, arrays)
    if isinstance(module, import_folded.Folded):
        return arrays, import_folded.table(module, arrays)
    if any(path.endswith(vit_names.TOKEN) for path in paths):
        return vit_names.tables(paths, arrays)
    raise UserError(
        f"{type(module).__name__} has no public weights, and {called} is not ours; train it from "
        "scratch"
    )


def save(module: nnx.Module, path: Path) -> None:
    """Write every parameter and running statistic under our names, whole or not at all.

    Raises ValueError for a path that does not end in .npz.
    """
    if path.suffix != ".npz":
        raise UserError(f"{path}: our own files are .npz; name it {path.stem}.npz")
    partial = path.with_name(f".{path.stem}.partial.npz")
    values = import_names.values_of(module)
    arrays: Any = {name: np.asarray(v[...]) for name, v in values.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(partial, **arrays)
    os.replace(partial, path)


def _own(module: nnx.Module) -> Table:
    """Our own names as they are; positions alone may be stored on another grid."""
    sources = dict(import_names.own_table(module).sources)
    for path in sources:
        if path.endswith(vit_names.POSITION):
            sources[path] = Source((path,), vit_names.own_position)
    return Table(sources)
