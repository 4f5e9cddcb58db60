"""One sheet of photographs with their maps laid over them, as a PNG: a row per class of a picture.

The first cell of a row is the photograph, then comes one cell per method. Colours are those of the
report's heat scale; the photograph is grey underneath, so that no colour of it can be taken for a
score. Not here: the interactive page (``page``).
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from wsss_jax.ops.resize import resize
from wsss_jax.report.figures import fitted, heat_ramp

STRENGTH = 0.65
"""How opaque the colours are; the rest is the grey photograph."""

_GAP, _MARGIN, _TEXT, _LINE = 6, 12, 13, 16
_INK, _FAINT, _PAPER = (25, 25, 25), (105, 105, 105), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """A photograph and the maps of one of its classes: by method, on any grid, in [0, 1]."""

    photo: UInt8[np.ndarray, "H W 3"]
    name: str
    note: str
    maps: Mapping[str, Float[np.ndarray, "_ _"]]


@dataclass(frozen=True)
class Cell:
    """A picture, the scores laid over it or None, and two lines of words above it."""

    photo: UInt8[np.ndarray, "H W 3"]
    scores: Float[np.ndarray, "_ _"] | None
    words: tuple[str, str]


def overlay(
    photo: UInt8[np.ndarray, "H W 3"], scores: Float[np.ndarray, "_ _"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The grey photograph under the colours of scores in [0, 1]."""
    height, width = photo.shape[:2]
    large = resize(np.clip(scores, 0, 1).astype(np.float32)[..., None], (height, width))
    colours = heat_ramp()[np.rint(255 * large[..., 0]).astype(np.uint8)]
    grey = np.asarray(Image.fromarray(photo).convert("L"), np.float32)[..., None]
    return np.rint((1 - STRENGTH) * grey + STRENGTH * colours).astype(np.uint8)


def sheet(
    rows: Sequence[Row], *, title: str, caption: str, side: int = 200, columns: int = 6
) -> bytes:
    """The PNG of all rows.

    side: longer side of a cell in pixels; photographs are shrunk to it, never enlarged. columns:
    cells in a line, the photograph's included; longer rows go on in the next line, under an empty
    cell. Raises ValueError where rows have different methods.
    """
    if not rows or columns < 2:
        raise ValueError(f"{len(rows)} rows in {columns} columns, wanted rows and two columns")
    names = list(rows[0].maps)
    for row in rows:
        if list(row.maps) != names:
            raise ValueError(f"{row.name}: maps of {list(row.maps)}, the first row has {names}")
    lines = [line for row in rows for line in _lines(row, columns)]
    count = min(columns, len(names) + 1)
    return _drawn(lines, count, title, caption, side=side, scale=True)


def cells_sheet(
    rows: Sequence[Sequence[Cell]], *, title: str, caption: str, side: int = 140
) -> bytes:
    """The PNG of rows of pictures, each under its words and with ``side`` pixels along it."""
    if not rows or not all(rows):
        raise ValueError("no rows of pictures, or an empty one")
    lines = [[replace(cell, photo=_grown(cell.photo, side)) for cell in row] for row in rows]
    return _drawn(lines, max(map(len, rows)), title, caption, side=side, scale=False)


def _grown(photo: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """A picture enlarged until its longer side has so many pixels."""
    scale = max(1.0, side / max(photo.shape[:2]))
    height, width = (max(1, round(scale * n)) for n in photo.shape[:2])
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))


def _drawn(
    lines: Sequence[Sequence[Cell | None]],
    count: int,
    title: str,
    caption: str,
    *,
    side: int,
    scale: bool,
) -> bytes:
    """The PNG of lines of at most ``count`` cells; with the scale of colours where wanted."""
    boxes = [max(fitted(_size(cell), side)[0] for cell in line if cell) for line in lines]
    width = max(2 * _MARGIN + count * (side + _GAP), 480)
    head = _MARGIN + 2 * _LINE + 8
    height = head + sum(box + 2 * _LINE + _GAP for box in boxes) + _MARGIN
    canvas = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN - 4), title, _INK, _font(_TEXT + 3))
    pen.text((_MARGIN, _MARGIN + _LINE + 2), caption, _FAINT, _font(_TEXT))
    if scale:
        _scale(canvas, pen, width)
    top = head
    for line, box in zip(lines, boxes, strict=True):
        for column, cell in enumerate(line):
            if cell is not None:
                _draw(canvas, pen, cell, (_MARGIN + column * (side + _GAP), top), side)
        top += box + 2 * _LINE + _GAP
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _lines(row: Row, columns: int) -> list[list[Cell | None]]:
    """The cells of a row, cut into lines of at most ``columns``."""
    first = Cell(row.photo, None, (row.name, row.note))
    cells = [
        Cell(row.photo, scores, ("", name.replace("_", " "))) for name, scores in row.maps.items()
    ]
    step = columns - 1
    parts = [cells[start : start + step] for start in range(0, len(cells), step)] or [[]]
    return [[first if not index else None, *part] for index, part in enumerate(parts)]


def _draw(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    cell: Cell,
    place: tuple[int, int],
    side: int,
) -> None:
    height, width = fitted(_size(cell), side)
    small = Image.fromarray(cell.photo).resize((width, height), Image.Resampling.LANCZOS)
    shown = np.asarray(small)
    if cell.scores is not None:
        shown = overlay(shown, cell.scores)
    left, top = place
    # A method's one line of words stands just above its map.
    inks = (_INK, _FAINT if cell.scores is None else _INK)
    for index, (words, ink) in enumerate(zip(cell.words, inks, strict=True)):
        pen.text((left, top + index * _LINE), _shortened(pen, words, side), ink, _font(_TEXT))
    canvas.paste(Image.fromarray(shown), (left, top + 2 * _LINE))


def _scale(canvas: Image.Image, pen: ImageDraw.ImageDraw, width: int) -> None:
    """The colours of 0 to 1, at the top right."""
    ramp = heat_ramp()[None].repeat(10, axis=0)
    bar = Image.fromarray(ramp).resize((100, 10))
    left = width - _MARGIN - 100 - 14
    canvas.paste(bar, (left, _MARGIN + 2))
    pen.text((left - 12, _MARGIN - 2), "0", _FAINT, _font(_TEXT))
    pen.text((left + 105, _MARGIN - 2), "1", _FAINT, _font(_TEXT))


def _shortened(pen: ImageDraw.ImageDraw, words: str, width: int) -> str:
    if pen.textlength(words, _font(_TEXT)) <= width:
        return words
    while words and pen.textlength(words + "…", _font(_TEXT)) > width:
        words = words[:-1]
    return words + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _size(cell: Cell) -> tuple[int, int]:
    return cell.photo.shape[0], cell.photo.shape[1]
