"""Where the files of a folder lie that belong to images: sub-folders, and what follows the id.

Tools write ``<id>.npy``, ``<id>.jpg.npy``, ``<id>_cam.npy`` or ``<id>_<class>.png``, into the
folder or below it. Names are compared with the ids of the data set; what fits none is passed over.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from wsss_jax.data.ids import disk_name
from wsss_jax.errors import BadFileError, first_few
from wsss_jax.priors.external import Place

MAX_DEPTH = 4
"""Levels of sub-folders that are looked through."""

RARE = 0.2
"""Odd suffixes are passed over where fewer than this share of the commonest has them: an id may
begin as the id of another data set does."""

_NUMBER = re.compile(r"_(\d{1,3})(\.(?:png|jpg|jpeg))", re.IGNORECASE)
_BETWEEN = re.compile(r"(\.(jpg|jpeg|png)|[_.-][A-Za-z]\w*|_1)?", re.IGNORECASE)
_SEPARATORS = "._-"

Found = Mapping[Place, Sequence[str]]
"""Ids by place."""


def find(folder: Path, ids: Iterable[str], endings: Sequence[str]) -> Found:
    """Ids that have files, by place, the commonest place first.

    endings: of the names, with their dot. The folder's own files go before those of sub-folders.
    """
    known = {name: id for id in ids for name in (disk_name(id), id)}
    for deep in (False, True):
        found: dict[Place, list[str]] = {}
        for below, name in _names(folder, MAX_DEPTH if deep else 0):
            for where, whole in _cuts(below, name):
                if (split := _split(whole, known, endings)) is not None:
                    found.setdefault(Place(where, split[1]), []).append(split[0])
                    break
        if found:
            break
    kept = _common({place: sorted(set(there)) for place, there in found.items()})
    return dict(sorted(kept.items(), key=lambda item: (-len(item[1]), item[0])))


def one_each(folder: Path, found: Found, suffix: str | None = None) -> tuple[Place, ...]:
    """The places, when no image has two files. Raises BadFileError that names two.

    suffix: keep the places where just this follows the id.
    """
    if suffix is not None:
        named = {place: ids for place, ids in found.items() if place.suffix == suffix}
        if not named:
            there = ", ".join(sorted({place.suffix for place in found})) or "nothing"
            raise BadFileError(f"{folder}: no file of an image ends in {suffix}; there is {there}")
        found = named
    first: dict[str, Place] = {}
    for place, ids in found.items():
        for id in ids:
            other = first.setdefault(id, place)
            if other is not place:
                raise BadFileError(f"{folder}: both {_two(id, other, place)}")
    return tuple(found)


def in_words(places: Sequence[Place]) -> str:
    """Places as a user would write them."""
    return ", ".join(_word(place) for place in places)


def _word(place: Place) -> str:
    return f"{place.folder}/<id>{place.suffix.replace('#', '<class>')}".lstrip("/")


def listing(folder: Path) -> str:
    """The first names in a folder, in words."""
    names = sorted(entry.name for entry in os.scandir(folder))
    return first_few(names) if names else "nothing"


def _two(id: str, one: Place, other: Place) -> str:
    names = [f"{p.folder}/{id}{p.suffix}".lstrip("/") for p in sorted((one, other))]
    what = " and ".join(names)
    if one.folder != other.folder:
        return (
            f"{what}; import the one folder that is meant (maps of one class each: into one file)"
        )
    if Path(names[0]).suffix != Path(names[1]).suffix:
        return f"{what}; say which with --layout"
    if Path(names[0]).suffix in (".png", ".jpg", ".jpeg"):
        what += ": a picture for each class is read as <id>_<class number>.png; else"
    return f"{what}; say which with --suffix {one.suffix} or --suffix {other.suffix}"


def _names(folder: Path, depth: int) -> Iterator[tuple[str, str]]:
    """(sub-folder, name) of every file, up to ``depth`` levels down; hidden ones are left out."""
    for root, below, names in os.walk(folder):
        inside = os.path.relpath(root, folder)
        inside = "" if inside == "." else inside
        level = inside.count(os.sep) + 1 if inside else 0
        below[:] = sorted(n for n in below if not n.startswith(".")) if level < depth else []
        yield from ((inside, name) for name in names if not name.startswith("."))


def _cuts(below: str, name: str) -> Iterator[tuple[str, str]]:
    """(sub-folder, name): ids may have folders, so more and more of these go to the name."""
    yield below, name
    while below:
        below, last = os.path.split(below)
        name = f"{last}/{name}"
        yield below, name


def _split(name: str, ids: Mapping[str, str], endings: Sequence[str]) -> tuple[str, str] | None:
    """The id of the longest name that a file's begins with, and its suffix, if that is known.

    ids: by name.
    """
    ending = os.path.splitext(name)[1]
    if ending.lower() not in endings:
        return None
    for cut in range(len(name) - len(ending), 0, -1):
        if name[cut] in _SEPARATORS and name[:cut] in ids:
            suffix = name[cut:]
            if match := _NUMBER.fullmatch(suffix):
                return ids[name[:cut]], f"_#{match[2]}"
            return (ids[name[:cut]], suffix) if _BETWEEN.fullmatch(suffix[: -len(ending)]) else None
    return None


def _common(found: dict[Place, list[str]]) -> dict[Place, list[str]]:
    most = max((len(ids) for ids in found.values()), default=0)
    return {
        place: ids
        for place, ids in found.items()
        if len(ids) >= RARE * most or re.fullmatch(r"\.\w+", place.suffix)
    }
