"""Everything that is wrong with a data set, found in one pass instead of one error a run.

Lists, labels and masks are read in full, photographs as far as is needed (``photographs.verify``).
Masks are compared with the labels. What is merely unusual, and read all the same, is a notice:
colour modes, EXIF rotation, how a table of labels was understood. Not here: repairing, printing.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from wsss_jax.data.ids import UNREAD, Index, files_below
from wsss_jax.data.mask_files import SUFFIXES
from wsss_jax.data.photographs import verify, working_size
from wsss_jax.data.texts import read_text
from wsss_jax.datasets import box_tables, boxes, duplicates, folders, lists, numbering
from wsss_jax.datasets import table as datasets
from wsss_jax.datasets.coco import CocoSource
from wsss_jax.datasets.table import PictureFolder, Source
from wsss_jax.errors import BadFileError, MissingFileError, first_few
from wsss_jax.types import IGNORE, Size

Progress = Callable[[int, int], None]
"""Told after each image how many of how many are done."""

_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Problem:
    """One finding. kind: what sort; where: the id or file; accepted: read all the same."""

    kind: str
    where: str
    message: str
    accepted: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"


@dataclass(frozen=True)
class Findings:
    """What a survey found: problems to repair, notices to know of, and what was read.

    layout: how the data set lies on disk. classes: their names. shown: photographs by class.
    none: photographs that show no class. masks: how many there are.
    """

    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]
    images: int
    layout: str = ""
    classes: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()
    none: int = 0
    masks: int = 0


class _Seen(NamedTuple):
    """One photograph: findings, its labels and the values of its mask, where it has them."""

    found: list[Problem]
    labels: Bool[np.ndarray, " c"] | None
    values: list[int] | None


def survey(
    root: Path,
    layout: str = "auto",
    *,
    lists: Path | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Read a data set and report what is wrong (problems) or unusual (notices).

    layout, lists: as in datasets.open_dataset. Images that stand in several splits are read once.
    Never raises for what is in the data; ValueError for an unknown layout.
    """
    found: list[Problem] = []
    sources: list[Source] = []
    try:
        layout = datasets.layout_of(root) if layout == "auto" else layout
        sources = _sources(root, layout, lists, found)
    except BadFileError as problem:
        found.append(Problem("data set", str(root), str(problem)))
    images = [(source, id) for source in sources for id in source.ids]
    seen: list[_Seen] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for one in pool.map(lambda pair: _survey_one(*pair), images):
            seen.append(one)
            found += one.found
            if progress is not None:
                progress(len(seen), len(images))
    for source in sources:
        own = {id: one for (of, id), one in zip(images, seen, strict=True) if of is source}
        found += _together(root, source, own)
    known = [one.labels for one in seen if one.labels is not None]
    same = sources and all(source.classes == sources[0].classes for source in sources)
    return Findings(
        tuple(problem for problem in found if not problem.accepted),
        tuple(problem for problem in found if problem.accepted),
        len(images),
        layout,
        sources[0].classes.names if same else (),
        tuple(np.sum(known, axis=0).tolist()) if same and known else (),
        sum(not labels.any() for labels in known),
        sum(one.values is not None for one in seen),
    )


def _sources(root: Path, layout: str, given: Path | None, found: list[Problem]) -> list[Source]:
    """The data set opened so that every image is in it once, whatever is wrong with its lists."""
    if layout == "coco":
        return _each_split(root, layout, found)
    if layout == "tfds":
        return [datasets.open_dataset(root, split=datasets.ALL, layout=layout)]
    source = datasets.open_dataset(root, split=datasets.ALL, layout=layout, ids=(), lists=given)
    if not isinstance(source, PictureFolder):
        return [source]
    found += (Problem("label form", str(root), text, accepted=True) for text in source.table.notes)
    found += (Problem("duplicate id", id, "has labels twice") for id in source.table.twice)
    files = datasets.list_files(root, layout, given)
    index = Index(source.images)
    listed = {name: _of_list(path, index, found) for name, path in files.items()}
    found += _in_two_lists(root, listed)
    ids = dict.fromkeys(id for own in listed.values() for id in own)
    if not files:
        ids = dict.fromkeys(folders.known_ids(source.images, source.table))
        found += _unusable(tuple(ids), str(root))
        if not ids:
            found.append(Problem("empty list", str(root), "no images and no labels"))
    safe = tuple(id for id in ids if lists.unusable(id) is None)
    found += _passed_over(root, source)
    return [datasets.open_dataset(root, split=datasets.ALL, layout=layout, ids=safe, lists=given)]


def _each_split(root: Path, layout: str, found: list[Problem]) -> list[Source]:
    sources = []
    for split in datasets.splits(root, layout):
        try:
            sources.append(datasets.open_dataset(root, split=split, layout=layout))
        except BadFileError as problem:
            found.append(Problem("data set", split, str(problem)))
    return sources


def _of_list(path: Path, index: Index, found: list[Problem]) -> tuple[str, ...]:
    """The ids of a list, and what is wrong or unusual with it."""
    try:
        text, encoding = read_text(path)
    except BadFileError as problem:
        found.append(Problem("bad list", str(path), str(problem)))
        return ()
    lines = lists.read_list(path)
    unusual = (
        (encoding != "utf-8", f"is read as {encoding}"),
        ("\r" in text, "has Windows line ends"),
        (any(not line.strip() for line in text.splitlines()), "has blank lines"),
    )
    found += (
        Problem("list form", str(path), what, accepted=True) for true, what in unusual if true
    )
    if not lines:
        found.append(Problem("empty list", str(path), "no ids in it, wanted one a line"))
    ids = lists.named_in(lines, index)
    for id in lists.repeated(ids):
        found.append(Problem("duplicate id", str(path), f"{id!r} stands in it more than once"))
    found += _unusable(ids, str(path))
    return ids


def _in_two_lists(root: Path, listed: Mapping[str, tuple[str, ...]]) -> Iterator[Problem]:
    """What is learned from must not be judged on."""
    for other in ("val", "test"):
        both = set(listed.get("train", ())) & set(listed.get(other, ()))
        if both:
            some = first_few(sorted(both))
            text = f"{len(both)} photographs stand in train and in {other}, such as {some}"
            yield Problem("list overlap", str(root), text, accepted=True)


def _unusable(ids: tuple[str, ...], where: str) -> Iterator[Problem]:
    for id in dict.fromkeys(ids):
        reason = lists.unusable(id)
        if reason:
            yield Problem("unsafe id", where, reason)
    for group in _in_capitals(ids):
        text = f"{' and '.join(group)} differ in capitals alone, which some disks cannot tell apart"
        yield Problem("names in capitals", where, text, accepted=True)


def _in_capitals(ids: Sequence[str]) -> list[list[str]]:
    groups: dict[str, dict[str, None]] = {}
    for id in ids:
        groups.setdefault(id.casefold(), {})[id] = None
    return [list(group) for group in groups.values() if len(group) > 1]


def _passed_over(root: Path, source: PictureFolder) -> Iterator[Problem]:
    """Files that nobody reads although they were meant to be read."""
    for path in files_below(root):
        if path.suffix.lower() in UNREAD:
            text = f"{path.suffix} is not read; save it as JPEG or PNG"
            yield Problem("unread picture", str(path.relative_to(root)), text)
    for path in folders.stray_masks(root, source.images, source.table):
        text = "a mask of no photograph; give it the name of its photograph"
        if path.suffix.lower() not in SUFFIXES:
            text = f"{path.suffix} is not read; save masks as PNG"
        yield Problem("stray mask", str(path.relative_to(root)), text)
    for path in folders.unread_files(root):
        text = "is not read; a table of labels is a CSV file, or is called labels.txt"
        yield Problem("unread file", str(path.relative_to(root)), text, accepted=True)
    if source.assumed is not None:
        yield Problem("white masks", str(root), source.assumed, accepted=True)


def _survey_one(source: Source, id: str) -> _Seen:
    found = list(_image_findings(source, id))
    labels = None
    try:
        labels = source.labels(id)
        if not labels.any():
            text = "shows none of the classes, and is learned from as background"
            found.append(Problem("no class", id, text, accepted=True))
    except MissingFileError as problem:
        found.append(Problem("missing labels", id, str(problem)))
    except BadFileError as problem:
        found.append(Problem("bad labels", id, str(problem)))
    values, wrong = _mask_findings(source, id)
    return _Seen(found + wrong, labels, values)


def _image_findings(source: Source, id: str) -> Iterator[Problem]:
    try:
        file = isinstance(source, (PictureFolder, CocoSource))
        about = verify(source.path(id) if file else source.encoded(id), id)
    except MissingFileError as problem:
        yield Problem("missing image", id, str(problem))
        return
    except BadFileError as problem:
        yield Problem("bad image", id, str(problem))
        return
    if about.mode != "RGB":
        yield Problem("colour mode", id, f"{about.mode}, read as RGB", accepted=True)
    if about.orientation != 1:
        text = "turned upright, as its EXIF tells, and so is a mask of its raw size"
        yield Problem("orientation", id, text, accepted=True)
    for text in about.notes:
        yield Problem("photograph form", id, text, accepted=True)
    small = working_size(about.size)
    if small != about.size:
        text = "{1}×{0}, worked on as {3}×{2}; masks have the full size".format(*about.size, *small)
        yield Problem("large photograph", id, text, accepted=True)


def _mask_findings(source: Source, id: str) -> tuple[list[int] | None, list[Problem]]:
    """The values of the mask, None where there is none or it cannot be read, and what is wrong."""
    try:
        mask = source.mask(id)
    except MissingFileError:
        return None, []  # of an image that was reported
    except BadFileError as problem:
        return None, [Problem("bad mask", id, str(problem))]
    if mask is None:
        return None, []
    found = []
    try:
        size = source.size(id)
        if mask.shape != size:
            found.append(Problem("mask size", id, _other_size(mask.shape, size)))
    except BadFileError:
        pass  # of the image, and reported with it
    values = _values(mask)
    foreign = [value for value in values if len(source.classes) < value < IGNORE]
    if foreign:
        text = f"values {first_few(foreign, 5)}, wanted 0 to {len(source.classes)} or 255"
        found.append(Problem("mask values", id, text))
    return values, found


def _other_size(mask: Size, image: Size) -> str:
    text = f"(height, width) {mask}, its image has {image}"
    if mask == image[::-1]:
        return f"{text}: it lies on its side; turn it"
    if abs(mask[0] * image[1] - mask[1] * image[0]) <= max(*mask, *image):
        return f"{text}: it is of the photograph in another size; scale it without smoothing"
    return f"{text}: it belongs to another photograph, or to a part of this one"


def _class_names(root: Path, source: Source) -> Iterator[Problem]:
    for group in _in_capitals(source.classes.names):
        text = f"classes {' and '.join(group)} differ in capitals alone; are they one?"
        yield Problem("classes in capitals", str(root), text, accepted=True)


def _together(root: Path, source: Source, seen: Mapping[str, _Seen]) -> Iterator[Problem]:
    """What only all photographs of a source together tell."""
    labels = {id: one.labels for id, one in seen.items() if one.labels is not None}
    values = {id: one.values for id, one in seen.items() if one.values is not None}
    table = numbering.table_of(values, labels)
    wrong = numbering.mistake(*table, source.classes)
    if wrong is not None:
        yield Problem("masks and labels", source.name, wrong)
    elif len(table[0]):
        rows = [id for id in values if id in labels]
        for row in np.flatnonzero(numbering.contradicted(*table)):
            shown = _names(source, table[0][row, 1 : len(source.classes) + 1] & ~table[1][row])
            text = f"its mask shows {shown}, its labels do not"
            yield Problem("mask and labels", rows[row], text)
        for row in np.flatnonzero(
            (table[1] & ~table[0][:, 1 : len(source.classes) + 1]).any(axis=1)
        ):
            lacking = table[1][row] & ~table[0][row, 1 : len(source.classes) + 1]
            text = f"its labels have {_names(source, lacking)}, its mask does not"
            yield Problem("labels without mask", rows[row], text, accepted=True)
    yield from _class_names(root, source)
    yield from _same_files(source, labels)
    yield from _boxes(source, labels)
    always = np.all(list(labels.values()), axis=0) if len(labels) > 1 else ()
    for name in (source.classes.names[n] for n in np.flatnonzero(always)):
        text = (
            f"every photograph shows {name}, so nothing shows what is not {name}; add some without"
        )
        yield Problem("class everywhere", str(root), text, accepted=True)
    lacking = sum(one.values is None and not _bad_mask(one) for one in seen.values())
    if lacking:
        text = f"{lacking} of {len(seen)} images have no true mask"
        yield Problem("no mask", str(root), text, accepted=True)


def _names(source: Source, shown: Bool[np.ndarray, " c"]) -> str:
    return ", ".join(source.classes.names[n] for n in np.flatnonzero(shown)) or "no class"


def _same_files(source: Source, labels: Mapping[str, np.ndarray]) -> Iterator[Problem]:
    paths: dict[str, Path] = {}
    if isinstance(source, (PictureFolder, CocoSource)):
        for id in source.ids:
            with suppress(BadFileError):  # named already
                paths[id] = source.path(id)
    for group in duplicates.same_files(paths):
        told = list(dict.fromkeys(_names(source, labels[id]) for id in group if id in labels))
        text = f"{' and '.join(group[:3])} are the same file"
        text += f", with other labels: {' and '.join(told[:3])}" if len(told) > 1 else ""
        yield Problem("same photograph", group[0], f"{text}; keep one", accepted=True)


def _boxes(source: Source, labels: Mapping[str, np.ndarray]) -> Iterator[Problem]:
    """What is wrong with the table of boxes, where there is one."""
    try:
        read = boxes.of_table(source) if isinstance(source, PictureFolder) else None
    except BadFileError as problem:
        yield Problem("boxes", box_tables.NAME, str(problem))
        return
    if read is None:
        return
    for name in sorted({*read.table.strangers} - {*source.ids}):
        yield Problem("boxes", name, "boxes of no photograph; give them the name of one")
    for id in source.ids:
        try:
            found = read(id)
            boxed = source.classes.multi_hot(() if found is None else found.names)
        except MissingFileError:
            continue  # its photograph is named already
        except BadFileError as problem:
            yield Problem("boxes", id, str(problem))
            continue
        if id in labels and (boxed & ~labels[id]).any():
            text = f"has boxes of {_names(source, boxed & ~labels[id])}, its labels do not"
            yield Problem("boxes", id, text)


def _bad_mask(one: _Seen) -> bool:
    return any(problem.kind == "bad mask" for problem in one.found)


def _values(mask: UInt8[np.ndarray, "H W"]) -> list[int]:
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)).tolist()
