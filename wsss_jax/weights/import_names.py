"""Arrays of a weight file into a network: every name used once, every value filled, or one error.

Here is the engine, which knows no architecture: a ``Table`` says for every value of a network which
arrays of the file make it, and ``fill`` does so or lists all that does not fit. Networks whose
public names follow PyTorch's say what these mean (``parameter_names``); running statistics are
values like any.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped

from wsss_jax.errors import UserError

_PARTS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COUNTER = "num_batches_tracked"  # how long a BatchNorm was trained: no weight

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


class Source(NamedTuple):
    """Which arrays of a file make one value, and how.

    convert: (the arrays, the wanted shape) to the array in our layout; a ValueError of NumPy's
    means that the shapes do not fit.
    """

    names: tuple[str, ...]
    convert: Callable[..., np.ndarray]


class Table(NamedTuple):
    """What a file means to a network.

    sources: our path (``layer1/0/conv1/kernel``) to where its values are. ignored: whether a name
    that nothing uses may be there, such as the ImageNet classes.
    """

    sources: Mapping[str, Source]
    ignored: Callable[[str], bool] = lambda name: False


@runtime_checkable
class Named(Protocol):
    """A network that knows the names of its values in public weight files."""

    def parameter_names(self) -> Mapping[str, str | None]:
        """Name in the file to our path (``layer1/0/conv1/kernel``); None for what may be there
        and is not imported.
        """
        ...


@runtime_checkable
class Published(Protocol):
    """A network whose public weight files name the values in several ways."""

    def layouts(self) -> tuple[Mapping[str, str | None], ...]:
        """One mapping per way, each as that of ``Named``."""
        ...


@runtime_checkable
class Renamed(Protocol):
    """A network whose MXNet files name the values otherwise."""

    def from_mxnet(self, name: str) -> str:
        """The name in ``parameter_names`` for the name in the MXNet file."""
        ...


def fill(module: nnx.Module, arrays: Arrays, table: Table, *, called: str, hint: str = "") -> None:
    """Set every parameter and running statistic from the arrays, in the dtype it has.

    called: what errors call the arrays. hint: what the arrays are, where it is known. Raises
    UserError that counts all missing, unused and mis-shaped names and shows three of each kind;
    the network is then unchanged.
    """
    targets = values_of(module)
    values, problems = converted(targets, arrays, table)
    if problems:
        raise UserError(refusal(module, problems, called=called, hint=hint))
    for path, value in values.items():
        targets[path].set_value(jnp.asarray(value, targets[path].dtype))


def refusal(module: nnx.Module, problems: Sequence[str], *, called: str, hint: str = "") -> str:
    """What a user reads who gave a network arrays that do not fit it, in a dozen lines."""
    because = f" ({hint})" if hint else ""
    lines = "\n  ".join(shortened(problems))
    return f"{called} does not fit {type(module).__name__}{because}:\n  {lines}"


def misnamed(arrays: Arrays, table: Table) -> int:
    """How many names are missing or used by nothing; shapes are not looked at."""
    wanted = {name for source in table.sources.values() for name in source.names}
    unused = sum(1 for n in arrays if n not in wanted and not n.endswith(_COUNTER)
                 and not table.ignored(n))  # fmt: skip
    return unused + len(wanted - arrays.keys())


def shortened(problems: Sequence[str], shown: int = 3) -> list[str]:
    """Problems of ``converted`` by kind: ``shown`` of each, and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.partition(": ")[2].split(" ")[0], []).append(problem)
    lines = []
    for found in kinds.values():
        lines += found[:shown]
        if len(found) > shown:
            lines.append(f"… and {len(found) - shown} more like the last")
    return lines


def converted(
    targets: Mapping[str, Any], arrays: Arrays, table: Table
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The value of each path in ``targets`` (anything with a shape), and all that does not fit."""
    values, problems, used = {}, [], set()
    for path, source in table.sources.items():
        used |= set(source.names)
        missing = [name for name in source.names if name not in arrays]
        problems += [f"{name}: missing, wanted for {path}" for name in missing]
        if missing or path not in targets:
            continue
        found, shape = [arrays[name] for name in source.names], tuple(targets[path].shape)
        value = _value(source, found, shape)
        if value is None:
            names, shapes = " + ".join(source.names), " + ".join(str(x.shape) for x in found)
            problems.append(f"{names}: shape {shapes} in the file, the network has {shape}")
        else:
            values[path] = value
    problems += [f"{p}: filled by nothing in the table" for p in targets if p not in table.sources]
    problems += [f"{p}: in the table, not a value" for p in table.sources if p not in targets]
    unused = (n for n in arrays if n not in used and not n.endswith(_COUNTER))
    problems += [f"{n}: in the file, used by nothing" for n in unused if not table.ignored(n)]
    return values, problems


def own_table(module: nnx.Module) -> Table:
    """The table of our own files, which name and lay out values as the network does."""
    return Table({path: Source((path,), as_is) for path in values_of(module)})


def named_table(module: Named | Published, arrays: Arrays) -> Table:
    """The table of a network that knows the names of its values; of several the likeliest."""
    if isinstance(module, Published):
        names = max(module.layouts(), key=lambda layout: len(layout.keys() & arrays.keys()))
    else:
        names = module.parameter_names()
    sources = {path: Source((name,), from_torch) for name, path in names.items() if path}
    if len(sources) != sum(path is not None for path in names.values()):
        raise UserError(f"two names fill one value in the table of {type(module).__name__}")
    return Table(sources, ignored=partial(_is_not_imported, names))


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
    value: Shaped[np.ndarray, "..."], shape: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """Kernels OIHW to HWIO, to IO where 1×1, to HWC where depthwise; matrices OI to IO."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        if len(shape) == 3 and value.shape[2] == 1:
            return value[:, :, 0]
        return value[0, 0] if len(shape) == 2 and value.shape[:2] == (1, 1) else value
    return value.T if value.ndim == 2 else value


def as_is(value: Shaped[np.ndarray, "..."], shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
    """The array itself."""
    return value


def _value(source: Source, found: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        value = source.convert(*found, shape)
    except ValueError:
        return None
    return value if value.shape == shape else None


def _is_not_imported(names: Mapping[str, str | None], name: str) -> bool:
    return name in names and names[name] is None
