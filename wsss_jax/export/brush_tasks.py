"""Masks that people painted in Label Studio, from the JSON that it exports.

A task counts as corrected once it has an annotation; its prediction, which ``wsss export`` wrote,
is nothing that a person said. Of several annotations the one that was changed last counts, of
overlapping strokes the later one.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data.classes import ClassList, to_mask_index
from wsss_jax.errors import BadFileError
from wsss_jax.formats.run_lengths import brush_region
from wsss_jax.types import Size

_BRUSH = "brushlabels"


class Painted(NamedTuple):
    """What a person painted on one photograph: class names, brush bytes and sizes, in order.

    name: of the photograph, or its id. file: the export it is from.
    """

    name: PurePosixPath
    file: Path
    strokes: tuple[tuple[str, list[int], Size | None], ...]


def read_tasks(path: Path, tasks: Any) -> list[Painted]:
    """The annotated tasks of an export. Raises BadFileError for what is none of Label Studio's."""
    if not isinstance(tasks, list):
        raise BadFileError(
            f"{path}: neither a list of tasks, as Label Studio exports them as JSON, nor COCO"
        )
    return list(_painted(path, tasks))


def mask_of(painted: Painted, classes: ClassList, size: Size) -> UInt8[np.ndarray, "H W"]:
    """The mask of one photograph. Raises BadFileError for unknown classes and damaged strokes."""
    mask = np.zeros(size, np.uint8)
    values = dict(zip(classes.names, to_mask_index(np.arange(len(classes))).tolist(), strict=True))
    for name, content, drawn_at in painted.strokes:
        if name not in values:
            raise BadFileError(f"{painted.file}: {painted.name} shows unknown class {name!r}")
        if drawn_at not in (None, size):
            raise BadFileError(
                f"{painted.file}: {painted.name} was painted at (height, width) {drawn_at}, the "
                f"photograph has {size}; paint on the upright photograph, as it was exported"
            )
        try:
            mask[brush_region(content, size)] = values[name]
        except ValueError as problem:
            raise BadFileError(f"{painted.file}: {painted.name}: {problem}") from problem
    return mask


def _painted(path: Path, tasks: list[Any]) -> Iterator[Painted]:
    for number, task in enumerate(tasks, start=1):
        try:
            given = [one for one in task["annotations"] if not one.get("was_cancelled")]
            name = _name(task["data"])
            if given:
                last = max(given[::-1], key=lambda one: str(one.get("updated_at", "")))
                yield Painted(name, path, tuple(map(_stroke, last["result"])))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as problem:
            raise BadFileError(f"{path}: task {number} cannot be read ({problem!r})") from problem


def _name(data: Any) -> PurePosixPath:
    """What we called the photograph, else the end of its address."""
    if "id" in data:
        return PurePosixPath(str(data["id"]))
    return PurePosixPath(unquote(str(data["image"])).split("?d=")[-1].lstrip("/"))


def _stroke(result: Any) -> tuple[str, list[int], Size | None]:
    if result["type"] != _BRUSH:
        raise ValueError(f"a region of type {result['type']}, wanted {_BRUSH}")
    (name,) = result["value"][_BRUSH]
    content = result["value"]["rle"]
    if not isinstance(content, list) or not all(
        type(byte) is int and 0 <= byte < 256 for byte in content
    ):
        raise ValueError("brush bytes that are no list of numbers from 0 to 255")
    told = result.get("original_height"), result.get("original_width")
    return str(name), content, None if None in told else (int(told[0]), int(told[1]))
