"""Image-level labels, as they come in files of one form or another, looked up by photograph.

A photograph that shows no class has an empty list, which is a label; one of which nothing is known
has no entry, which is an error of that photograph. A damaged entry is an error of its photograph
only, raised when its labels are asked for. Not here: tables in text files (``tables``).
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
from jaxtyping import Bool

from wsss_jax.data.classes import COCO, IGNORED, NO_CLASS, VOC, ClassList
from wsss_jax.data.ids import PHOTOGRAPHS, Index, files_below
from wsss_jax.data.stores import read_npz
from wsss_jax.data.texts import MISTAKES, read_json, read_text
from wsss_jax.datasets.cells import in_order, names_in, spelling_of, spellings
from wsss_jax.datasets.lists import repeated
from wsss_jax.errors import BadFileError, MissingFileError, UserError, first_few
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.formats.pickled_arrays import read_dictionary

ANNOTATIONS = "Annotations"
"""Folder of one XML file a photograph, as PASCAL VOC has them."""

CLASS_FILES = ("class_names.txt", "classes.txt", "class_names.csv", "labels.txt")
"""Files that list the classes of a data set in the order of its masks, one a line."""

MAX_STEPS = 50_000_000
"""Operations of a pickle of labels; the 12,000 photographs of VOC take about 300,000."""

_MAX_XML = 2**20
_NUMBERED = re.compile(r"(\d{1,9})\s*[:,;.)=\t ]\s*(.+)")
_ROWS = re.compile(rf"[,;|\t]|({'|'.join(map(re.escape, PHOTOGRAPHS))})\s", re.IGNORECASE)
_MOST_OF_VOC = 15


@dataclass(frozen=True)
class LabelTable:
    """Labels of all photographs, as names or numbers, looked up one photograph at a time.

    entries: names or whole numbers by id, or an error of that photograph alone. first: the number
    of class 0. void: the mask value of pixels without truth besides 255, None where 0 is
    background. twice: ids that came twice. notes: what was decided when the file was read.
    """

    path: Path
    classes: ClassList
    entries: Mapping[str, Any]
    first: int = 0
    void: int | None = None
    twice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, id: str) -> Bool[np.ndarray, " c"]:
        """Labels of one photograph; MissingFileError or BadFileError where missing or bad."""
        if id not in self.entries:
            raise MissingFileError(f"{self.path}: no labels of {id}")
        entry = self.entries[id]
        if isinstance(entry, BadFileError):
            raise BadFileError(str(entry))
        if not isinstance(entry, (list, tuple)):
            told = repr(entry)[:60]
            raise BadFileError(f'{self.path}: labels of {id} are {told}, wanted a list: ["cat"]')
        labels = np.zeros(len(self.classes), bool)
        for value in entry:
            index = self._index(id, value)
            if labels[index] and not isinstance(value, str):
                raise BadFileError(
                    f"{self.path}: labels of {id} are {str(entry)[:60]}, with {value} twice; "
                    f"wanted numbers of classes, or a 0 or 1 for each of {len(self.classes)}"
                )
            labels[index] = True
        return labels

    def matched(self, index: Index) -> "LabelTable":
        """The same with names of files turned into ids; those of no photograph stay."""
        found = {name: index.find(name) or name for name in self.entries}
        files = [name for name in self.classes.names if index.find(name) is not None]
        if 2 * len(files) > len(self.classes) and not any(
            id in index.files for id in found.values()
        ):
            raise BadFileError(
                f"{self.path}: its classes are called like photographs ({first_few(files)}), "
                "its photographs are not; wanted the classes of each photograph"
            )
        entries = {found[name]: entry for name, entry in self.entries.items()}
        twice = (*self.twice, *(id for id in repeated(found.values()) if id not in self.twice))
        return replace(self, entries=entries, twice=twice)

    def _index(self, id: str, value: Any) -> int:
        if isinstance(value, str):
            try:
                return self.classes.index(value)
            except ValueError as problem:
                raise BadFileError(f"{self.path}: label of {id}: {problem}") from problem
        last = self.first + len(self.classes) - 1
        if type(value) is int and self.first <= value <= last:
            return value - self.first
        told = repr(value)[:40]
        raise BadFileError(
            f"{self.path}: label of {id} is {told}, wanted a class name or a whole number from "
            f"{self.first} to {last}"
        )


def json_table(path: Path) -> LabelTable:
    """Labels from ``{"classes": [names], "image_labels": {id: [names or numbers]}}``.

    Numbers count the foreground classes from 0. Where the first class is called "void" or
    "background", the list is in mask numbering: numbers are mask values from 1 on, the first name
    is no class, and "void" means that 0 marks pixels without truth (MSRC). ``"background": false``
    says the same of 0 where no void class is listed. ``{id: [names]}`` or ``{id: "cat;dog"}`` alone
    is read as well; its classes are those that occur. Raises BadFileError.
    """
    repeats: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        repeats.extend(repeated(key for key, _ in items))
        return dict(items)

    table = read_json(path, 2**28, pairs)
    if isinstance(table, dict) and table and not {"classes", "image_labels"} & set(table):
        return _plain(path, table, tuple(repeats))
    names = table.get("classes") if isinstance(table, dict) else None
    entries = table.get("image_labels") if isinstance(table, dict) else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise BadFileError(
            f'{path}: wanted {{"im0.jpg": ["cat", "dog"], "im1.jpg": []}}, or {{"classes": '
            '["cat", "dog"], "image_labels": {…}}'
        )
    if not isinstance(entries, dict):
        raise BadFileError(f'{path}: no "image_labels" by image id; wanted {{id: [names]}}')
    rows = _flags(entries, names)
    notes = () if rows is entries else ("labels are rows of 0 and 1, one for each class",)
    entries = {
        id: names_in(own, names) if isinstance(own, str) else own for id, own in rows.items()
    }
    as_masks = bool(names) and names[0].casefold() in NO_CLASS | IGNORED
    no_truth = (as_masks and names[0].casefold() in IGNORED) or table.get("background") is False
    classes = class_list(path, names[1:] if as_masks else names)
    _check_first(path, entries, int(as_masks), len(classes))
    void = 0 if no_truth else None
    return LabelTable(path, classes, entries, int(as_masks), void, (*repeats,), notes)


def _check_first(path: Path, entries: Mapping[str, Any], first: int, count: int) -> None:
    """BadFileError where numbers of classes run from 1, though the first class is 0."""
    lists = [own for own in entries.values() if isinstance(own, list)]
    numbers = {n for own in lists for n in own if type(n) is int}
    if numbers and min(numbers) > first and max(numbers) == first + count:
        raise BadFileError(
            f"{path}: numbers of classes go up to {max(numbers)} and not below {min(numbers)}, "
            f"wanted {first} to {first + count - 1}; count from {first}, or write the names"
        )


def _plain(path: Path, table: Mapping[str, Any], twice: tuple[str, ...]) -> LabelTable:
    """Labels by photograph and nothing else."""
    found: dict[str, list[str]] = {}
    bad: dict[str, BadFileError] = {}
    for id, value in table.items():
        cells = [value] if isinstance(value, str) else value
        if not (isinstance(cells, list) and all(isinstance(cell, str) for cell in cells)):
            told = repr(value)[:60]
            bad[id] = BadFileError(f'{path}: labels of {id} are {told}, wanted {{"{id}": ["cat"]}}')
            continue
        found[id] = [name for cell in cells for name in names_in(cell)]
    if not any(found.values()):
        raise next(iter(bad.values()), BadFileError(f"{path}: no class is named in it"))
    entries, notes = spellings(found)
    classes = class_list(path, in_order({name for own in entries.values() for name in own}))
    return LabelTable(path, classes, {**entries, **bad}, twice=twice, notes=tuple(notes))


def _flags(entries: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
    """Entries that are rows of 0 and 1, one for each class, as names; others as they stand.

    As numbers such rows would name the classes 0 and 1 in every photograph.
    """
    rows = [entry for entry in entries.values() if isinstance(entry, list)]
    whole = all(len(row) == len(names) and all(n in (0, 1) for n in row) for row in rows)
    numbers = {n for row in rows for n in row if type(n) is int} == {0} and len(names) == 1
    if not rows or not whole or numbers or any(isinstance(n, str) for row in rows for n in row):
        return entries
    return {
        id: [name for name, n in zip(names, row, strict=True) if n]
        if isinstance(row, list)
        else row
        for id, row in entries.items()
    }


def npz_table(path: Path, classes: ClassList) -> LabelTable:
    """Labels from an npz with ``ids`` (n,) strings and ``labels`` (n, C) zeros and ones.

    This is ``cls_labels.npy`` of the IRN code base (Ahn et al. 2019), saved without pickle.
    Raises BadFileError.
    """
    arrays = read_npz(path, {"ids": "U", "labels": "buif"})
    ids, labels = arrays["ids"], arrays["labels"]
    if ids.ndim != 1 or labels.shape != (len(ids), len(classes)):
        raise BadFileError(
            f"{path}: ids {ids.shape} and labels {labels.shape}, wanted (n,) and "
            f"(n, {len(classes)}) for the classes {', '.join(classes.names)}"
        )
    names = [str(id) for id in ids]
    entries = {name: _shown(path, name, row) for name, row in zip(names, labels, strict=True)}
    return LabelTable(path, classes, entries, twice=repeated(names))


def npy_table(path: Path, classes: ClassList | None) -> LabelTable:
    """Labels from ``cls_labels.npy``: a pickled dictionary of vectors, read without unpickling.

    Keys are ids, or whole numbers as IRN writes them (2007000032 is 2007_000032). classes: of the
    vectors, None for the 20 of VOC or the 80 of COCO by their length. Raises BadFileError.
    """
    vectors = {name: np.asarray(v) for name, v in read_dictionary(path, MAX_STEPS).items()}
    shapes = {vector.shape for vector in vectors.values()}
    known = [names for names in (classes or VOC, classes or COCO) if shapes == {(len(names),)}]
    if not known:
        raise BadFileError(
            f"{path}: vectors of shapes {sorted(shapes)[:3]}, wanted one number for each class; "
            f"list the classes in {CLASS_FILES[0]}, one a line"
        )
    entries = {
        f"{key // 10**6}_{key % 10**6:06d}" if isinstance(key, int) else key: _shown(
            path, str(key), vector
        )
        for key, vector in vectors.items()
    }
    return LabelTable(path, known[0], entries)


def _shown(path: Path, name: str, vector: np.ndarray) -> list[int] | BadFileError:
    """Numbers of the classes that a vector of 0 and 1 shows; VOC writes -1 for what is not shown,
    and 0 for what is hard to see."""
    strange = [n for n in np.unique(vector).tolist() if n not in (-1, 0, 1)]
    if strange:
        some = first_few(strange)
        return BadFileError(f"{path}: {name} has the values {some}, wanted 0 or 1 for each class")
    return np.flatnonzero(vector > 0).tolist()


def class_file(*folders: Path) -> ClassList | None:
    """The classes that a file of CLASS_FILES lists, without background; None without a file."""
    for path in (folder / name for folder in folders for name in CLASS_FILES):
        if is_class_file(path):
            names = _class_lines(path)
            return class_list(path, [n for n in names if n.casefold() not in NO_CLASS | IGNORED])
    return None


def _class_lines(path: Path) -> list[str]:
    """Names in a file of one class a line, which may be numbered; comments (# …) are left out."""
    lines = [line.strip().strip(",;") for line in read_text(path)[0].splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) == 1 and re.search("[,;]", lines[0]):
        raise BadFileError(f"{path}: several classes in one line; write one class a line")
    found = [_NUMBERED.fullmatch(line) for line in lines]
    if len(found) > 2 and found[0] is None and all(found[1:]):
        found = found[1:]  # the header of a table
    if all(found) and found:
        numbers = [int(match[1]) for match in found if match]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise BadFileError(
                f"{path}: numbers of classes with gaps or out of order: {numbers[:9]}"
            )
        lines = [match[2] for match in found if match]
    return [line.strip().strip("\"'").strip() for line in lines]


def is_class_file(path: Path) -> bool:
    """Whether a file lists classes; labels.txt may be a table of labels as well."""
    if path.name not in CLASS_FILES or not path.is_file():
        return False
    return path.name != "labels.txt" or not _ROWS.search(read_text(path)[0])


def xml_table(folder: Path, classes: ClassList | None, *, masks: bool) -> LabelTable:
    """Labels from one XML file a photograph, as PASCAL VOC has them; every object counts.

    Objects marked difficult or truncated are labels too, as in the lists of IRN. A damaged file is
    an error of its photograph, and so is one that declares entities (none is ever expanded) or has
    more than 1 MiB. classes: None for the names that occur; they are those of VOC
    where most of its 20 occur, or where there are masks and only its names occur. masks: whether
    there are any. Raises BadFileError where no object has a name.
    """
    files = [path for path in files_below(folder) if path.suffix.lower() == ".xml"]
    entries = {path.stem: _objects(path, path.stat().st_mtime_ns) for path in files}
    good = {id: entry for id, entry in entries.items() if isinstance(entry, tuple)}
    spelled = spelling_of(good)
    if set(spelled) <= {name.casefold() for name in VOC.names}:
        spelled = {name.casefold(): name for name in VOC.names}
    good = {id: [spelled[name.casefold()] for name in own] for id, own in good.items()}
    entries = {**entries, **good}
    found = {name for own in good.values() for name in own}
    notes: tuple[str, ...] = ()
    if classes is None:
        of_voc = found & set(VOC.names)
        if len(of_voc) >= _MOST_OF_VOC or (masks and found <= of_voc):
            classes = VOC
        elif not found:
            bad = next((str(e) for e in entries.values() if isinstance(e, BadFileError)),
                       "no objects")  # fmt: skip
            raise BadFileError(f"{folder}: no class is named in {len(files)} files ({bad})")
        else:
            order = VOC.names if found <= of_voc else sorted(found, key=str.casefold)
            classes = class_list(folder, [name for name in order if name in found])
        if classes is not VOC:
            notes = (f"classes are those that occur: {', '.join(classes.names)}",)
    return LabelTable(folder, classes, entries, notes=notes)


@lru_cache(maxsize=200_000)
def _objects(path: Path, changed: int) -> tuple[str, ...] | BadFileError:
    """Names of the objects of one file, read again only when it was changed."""
    try:
        names = [one.get("name", "") for one in xml_objects(path)[0]]
    except BadFileError as problem:
        return problem
    if not all(names):
        return BadFileError(f"{path}: an object without a name; write the class that it shows")
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def xml_objects(path: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The objects of one annotation of VOC, and the size of the photograph, both as texts.

    An object's texts go by their place in it, such as name and bndbox/xmin. Raises BadFileError.
    """
    content = read_bytes(path, _MAX_XML)
    try:
        return _object_texts(content)
    except expat.ExpatError as problem:
        raise BadFileError(f"{path}: damaged XML ({problem}); write it anew, as UTF-8") from problem
    except MISTAKES as problem:
        raise BadFileError(f"{path}: {problem}") from problem


def class_list(path: Path, names: list[str]) -> ClassList:
    """The classes that a file names. Raises BadFileError."""
    try:
        return ClassList(tuple(names))
    except ValueError as problem:
        raise BadFileError(f"{path}: {problem}") from problem


def _object_texts(content: bytes) -> tuple[list[dict[str, str]], dict[str, str]]:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    opened: list[str] = []
    objects: list[dict[str, str]] = []
    size: dict[str, str] = {}

    def doctype(name: str, system: Any, public: Any, declares: int) -> None:
        if declares:
            raise UserError("a DOCTYPE with declarations; delete it from <!DOCTYPE to its end")

    def entity(name: str, *_: Any) -> None:
        raise UserError(f"an entity &{name}; that nothing declares; write the letter itself")

    def place() -> dict[str, str] | None:
        if opened[:2] == ["annotation", "object"]:
            return objects[-1]
        return size if opened[:2] == ["annotation", "size"] else None

    def start(tag: str, _: Any) -> None:
        opened.append(tag)
        if opened[0] != "annotation":
            raise UserError(f"a document <{tag}>, wanted <annotation>")
        if opened == ["annotation", "object"]:
            objects.append({})
        elif (found := place()) is not None and len(opened) > 2:
            where = "/".join(opened[2:])
            if where == "name" in found:
                raise UserError("an object with two names; give each object its own")
            found.setdefault(where, "")

    def text(data: str) -> None:
        if (found := place()) is not None and len(opened) > 2:
            found["/".join(opened[2:])] += data

    parser.StartDoctypeDeclHandler = doctype
    parser.SkippedEntityHandler = entity
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: opened.pop() and None
    parser.CharacterDataHandler = text
    parser.Parse(content, True)
    return [{k: " ".join(v.split()) for k, v in one.items()} for one in objects], size
