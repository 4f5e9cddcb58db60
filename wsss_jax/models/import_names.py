"""Arrays of a weight file into a network: every name used once, every value filled, or one error.

A network tells what the names in its public files mean (``parameter_names``). Kernels come in the
layout of PyTorch, outputs first, and are turned to ours; running statistics are values like any.
``save`` and ``load`` are also our own format: an npz under our own names.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped

from wsss_jax.models.import_files import read_arrays

_PARTS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_WRAPPER = "module."  # what torch.nn.DataParallel puts before every name
_COUNTER = "num_batches_tracked"  # how long a BatchNorm was trained: no weight

Turn = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]


@runtime_checkable
class Named(Protocol):
    """A network that knows the names of its values in public weight files."""

    def parameter_names(self) -> Mapping[str, str | None]:
        """Name in the file to our path (``layer1/0/conv1/kernel``); None for what may be there
        and is not imported.
        """
        ...


@runtime_checkable
class Renamed(Protocol):
    """A network whose MXNet files name the values otherwise."""

    def from_mxnet(self, name: str) -> str:
        """The name in ``parameter_names`` for the name in the MXNet file."""
        ...


def load(module: nnx.Module, path: Path) -> None:
    """Fill every parameter and running statistic of a network from a weight file.

    The file may be of any layout that ``import_files`` reads, under public names or, as ``save``
    writes it, our own. Raises ValueError that lists all missing, unused and mis-shaped names, the
    latter with both shapes; the network is then unchanged.
    """
    arrays = read_arrays(path)
    ours = values_of(module)
    if arrays.keys() & ours.keys():
        return fill(module, arrays, {name: name for name in ours}, source=str(path), turn=as_is)
    if not isinstance(module, Named):
        raise ValueError(f"{type(module).__name__} has no table of public names for {path}")
    if path.suffix == ".params":
        if not isinstance(module, Renamed):
            raise ValueError(f"{type(module).__name__} was never published for MXNet: {path}")
        arrays = {module.from_mxnet(name): value for name, value in arrays.items()}
    elif all(name.startswith(_WRAPPER) for name in arrays):
        arrays = {name.removeprefix(_WRAPPER): value for name, value in arrays.items()}
    fill(module, arrays, module.parameter_names(), source=str(path))


def save(module: nnx.Module, path: Path) -> None:
    """Write every parameter and running statistic under our names, whole or not at all."""
    partial = path.with_name(f".{path.stem}.partial.npz")
    arrays: Any = {name: np.asarray(v[...]) for name, v in values_of(module).items()}
    np.savez(partial, **arrays)
    os.replace(partial, path)


def fill(
    module: nnx.Module,
    arrays: Mapping[str, Shaped[np.ndarray, "..."]],
    names: Mapping[str, str | None],
    *,
    source: str,
    turn: Turn | None = None,
) -> None:
    """Set every parameter and running statistic to its array, in the dtype it has.

    names: name in ``arrays`` to our path; None for what may be there and is not used. source: what
    errors call the arrays. turn: (name, array, wanted shape) to the array in our layout,
    ``from_torch`` unless told. Raises ValueError as ``load``.
    """
    turn = turn or from_torch
    ours = values_of(module)
    wanted = {name: path for name, path in names.items() if path is not None}
    problems = [f"{path}: filled by nothing in the table" for path in ours.keys() - wanted.values()]
    problems += [f"{name}: missing" for name in wanted if name not in arrays]
    turned = {}
    for name, value in arrays.items():
        if name.endswith(_COUNTER):
            continue
        if name not in names:
            problems.append(f"{name}: in the file, used by nothing")
        elif name in wanted:
            target = ours[wanted[name]]
            new = turn(name, value, target.shape)
            if new.shape != target.shape:
                problems.append(
                    f"{name}: shape {value.shape} in the file, the network has {target.shape}"
                )
            turned[wanted[name]] = new
    if len(set(wanted.values())) != len(wanted):
        problems.append("the table fills a value twice")
    if problems:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}:\n  " + "\n  ".join(problems)
        )
    for path, value in turned.items():
        ours[path].set_value(jnp.asarray(value, ours[path].dtype))


def values_of(module: nnx.Module) -> dict[str, Any]:
    """The variables that a weight file fills, by our path."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {"/".join(map(str, path)): variable for path, variable in flat}


def torch_names(module: nnx.Module, layers: Mapping[str, str]) -> dict[str, str | None]:
    """Names of values from names of layers: PyTorch's (``layer1.0.bn1``) to our path."""
    by_layer: dict[str, list[str]] = {}
    for path in values_of(module):
        layer, part = path.rsplit("/", 1)
        by_layer.setdefault(layer, []).append(part)
    return {
        f"{theirs}.{_PARTS[part]}": f"{ours}/{part}"
        for theirs, ours in layers.items()
        for part in by_layer[ours]
    }


def from_torch(
    name: str, value: Shaped[np.ndarray, "..."], shape: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """Kernels OIHW to HWIO, or to IO where 1×1; matrices OI to IO; the rest as it is."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        return value[0, 0] if len(shape) == 2 and value.shape[:2] == (1, 1) else value
    return value.T if value.ndim == 2 else value


def as_is(
    name: str, value: Shaped[np.ndarray, "..."], shape: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """The array itself: our own files."""
    return value
