"""Tables of labels, as spreadsheets and scripts write them, in whatever form they come.

Read are rows of file and label (``im0.jpg,cat``, one label a row or several in one cell:
``cat;dog``), and one column per class with 0 and 1. Delimiter, encoding, header and the order of
the columns are told from the table itself: the column of files is the one that names photographs.
An empty cell of labels means that the photograph shows none of the classes. What was decided is
in the notes of the table, which ``wsss check`` prints.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_jax.data.classes import NO_CLASS, ClassList
from wsss_jax.data.ids import PHOTOGRAPHS, Index
from wsss_jax.data.texts import read_text
from wsss_jax.datasets.labels import LabelTable, class_list
from wsss_jax.datasets.lists import repeated
from wsss_jax.errors import BadFileError

DELIMITERS = (",", ";", "\t", "|", " ")

_LOOK = 300
_FILE = re.compile(
    r"(file|image|img|photo|picture|path|id|name|bild|datei|foto|fichier|archivo)[a-z _-]*",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(label|class|categor|tag|klasse|kategorie|target|annotation|object)[a-z _-]*", re.IGNORECASE
)
_YES = {"1": True, "1.0": True, "true": True, "yes": True, "x": True}
_NO = {"0": False, "0.0": False, "-1": False, "false": False, "no": False}
_NONE = NO_CLASS | {"", "none"}
_FLAGS = _YES | _NO

Rows = list[list[str]]


@dataclass(frozen=True)
class _Layout:
    """How a table is to be read. column: of the files. header: its cells, none without a header."""

    rows: Rows
    column: int
    header: list[str]


def text_table(path: Path, index: Index, classes: ClassList | None) -> LabelTable:
    """Labels from a table in a text file. classes: their order where it is known, else A to Z.

    Raises BadFileError where no column names photographs, or no class is named.
    """
    text, encoding = read_text(path)
    layout, delimiter = _layout(path, text, index)
    width = max(map(len, layout.rows), default=0)
    flags = _flag_columns(layout, width)
    notes = [f"{path.name} is read as {encoding}"] if "utf-8" not in encoding else []
    if flags:
        entries, names, more = _wide(path, layout, flags, width)
    else:
        entries, names, more = _long(path, layout, width, delimiter)
    if not names and classes is None:
        raise BadFileError(f"{path}: no class is named in it; wanted rows like im0.jpg,cat")
    known = classes or class_list(path, names)
    twice = repeated(row[layout.column].strip() for row in layout.rows) if flags else ()
    return LabelTable(path, known, entries, twice=twice, notes=(*notes, *more))


def _layout(path: Path, text: str, index: Index) -> tuple[_Layout, str]:
    """Rows, column of files and header under the delimiter that names most photographs."""
    best: tuple[int, int, str, Rows] = (0, 0, "", [])
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
        except csv.Error as problem:
            raise BadFileError(f"{path}: not a table ({problem})") from problem
        some = rows[:_LOOK]
        hits = Counter(n for row in some for n, cell in enumerate(row) if index.find(cell))
        column, count = max(hits.items(), key=lambda item: (item[1], -item[0]), default=(0, 0))
        if count > best[0] and max(map(len, rows)) > 1:
            best = (count, column, delimiter, rows)
    count, column, delimiter, rows = best
    if not count:
        raise BadFileError(
            f"{path}: no column of it names photographs; wanted rows like "
            f"{next(iter(index.files), 'im0')},label"
        )
    rows = [row for row in rows if len(row) > column and row[column].strip()]
    header = [cell.strip() for cell in rows[0]] if _is_header(rows, column, index) else []
    return _Layout(rows[1:] if header else rows, column, header), delimiter


def _is_header(rows: Rows, column: int, index: Index) -> bool:
    first = rows[0][column].strip()
    if index.find(first) or first.lower().endswith(PHOTOGRAPHS):
        return False
    others = [cell.strip().casefold() for n, cell in enumerate(rows[0]) if n != column]
    below = [cell.strip().casefold() for row in rows[1:] for cell in row[column + 1 :]]
    words = bool(_FILE.fullmatch(first)) or any(_LABEL.fullmatch(cell) for cell in others)
    return words or (bool(below) and set(below) <= set(_FLAGS) and not set(others) <= set(_FLAGS))


def _flag_columns(layout: _Layout, width: int) -> list[int]:
    """Columns of zeros and ones below the name of a class."""
    found = []
    for n in (n for n in range(min(width, len(layout.header))) if n != layout.column):
        cells = {row[n].strip().casefold() for row in layout.rows if n < len(row)} - {""}
        called = layout.header[n]
        flags = bool(cells) and cells <= set(_FLAGS)
        if _LABEL.fullmatch(called) and not flags:
            return []  # a column of labels, beside which others mean something else
        found += [n] if called and flags else []
    if len(found) == 1 and _LABEL.fullmatch(layout.header[found[0]]):
        return []  # file,label with classes that are called 0 and 1
    return found


def _wide(
    path: Path, layout: _Layout, flags: Sequence[int], width: int
) -> tuple[dict[str, Any], list[str], list[str]]:
    names = [layout.header[n] for n in flags]
    # Where zeros are written, an empty cell is a gap; where only ones are, it is a zero.
    written = {row[n].strip().casefold() for row in layout.rows for n in flags if n < len(row)}
    gaps = bool(written & set(_NO))
    entries: dict[str, Any] = {}
    for row in layout.rows:
        cells = [row[n].strip().casefold() if n < len(row) else "" for n in flags]
        file = row[layout.column].strip()
        lacking = [name for name, cell in zip(names, cells, strict=True) if not cell]
        if lacking and gaps:
            entries[file] = BadFileError(f"{path}: {file}: no 0 or 1 of {', '.join(lacking[:3])}")
        else:
            shown = zip(names, cells, strict=True)
            entries[file] = [n for n, cell in shown if cell and _FLAGS[cell]]
    classes = [name for name in names if name.casefold() not in NO_CLASS]
    for entry in entries.values():
        if isinstance(entry, list):
            entry[:] = [name for name in entry if name in classes]
    rest = [n for n in range(width) if n != layout.column and n not in flags]
    return entries, classes, _unread(layout, rest)


def _long(
    path: Path, layout: _Layout, width: int, delimiter: str
) -> tuple[dict[str, Any], list[str], list[str]]:
    columns = [n for n in range(width) if n != layout.column]
    if layout.header:
        chosen = [n for n in columns if n < len(layout.header) and _LABEL.match(layout.header[n])]
        if not chosen and len([n for n in columns if n < len(layout.header)]) > 1:
            raise BadFileError(
                f"{path}: which of the columns {', '.join(layout.header)} has the labels? call it "
                "label, or write 0 and 1 below the name of each class"
            )
        kept = _label_columns(layout.header, chosen) or columns
        unread = [n for n in columns if n < len(layout.header) and n not in kept]
        # What goes on behind the header belongs to a label in its last column.
        columns = kept + [n for n in columns if n >= len(layout.header) and n not in kept]
    else:
        unread = []
    separators = "".join(s for s in ";,|" if s != delimiter)
    found: dict[str, list[str]] = {}
    none: set[str] = set()
    for row in layout.rows:
        file = row[layout.column].strip()
        cells = [label for n in columns if n < len(row) for label in _labels(row[n], separators)]
        found.setdefault(file, []).extend(cells)
        none |= set() if cells else {file}
    spelled, notes = _spellings(found)
    entries: dict[str, Any] = {
        file: list(dict.fromkeys(spelled[label.casefold()] for label in labels))
        for file, labels in found.items()
    }
    for file in none:
        if entries[file]:
            entries[file] = BadFileError(
                f"{path}: {file}: one row names no class, another one does"
            )
    return entries, sorted(set(spelled.values()), key=str.casefold), notes + _unread(layout, unread)


def _label_columns(header: Sequence[str], chosen: Sequence[int]) -> list[int]:
    """Of several columns that may hold labels: label, else label1, label2 …, else class_name."""
    exact = [n for n in chosen if header[n].casefold() in ("label", "labels", "class", "classes")]
    counted = [n for n in chosen if header[n][-1:].isdigit()]
    named = [n for n in chosen if "name" in header[n].casefold()]
    return exact[:1] or counted or named[:1] or list(chosen[:1])


def _labels(cell: str, separators: str) -> list[str]:
    """The labels of one cell: ``cat``, ``cat;dog``, ``['cat', 'dog']``, or none."""
    text = cell.strip()
    if text[:1] + text[-1:] in ("[]", "()", "{}"):
        text, separators = text[1:-1], separators + ","
    parts = re.split(f"[{re.escape(separators)}]", text)
    labels = [part.strip().strip("\"'").strip() for part in parts]
    return [label for label in labels if label.casefold() not in _NONE]


def _spellings(found: dict[str, list[str]]) -> tuple[dict[str, str], list[str]]:
    """Of names that differ in capitals alone the most frequent one, and notes of such."""
    counts = Counter(label for labels in found.values() for label in labels)
    spelled: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spelled.setdefault(label.casefold(), label)
    others = [label for label in sorted(counts) if spelled[label.casefold()] != label]
    return spelled, [f"label {label} is read as {spelled[label.casefold()]}" for label in others]


def _unread(layout: _Layout, columns: Sequence[int]) -> list[str]:
    names = [layout.header[n] for n in columns if n < len(layout.header) and layout.header[n]]
    return [f"columns that are not read: {', '.join(names)}"] if names else []
