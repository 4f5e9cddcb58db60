"""Lists of ids and image-level labels, as they come in files.

Three forms of labels are read: ``labels.json`` / ``image_labels.json``, an npz of ids and a 0/1
matrix, and the XML annotations of PASCAL VOC. A damaged entry of one image is an error of that
image only, raised when its labels are asked for. Not here: pictures.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
from jaxtyping import Bool

from wsss_jax.data.classes import BACKGROUND, ClassList
from wsss_jax.data.files import check_id, path_of
from wsss_jax.data.stores import read_npz
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import read_bytes

VOID = "void"
_MAX_XML = 2**20
_FIRST_OF_MASKS = (VOID, BACKGROUND)


def read_list(path: Path) -> tuple[str, ...]:
    """The ids of a list, one a line, in its order and as they stand, repeated ones included.

    Byte-order marks, Windows line ends and blank lines are ignored. Raises BadFileError where the
    file is missing or no UTF-8 text; ``ids_of`` is the strict reader.
    """
    content = read_bytes(path)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise BadFileError(f"{path}: not UTF-8 text ({problem}); save it as UTF-8") from problem
    return tuple(line.strip() for line in lines if line.strip())


def ids_of(path: Path) -> tuple[str, ...]:
    """The ids of a list that is fit for use: not empty, none twice, all safe as file names.

    Raises BadFileError that names the first offender.
    """
    return checked_ids(read_list(path), path)


def checked_ids(ids: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The ids themselves, when there are any, each once and safe as a file name: else BadFileError.

    path: what the error names.
    """
    if not ids:
        raise BadFileError(f"{path}: no ids in it; wanted one id a line")
    for id in ids:
        try:
            check_id(id)
        except ValueError as problem:
            raise BadFileError(f"{path}: {problem}") from problem
    twice = repeated(ids)
    if twice:
        raise BadFileError(f"{path}: {len(twice)} ids stand in it twice, the first is {twice[0]!r}")
    return ids


def repeated(ids: Iterable[str]) -> tuple[str, ...]:
    """The ids that stand in a sequence more than once, each named once."""
    seen: set[str] = set()
    return tuple(dict.fromkeys(id for id in ids if id in seen or seen.add(id)))


def read_json(path: Path, limit: int, pairs: Any = None) -> Any:
    """A JSON value of at most ``limit`` bytes. Raises BadFileError. ``pairs``: as in json.loads."""
    content = read_bytes(path, limit)
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as problem:
        raise BadFileError(f"{path}: not JSON ({problem})") from problem


@dataclass(frozen=True)
class LabelTable:
    """Labels of all images from one file, as names or numbers, looked up one image at a time.

    entries: names or whole numbers by image id. first: the number of class 0. void: the mask value
    of pixels without truth besides 255, None where 0 is background. twice: ids that came twice.
    """

    path: Path
    classes: ClassList
    entries: Mapping[str, Any]
    first: int = 0
    void: int | None = None
    twice: tuple[str, ...] = ()

    def of(self, id: str) -> Bool[np.ndarray, " c"]:
        """Labels of one image; MissingFileError or BadFileError where they are missing or bad."""
        if id not in self.entries:
            raise MissingFileError(f"{self.path}: no labels of {id}")
        entry = self.entries[id]
        if not isinstance(entry, (list, tuple)):
            raise BadFileError(f"{self.path}: labels of {id} are {entry!r}, wanted a list")
        labels = np.zeros(len(self.classes), bool)
        for value in entry:
            labels[self._index(id, value)] = True
        return labels

    def _index(self, id: str, value: Any) -> int:
        if isinstance(value, str):
            try:
                return self.classes.index(value)
            except ValueError as problem:
                raise BadFileError(f"{self.path}: label of {id}: {problem}") from problem
        last = self.first + len(self.classes) - 1
        if type(value) is int and self.first <= value <= last:
            return value - self.first
        raise BadFileError(
            f"{self.path}: label of {id} is {value!r}, wanted a class name or a whole number from "
            f"{self.first} to {last}"
        )


def json_table(path: Path) -> LabelTable:
    """Labels from ``{"classes": [names], "image_labels": {id: [names or numbers]}}``.

    Numbers count the foreground classes from 0. Where the first class is called "void" or
    "background", the list is in mask numbering: numbers are mask values from 1 on, the first name
    is no class, and "void" means that 0 marks pixels without truth (MSRC). ``"background": false``
    says the same of 0 where no void class is listed. Raises BadFileError.
    """
    repeats: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        repeats.extend(repeated(key for key, _ in items))
        return dict(items)

    table = read_json(path, 2**28, pairs)
    names = table.get("classes") if isinstance(table, dict) else None
    entries = table.get("image_labels") if isinstance(table, dict) else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise BadFileError(f'{path}: wanted {{"classes": [names], "image_labels": {{…}}}}')
    if not isinstance(entries, dict):
        raise BadFileError(f'{path}: no "image_labels" by image id; wanted {{id: [names]}}')
    as_masks = bool(names) and names[0] in _FIRST_OF_MASKS
    no_truth = names[:1] == [VOID] or table.get("background") is False
    classes = _classes(path, names[1:] if as_masks else names)
    return LabelTable(path, classes, entries, int(as_masks), 0 if no_truth else None, (*repeats,))


def npz_table(path: Path, classes: ClassList) -> LabelTable:
    """Labels from an npz with ``ids`` (n,) strings and ``labels`` (n, C) zeros and ones.

    This is ``cls_labels.npy`` of the IRN code base (Ahn et al. 2019), saved without pickle.
    Raises BadFileError.
    """
    arrays = read_npz(path, {"ids": "U", "labels": "bui"})
    ids, labels = arrays["ids"], arrays["labels"]
    if ids.ndim != 1 or labels.shape != (len(ids), len(classes)):
        raise BadFileError(
            f"{path}: ids {ids.shape} and labels {labels.shape}, wanted (n,) and "
            f"(n, {len(classes)}) for the classes {', '.join(classes.names)}"
        )
    names = [str(id) for id in ids]
    entries = {name: np.flatnonzero(row).tolist() for name, row in zip(names, labels, strict=True)}
    return LabelTable(path, classes, entries, twice=repeated(names))


@dataclass(frozen=True)
class Annotations:
    """Labels from one XML file an image, as PASCAL VOC has them; every object counts.

    Objects marked difficult or truncated are labels too, as in the lists of IRN. Documents with a
    DOCTYPE are refused, so no entity is ever expanded, and so are files above 1 MiB.
    """

    folder: Path
    classes: ClassList
    void: int | None = None
    twice: tuple[str, ...] = ()

    def of(self, id: str) -> Bool[np.ndarray, " c"]:
        """Labels of one image; MissingFileError or BadFileError where they are missing or bad."""
        path = path_of(self.folder, id, ".xml")
        content = read_bytes(path, _MAX_XML)
        try:
            return self.classes.multi_hot(_object_names(content))
        except (expat.ExpatError, ValueError) as problem:
            raise BadFileError(f"{path}: {problem}") from problem


def _classes(path: Path, names: list[str]) -> ClassList:
    try:
        return ClassList(tuple(names))
    except ValueError as problem:
        raise BadFileError(f"{path}: {problem}") from problem


def _object_names(content: bytes) -> list[str]:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    opened: list[str] = []
    names: list[str] = []

    def refuse(*_: Any) -> None:
        raise UserError("a DOCTYPE, wanted a plain annotation without entities")

    def start(tag: str, _: Any) -> None:
        opened.append(tag)
        if opened == ["annotation", "object", "name"]:
            names.append("")

    def text(data: str) -> None:
        if opened == ["annotation", "object", "name"]:
            names[-1] += data

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: opened.pop() and None
    parser.CharacterDataHandler = text
    parser.Parse(content, True)
    return [name.strip() for name in names]
