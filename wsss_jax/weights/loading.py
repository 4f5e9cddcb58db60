"""Pretrained weights into networks, and networks into files: the one door for every layout.

Read are PyTorch's files, ``.safetensors``, Google's ``.npz`` of transformers, MXNet's ``.params``,
the folded ``.npz`` of MobileNets, and our own ``.npz``, which ``save`` writes. Every name is used
once and every value is filled, or one error lists all that does not fit. How images are normalised
comes with the weights (``normalisation``).
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Shaped

from wsss_jax.errors import UserError
from wsss_jax.weights import import_files, import_folded, import_hub, import_names, vit_names
from wsss_jax.weights import normalisation as normalisations
from wsss_jax.weights.families import family_of
from wsss_jax.weights.import_files import WeightFile
from wsss_jax.weights.import_names import Named, Published, Renamed, Source, Table
from wsss_jax.weights.known_weights import WEIGHTS, Weights
from wsss_jax.weights.normalisation import Normalisation
from wsss_jax.weights.sources import Resolved, resolve

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]

PREFIXES = ("module.", "model.", "backbone.", "encoder.", "teacher.", "student.", "network.",
            "net.", "base_model.", "_orig_mod.", "momentum_encoder.")  # fmt: skip
"""What wrappers put before the names of a network; what lies under none of them is then left.

DINO's teacher comes before its student: it is what its authors judge."""


@runtime_checkable
class Normalised(Protocol):
    """A network that knows how its images are normalised: every backbone."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(module: nnx.Module, path: str | Path, *, normalise: str | None = None) -> None:
    """Fill every parameter and running statistic of a network from weights, and its mean and std.

    path: what ``resolve`` takes. A network of shapes (``nnx.eval_shape``) does as well as one of
    arrays. normalise: of the images the weights were made with, where the file does not tell it.
    Raises UserError that lists all missing, unused and mis-shaped names, the latter with both
    shapes, or asks for the normalisation; the network is then unchanged.
    """
    found = resolve(path)
    file = import_files.read(found.path)
    arrays, table = plain(module, file, called=str(found.path))
    chosen = None
    if isinstance(module, Normalised):
        chosen = normalisation(module, arrays, file, found, normalise)
    import_names.fill(module, arrays, table, called=str(found.path), hint=hint(file, found))
    if chosen is not None:
        normalised(module, chosen)


def normalised(module: Any, chosen: Normalisation) -> None:
    """Give a network the normalisation of its images; nothing changes where it has it."""
    if own(module) != chosen:
        module.mean, module.std = chosen


def own(module: Normalised) -> Normalisation:
    """The normalisation that a network has."""
    return normalisations.checked(module.mean, module.std)


def normalisation(
    module: Normalised, arrays: Arrays, file: WeightFile, found: Resolved, asked: str | None
) -> Normalisation:
    """How the images of these weights are normalised; see ``weights.normalisation``.

    arrays: under their plain names. asked: what the user says, a name or six numbers. Raises
    UserError where nothing tells it, and where ``asked`` contradicts what does.
    """
    called = str(found.path)
    entry = known(file, found)
    because, told = "it records so", normalisations.recorded(file.about, called)
    if told is None and entry is not None:
        because, told = f"`wsss weights list`: {entry.file}", entry.normalisation
    if told is None:
        because, told = "its config.json", import_hub.configured(found.path)
    if told is None and asked is not None:
        told = normalisations.by_names(arrays, None)
        because = "the names of its arrays"
    elif told is None:
        told = normalisations.by_names(arrays, own(module))
    return normalisations.decided(asked, told, called, because)


def known(file: WeightFile, found: Resolved) -> Weights | None:
    """The entry of WEIGHTS that a file is, or was converted from."""
    return found.entry or WEIGHTS.get(file.about.get("weights", ""))


def hint(file: WeightFile, found: Resolved) -> str:
    """What the file is, where it is known to be for another network or one that is not here."""
    entry = known(file, found)
    network = file.about.get("network") or (entry.network if entry is not None else None)
    if network is not None:
        return f"these are weights of {network}: give that backbone"
    family = next((f for n in unwrapped(file.arrays) if (f := family_of(n)) is not None), None)
    if family is not None:
        return f"this is a {family.name}, which is not supported; take {family.instead}"
    return ""


def fill(module: nnx.Module, arrays: Arrays, *, called: str = "the file") -> None:
    """Fill from arrays by their names in a file; ``called`` is what errors call them."""
    arrays, table = meaning(module, arrays, called=called)
    import_names.fill(module, arrays, table, called=called)


def plain(module: nnx.Module, file: WeightFile, *, called: str) -> tuple[Arrays, Table]:
    """``meaning`` of what a file holds, MXNet's names translated."""
    arrays: Arrays = file.arrays
    if file.kind == "mxnet":
        if not isinstance(module, Renamed):
            raise UserError(f"{type(module).__name__} was never published for MXNet: {called}")
        arrays = {module.from_mxnet(name): value for name, value in arrays.items()}
    return meaning(module, arrays, called=called)


def meaning(
    module: nnx.Module, arrays: Arrays, *, called: str = "the file"
) -> tuple[Arrays, Table]:
    """What arrays mean to a network: they under their plain names, and the table for these.

    Of the wrappers that the names may have (PREFIXES) that one is taken off which leaves the
    fewest names wrong. Raises UserError for a network that was never published, given any but our
    own file.
    """
    paths = import_names.values_of(module)
    best, fewest = None, 0
    for candidate in unwrapped(arrays):
        found = _meaning(module, paths, candidate, called)
        wrong = import_names.misnamed(*found)
        if best is None or wrong < fewest:
            best, fewest = found, wrong
        if not wrong:
            break
    assert best is not None
    return best


def unwrapped(arrays: Arrays) -> Iterator[Arrays]:
    """The arrays as they are; then under each wrapper that their names have, at most four deep."""
    waiting = [(dict(arrays), 0)]
    while waiting:
        names, depth = waiting.pop(0)
        yield names
        for prefix in PREFIXES if depth < 4 else ():
            inner = {n.removeprefix(prefix): x for n, x in names.items() if n.startswith(prefix)}
            if len(inner) > 1:
                waiting.append((inner, depth + 1))


def save(module: nnx.Module, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write every parameter and running statistic under our names, whole or not at all.

    The normalisation of its images is written too. about: further notes. Raises ValueError for a
    path that does not end in .npz, and OSError that names the file where it cannot be written.
    """
    if path.suffix != ".npz":
        raise UserError(f"{path}: our own files are .npz; name it {path.stem}.npz")
    partial = path.with_name(f".{path.stem}.partial.npz")
    values = import_names.values_of(module)
    arrays: Any = {name: np.asarray(v[...]) for name, v in values.items()}
    notes = dict(about or {})
    if isinstance(module, Normalised):
        notes |= {part: json.dumps(list(getattr(module, part))) for part in ("mean", "std")}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import_files.write_npz(partial, arrays, notes)
        os.replace(partial, path)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise OSError(problem.errno, problem.strerror or str(problem), str(path)) from problem


def _meaning(
    module: nnx.Module, paths: Mapping[str, Any], arrays: Arrays, called: str
) -> tuple[Arrays, Table]:
    if arrays.keys() & paths.keys():
        return arrays, _own(module)
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


def _own(module: nnx.Module) -> Table:
    """Our own names as they are; positions alone may be stored on another grid."""
    sources = dict(import_names.own_table(module).sources)
    for path in sources:
        if path.endswith(vit_names.POSITION):
            sources[path] = Source((path,), vit_names.own_position)
    return Table(sources)
