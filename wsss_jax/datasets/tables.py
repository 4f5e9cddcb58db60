"""Tables of labels, as spreadsheets and scripts write them, in whatever form they come.

Read are rows of file and label (``im0.jpg,cat``, one label a row or several in one cell:
``cat;dog``), and one column per class with 0 and 1. Delimiter, encoding, header and the order of
the columns are told from the table itself: the column of files is the one that names photographs.
An empty cell of labels means that the photograph shows none of the classes. What was decided is
in the notes of the table, which ``wsss check`` prints. Not here: what one cell means (``cells``),
and columns of boxes (``box_tables``).
"""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsss_jax.data.classes import NO_CLASS, ClassList
from wsss_jax.data.ids import PHOTOGRAPHS, Index, by_number
from wsss_jax.data.texts import read_text
from wsss_jax.datasets import cells as forms
from wsss_jax.datasets.labels import LabelTable, class_list
from wsss_jax.errors import BadFileError, first_few

DELIMITERS = (",", ";", "\t", "|", " ")

_LOOK = 300
_FILE = re.compile(
    r"(file|image|img|photo|picture|path|id|name|bild|datei|foto|fichier|archivo)[a-z _-]*",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(label|class|categor|tag|klasse|kategorie|bezeichnung|target|annotation|obje[ck]t|species"
    r"|étiquette|etiqueta|etichetta|clase|标签|类别)[a-z _-]*",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(|#|nr\.?|no\.?|num|number|nummer|index|idx|row|unnamed: \d+)", re.IGNORECASE
)
_OTHER = re.compile(rf"{_NUMBER.pattern}|split|subset|set|fold", re.IGNORECASE)
_SUM = re.compile(r"count|total|sum|anzahl|summe|gesamt|nombre|suma", re.IGNORECASE)
_SHOWN = re.compile(r"(is_?)?(confidence|present|presence|shown|visible|vorhanden)", re.IGNORECASE)
_FLAGS = forms.YES | forms.NO
_TOLD = _FLAGS - {"-"}  # which stands for nothing in columns of remarks

BOX_COLUMNS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
)
"""How the columns of boxes are called."""

Rows = list[list[str]]
Find = Callable[[str], str | None]


@dataclass(frozen=True)
class Layout:
    """How a table is to be read; cells of files are ids where they name a photograph.

    column: of the files. header: its cells, none without a header. above: lines over the header.
    """

    rows: Rows
    column: int
    header: list[str]
    above: int = 0


def text_table(path: Path, index: Index, classes: ClassList | None) -> LabelTable:
    """Labels from a table in a text file. classes: their order where it is known, else A to Z.

    Raises BadFileError where no column names photographs, or no class is named.
    """
    text, encoding = read_text(path)
    layout = layout_of(path, text, index)
    width = max(map(len, layout.rows), default=0)
    layout = _named(path, layout, width, classes)
    flags = _flag_columns(path, layout, width)
    notes = []
    if "utf-8" not in encoding:
        hint = "" if "utf" in encoding else "; where letters look wrong, save it as UTF-8"
        notes = [f"{path.name} is read as {encoding}{hint}"]
    notes += [f"lines above the header, not read: {layout.above}"] if layout.above else []
    if flags:
        entries, names, more = _wide(path, layout, flags, width)
    else:
        entries, names, more = _long(path, layout, width, classes)
    if not names and classes is None:
        raise BadFileError(f"{path}: no class is named in it; wanted rows like im0.jpg,cat")
    known = classes or class_list(path, names)
    return LabelTable(path, known, entries, notes=(*notes, *more))


def layout_of(path: Path, text: str, index: Index) -> Layout:
    """Rows, column of files and header under the delimiter that names most photographs."""
    best: tuple[int, int, Rows] = (0, 0, [])
    # Where many photographs of a table are not at hand, those that are may come late in it.
    for look, find in itertools.product((_LOOK, None), (index.find, by_number(index.files))):
        for delimiter in DELIMITERS:
            rows = _rows(path, text, delimiter)
            column, count = _column_of_files(rows[:look], find)
            if count > best[0] and max(map(len, rows)) > 1:
                best = (count, column, rows)
        if best[0]:
            break
    count, column, rows = best
    if not count:
        raise BadFileError(
            f"{path}: no column of it names photographs; wanted rows like "
            f"{next(iter(index.files), 'im0')},label"
        )
    _check_quotes(path, rows, index)
    _check_rows(path, rows, find, count)
    start, header = _header(rows, column, find)
    named = []
    for row in (row for row in rows[start:] if len(row) > column and row[column].strip()):
        id = find(row[column])
        if id is None and row[0].lstrip().startswith("#"):
            continue  # a comment
        # Two files that differ in their suffix alone stay two, for the data set to name them.
        row[column] = row[column].strip()
        if id is not None and len(index.files[id]) == 1:
            row[column] = id
        named.append(row)
    return Layout(named, column, header, max(start - 1, 0))


def _rows(path: Path, text: str, delimiter: str) -> Rows:
    try:
        # Line ends inside of quotes belong to their cell, so the reader gets them.
        found = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [[*map(forms.plain, row)] for row in found if any(row)]
    except csv.Error as problem:
        raise BadFileError(f"{path}: not a table ({problem})") from problem


def _column_of_files(rows: Rows, find: Find) -> tuple[int, int]:
    """The column that names most photographs, and how many.

    Numbers of rows may be names of photographs as well: of several columns the one that holds names
    of files, or is called so, goes before one that counts.
    """
    hits = Counter(n for row in rows for n, cell in enumerate(row) if find(cell))
    most = max(hits.values(), default=0)

    def rank(column: int) -> tuple[bool, bool, bool, int, int]:
        cells = [row[column].strip() for row in rows if column < len(row)]
        called = "" if find(cells[0]) else cells[0]
        counts = bool(_NUMBER.fullmatch(called) and called) or _counts(cells[bool(called) :])
        files = any(cell.lower().endswith(PHOTOGRAPHS) for cell in cells)
        wide = max(map(len, rows)) > 2
        return files, bool(_FILE.fullmatch(called)), not (wide and counts), hits[column], -column

    likely = [column for column, count in hits.items() if 2 * count >= most]
    column = max(likely, key=rank, default=0)
    return column, hits[column]


def _counts(cells: Sequence[str]) -> bool:
    """Whether a column is 0, 1, 2 … or 1, 2, 3 …"""
    return any(list(cells) == [str(n + first) for n in range(len(cells))] for first in (0, 1))


def _check_quotes(path: Path, rows: Rows, index: Index) -> None:
    """BadFileError where a quote that is never closed took the rows behind it into one cell."""
    for cell in (cell for row in rows for cell in row if "\n" in cell or "\r" in cell):
        for line in cell.splitlines()[1:]:
            if index.line(line) is not None and re.search("[,;\t|]", line):
                raise BadFileError(f'{path}: a quote (") is opened before {line!r} and not closed')


def _check_rows(path: Path, rows: Rows, find: Find, count: int) -> None:
    """BadFileError where a row names more photographs than any column does."""
    for row in rows[:_LOOK]:
        beside = {find(cell) for cell in row} - {None}
        if len(beside) > count:
            some = first_few(sorted(map(str, beside)))
            raise BadFileError(
                f"{path}: photographs stand beside each other ({some}); exchange rows and columns"
            )


def _header(rows: Rows, column: int, find: Find) -> tuple[int, list[str]]:
    """How many rows are no data, and the cells of the last of them, which is the header.

    Rows above the first one that names a photograph are data, of photographs that are missing,
    where they name a file of a picture or a label that other rows have.
    """
    first = next(n for n, row in enumerate(rows) if find("".join(row[column : column + 1])))
    below = {
        label.casefold()
        for row in rows[first:]
        for n, cell in enumerate(row)
        if n != column
        for label in (cell.strip(), *forms.names_in(cell))
    } - forms.GAPS
    start = 0
    for n, row in enumerate(rows[:first]):
        file = "".join(row[column : column + 1]).strip()
        others = {cell.strip().casefold() for m, cell in enumerate(row) if m != column}
        if file.lower().endswith(PHOTOGRAPHS) or (others & below and not _FILE.fullmatch(file)):
            break
        start = n + 1
    return start, [cell.strip() for cell in rows[start - 1]] if start else []


def _named(path: Path, layout: Layout, width: int, classes: ClassList | None) -> Layout:
    """The layout, with the listed classes as header over columns of 0 and 1 that have none."""
    cells = {
        cell.strip().casefold()
        for row in layout.rows
        for n, cell in enumerate(row)
        if n != layout.column
    } - forms.GAPS
    if layout.header or width < 3 or not (cells and cells <= _FLAGS):
        return layout
    if classes is None or len(classes) != width - 1:
        raise BadFileError(
            f"{path}: {width - 1} columns of {first_few(sorted(cells))} without a header; name "
            "the class of each column in the first line"
        )
    names = list(classes.names)
    return replace(layout, header=[*names[: layout.column], "file", *names[layout.column :]])


def _flag_columns(path: Path, layout: Layout, width: int) -> list[int]:
    """Columns of zeros and ones below the name of a class; a few of their cells may be neither."""
    found = []
    for n in (n for n in range(min(width, len(layout.header))) if n != layout.column):
        column = [row[n].strip().casefold() if n < len(row) else "" for row in layout.rows]
        cells = [cell for cell in column if cell not in forms.GAPS]
        called = layout.header[n]
        flags = bool(cells) and set(cells) <= _FLAGS
        if _LABEL.fullmatch(called) and not flags:
            return []  # a column of labels, beside which others mean something else
        if not called and flags and not _counts(column):
            some = first_few(sorted(set(cells)))
            raise BadFileError(f"{path}: column {n + 1} has {some} below no name of a class")
        mostly = 2 * sum(cell in _FLAGS for cell in cells) > len(cells) and {*cells} & _TOLD
        if (flags or mostly) and not _NUMBER.fullmatch(called) and not _SUM.fullmatch(called):
            found.append(n)
    if len(found) == 1 and _LABEL.fullmatch(layout.header[found[0]]):
        return []  # file,label with classes that are called 0 and 1
    return found


def _wide(
    path: Path, layout: Layout, flags: Sequence[int], width: int
) -> tuple[dict[str, Any], list[str], list[str]]:
    names = [layout.header[n] for n in flags]
    # Where zeros are written, an empty cell is a gap; where only ones are, it is a zero.
    written = {row[n].strip().casefold() for row in layout.rows for n in flags if n < len(row)}
    gaps = bool(written & forms.NO)
    entries: dict[str, Any] = {}
    for row in layout.rows:
        cells = [row[n].strip().casefold() if n < len(row) else "" for n in flags]
        file = row[layout.column]
        pairs = list(zip(names, cells, strict=True))
        wrong = [
            f"{name} has {cell!r}" if cell else f"{name} is empty"
            for name, cell in pairs
            if cell not in _FLAGS and (gaps or cell not in forms.GAPS)
        ]
        if wrong:
            told = first_few(wrong)
            entries[file] = BadFileError(f"{path}: {file}: {told}, wanted 0 or 1")
            continue
        shown = [name for name, cell in pairs if cell in forms.YES]
        if entries.setdefault(file, shown) != shown:
            entries[file] = BadFileError(
                f"{path}: {file} has several rows, which differ; keep the right one"
            )
    classes = [name for name in names if name.casefold() not in NO_CLASS]
    for entry in entries.values():
        if isinstance(entry, list):
            entry[:] = [name for name in entry if name in classes]
    rest = [n for n in range(width) if n != layout.column and n not in flags]
    return entries, classes, _unread(layout, rest)


def _long(
    path: Path, layout: Layout, width: int, classes: ClassList | None
) -> tuple[dict[str, Any], list[str], list[str]]:
    columns, unread = _label_columns(path, layout, width)
    shown = _shown_column(layout, unread)
    unread = [n for n in unread if n != shown]
    known = () if classes is None else classes.names
    mark = forms.separator_of(row[n] for row in layout.rows for n in columns if n < len(row))
    found: dict[str, list[str]] = {}
    none: set[str] = set()
    for row in layout.rows:
        file = row[layout.column]
        if shown is not None and row[shown].strip().casefold() in forms.NO:
            found.setdefault(file, [])
            continue
        cells = (row[n] for n in columns if n < len(row))
        labels = [label for cell in cells for label in forms.names_in(cell, known, mark)]
        found.setdefault(file, []).extend(labels)
        none |= set() if labels else {file}
    found, notes = forms.whole_numbers(found)
    numbers = () if classes is None else _numbers(path, found, classes)
    if numbers:
        spelled = {file: [numbers[int(n)] for n in own] for file, own in found.items()}
        notes.append(f"label {0 if numbers[0] else 1} is read as {numbers[0] or numbers[1]}")
    else:
        spelled, more = forms.spellings(found, known)
        notes += more
    cells = {row[n].strip() for row in layout.rows for n in columns if n < len(row)}
    notes = [*notes, *forms.parted(cells - set(known), mark)]
    if shown is not None:
        notes = [*notes, f"rows with 0 in {layout.header[shown]} name what is not shown"]
    entries: dict[str, Any] = {file: list(labels) for file, labels in spelled.items()}
    for file in none:
        if entries[file]:
            entries[file] = BadFileError(
                f"{path}: {file}: one row names no class, another one does"
            )
    names = forms.in_order({name for labels in spelled.values() for name in labels})
    if classes is None:
        notes += forms.yes_and_no(path, names)
    return entries, names, notes + _unread(layout, unread)


def _label_columns(path: Path, layout: Layout, width: int) -> tuple[list[int], list[int]]:
    """The columns that hold labels, and those under the header that do not."""
    columns = [n for n in range(width) if n != layout.column]
    header = layout.header
    if not header:
        return columns, []
    under = [n for n in columns if n < len(header)]
    chosen = [n for n in under if _LABEL.match(header[n])]
    likely = chosen or [n for n in under if not _OTHER.fullmatch(header[n])]
    if not chosen and len(likely) > 1:
        names = ", ".join(header[n] for n in likely if header[n])
        raise BadFileError(
            f"{path}: which of the columns {names} has the labels? call it label, or write 0 and 1 "
            "below the name of each class"
        )
    kept = _best(header, chosen) or likely or under
    unread = [n for n in under if n not in kept]
    # What goes on behind the header belongs to a label in its last column.
    return kept + [n for n in columns if n >= len(header) and n not in kept], unread


def label_column(header: Sequence[str]) -> int | None:
    """The column of labels under a header that calls it so; None where none is called so."""
    chosen = [n for n, cell in enumerate(header) if _LABEL.match(cell)]
    return next(iter(_best(header, chosen)), None)


def _shown_column(layout: Layout, columns: Sequence[int]) -> int | None:
    """The column that tells, by 1 and 0, whether the class of a row is shown; else None."""
    for n in columns:
        cells = {row[n].strip().casefold() if n < len(row) else "" for row in layout.rows}
        if _SHOWN.fullmatch(layout.header[n]) and cells <= _FLAGS and cells & forms.NO:
            return n
    return None


def _best(header: Sequence[str], chosen: Sequence[int]) -> list[int]:
    """Of several columns that may hold labels: label, else label1, label2 …, else class_name."""
    exact = [n for n in chosen if header[n].casefold() in ("label", "labels", "class", "classes")]
    counted = [n for n in chosen if header[n][-1:].isdigit()]
    named = [n for n in chosen if "name" in header[n].casefold()]
    return exact[:1] or counted or named[:1] or list(chosen[:1])


def _numbers(path: Path, found: Mapping[str, list[str]], classes: ClassList) -> tuple[str, ...]:
    """Names by number, where labels are numbers of listed classes, from 0 or from 1; else ()."""
    labels = {label for own in found.values() for label in own}
    if not labels or labels & set(classes.names) or not all(n.isdecimal() for n in labels):
        return ()
    low, high = min(map(int, labels)), max(map(int, labels))
    if low == 0 and high < len(classes):
        return classes.names
    if high == len(classes) and low > 0:
        return ("", *classes.names)
    raise BadFileError(
        f"{path}: labels are numbers from {low} to {high} of {len(classes)} listed classes; it "
        "does not tell whether the first class is 0 or 1; write the names of classes instead"
    )


def box_columns(header: Sequence[str]) -> tuple[int, ...]:
    """Where x1, y1, x2, y2 stand under a header; () where it has no columns of boxes."""
    called = [cell.strip().casefold() for cell in header]
    for names in BOX_COLUMNS:
        if all(name in called for name in names):
            return tuple(called.index(name) for name in names)
    return ()


def _unread(layout: Layout, columns: Sequence[int]) -> list[str]:
    columns = [n for n in columns if n not in box_columns(layout.header)]
    names = [layout.header[n] for n in columns if n < len(layout.header) and layout.header[n]]
    return [f"columns that are not read: {', '.join(names)}"] if names else []
