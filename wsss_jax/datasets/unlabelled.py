"""Photographs of which nothing is known: a folder, or single files, as a source without labels."""

import os
from collections.abc import Sequence
from pathlib import Path

from wsss_jax.data.classes import ClassList
from wsss_jax.data.ids import PHOTOGRAPHS, UNREAD, by_id, files_below
from wsss_jax.datasets import views
from wsss_jax.datasets.labels import LabelTable
from wsss_jax.datasets.source import PictureFolder, Source
from wsss_jax.datasets.views import View
from wsss_jax.errors import MissingFileError


def photographs_in(paths: Sequence[Path], classes: ClassList) -> View:
    """The photographs in folders and files; their labels are none, their masks unknown.

    classes: those that are looked for. Raises MissingFileError where there are none.
    """
    root, files = _found(paths)
    images = by_id(root, files)
    table = LabelTable(root, classes, {})
    source = PictureFolder(root.name, root, tuple(images), images, {}, table)
    return views.photographs(source)


def marks_of(source: Source) -> dict[str, list[str | int]]:
    """By id what tells the file of a photograph from another one of its name: path, size, time."""
    whole = source.whole if isinstance(source, View) else source
    assert isinstance(whole, PictureFolder)
    found: dict[str, list[str | int]] = {}
    for id, (path, *_) in whole.images.items():
        about = path.stat()
        found[id] = [str(path.resolve()), about.st_size, about.st_mtime_ns]
    return found


def _found(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """A folder that holds all photographs, and their files."""
    found: list[Path] = []
    unread: list[Path] = []
    for path in paths:
        if not path.exists():
            raise MissingFileError(f"{path}: no such photograph or folder")
        files = list(files_below(path)) if path.is_dir() else [path]
        found += (one for one in files if one.suffix.lower() in PHOTOGRAPHS)
        unread += (one for one in files if one.suffix.lower() in UNREAD)
    found = list({path.resolve(): path for path in found}.values())  # named twice, it is one
    if unread:
        print(f"{len(unread)} files are not read ({unread[0].name}); save them as JPEG or PNG")
    if not found:
        raise MissingFileError(f"{', '.join(map(str, paths))}: no photographs")
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0], found
    found = [path.absolute() for path in found]
    return Path(os.path.commonpath([path.parent for path in found])), found
