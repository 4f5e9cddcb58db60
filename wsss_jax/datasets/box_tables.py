"""Boxes in a table: ``file,label,x1,y1,x2,y2``, one box a row, in any form that labels come in.

x1 and y1 are the left and upper edge in pixels of the upright photograph, x2 and y2 the right and
lower one, counted from 0 at its upper left corner (a box of the whole photograph is 0, 0, width,
height). The columns may also be called xmin, ymin, xmax, ymax or left, top, right, bottom. Corners
may be swapped. A table whose numbers all lie in [0, 1] holds shares of width and height. A row with
four empty cells names a class without a box.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_jax.data.classes import ClassList
from wsss_jax.data.ids import Index
from wsss_jax.data.texts import read_text
from wsss_jax.datasets import tables
from wsss_jax.errors import BadFileError
from wsss_jax.types import Size

NAME = "boxes.csv"
"""The table of boxes in the folder of a data set whose table of labels has none."""

COLUMNS = tables.BOX_COLUMNS[0]
"""Of the table that we write."""

_TABLES = (".csv", ".tsv", ".txt")
_OVER = 1.0  # pixels that a box may reach out of the photograph and is cut


class Row(NamedTuple):
    """One box: its class and its corners, in pixels; top, left, bottom, right in order."""

    name: str
    corners: tuple[float, float, float, float]


class BoxTable(NamedTuple):
    """The boxes of a table.

    of: id and size of the upright photograph to its boxes; BadFileError for what cannot be a box.
    strangers: names in the column of files that are of no photograph.
    """

    of: Callable[[str, Size], list[Row]]
    strangers: tuple[str, ...]


def box_table(path: Path, index: Index, classes: ClassList) -> BoxTable | None:
    """The boxes of a table by photograph; None where it is no table of boxes. BadFileError."""
    if path.suffix.lower() not in _TABLES or not path.is_file():
        return None
    layout = tables.layout_of(path, read_text(path)[0], index)
    places, label = tables.box_columns(layout.header), tables.label_column(layout.header)
    if not places or label is None:
        return None
    cells: dict[str, list[list[str]]] = {}
    for row in layout.rows:
        row = [*row, *[""] * (len(layout.header) - len(row))]
        numbers = [row[n].strip().replace(",", ".") for n in places]
        if any(numbers):
            cells.setdefault(row[layout.column], []).append([row[label].strip(), *numbers])
    told = [text for rows in cells.values() for row in rows for text in row[1:]]
    shares = all(_number(text) is not None and 0 <= float(text) <= 1 for text in told)
    spelled = {name.casefold(): name for name in classes.names}

    def rows_of(id: str, size: Size) -> list[Row]:
        scale = (size[1], size[0]) if shares else (1, 1)
        return [_row(f"{path}: {id}", row, scale, size, spelled) for row in cells.get(id, ())]

    return BoxTable(rows_of, tuple(name for name in cells if name not in index.files))


def _row(where: str, cells: Sequence[str], scale: Size, size: Size, spelled: dict[str, str]) -> Row:
    name, *texts = cells
    if name.casefold() not in spelled:
        raise BadFileError(f"{where}: a box of {name!r}, which is no class of the data set")
    numbers = [number for text in texts if (number := _number(text)) is not None]
    told = ", ".join(texts)
    if len(numbers) < 4:
        raise BadFileError(f"{where}: the box of {name} is {told}; wanted four numbers")
    left, right = sorted(scale[0] * number for number in numbers[::2])
    top, bottom = sorted(scale[1] * number for number in numbers[1::2])
    over = max(-left, -top, right - size[1], bottom - size[0])
    thin = min(right - left, bottom - top)
    # Below a pixel on both sides: shares in a table where one number is above 1.
    if over > _OVER or thin <= 0 or max(right - left, bottom - top) < 1:
        raise BadFileError(
            f"{where}: the box of {name} is {told} in a photograph of {size[1]}×{size[0]} pixels; "
            "wanted left, upper, right and lower edge in pixels of the photograph as it is stored "
            "here, in that order, or all boxes of the table in shares of 0 to 1"
        )
    return Row(spelled[name.casefold()], (top, left, bottom, right))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # neither nan nor inf is a place
