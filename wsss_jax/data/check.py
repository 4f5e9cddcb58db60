"""Everything that is wrong with a data set, found in one pass instead of one error a run.

Lists, labels, photographs and masks are all read in full. What is merely unusual, and read all
the same, is a notice: byte-order marks, colour modes, EXIF rotation. Not here: repairing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data import datasets, labels
from wsss_jax.data.datasets import PictureFolder, Source
from wsss_jax.data.files import check_id, decode_image, encoded_mode
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.types import IGNORE, Size

Progress = Callable[[int, int], None]
"""Told after each image how many of how many are done."""


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
    """What a survey found: problems to repair, notices to know of, and how many images it read."""

    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]
    images: int


def problems(
    root: Path,
    layout: str = "auto",
    *,
    lists: Path | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Every problem of a data set, without the notices; see survey."""
    return list(survey(root, layout, lists=lists, progress=progress).problems)


def survey(
    root: Path,
    layout: str = "auto",
    *,
    lists: Path | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Read all of a data set and report what is wrong (problems) or unusual (notices).

    layout, lists: as in datasets.open_dataset. Images that stand in several splits are read once.
    Never raises for what is in the data; ValueError for an unknown layout.
    """
    found: list[Problem] = []
    sources: list[Source] = []
    try:
        layout = datasets.layout_of(root) if layout == "auto" else layout
        files = datasets.list_files(root, layout, lists)
        for path in files.values():
            found += _list_findings(path)
        sources = _sources(root, layout, lists, found)
    except BadFileError as problem:
        found.append(Problem("data set", str(root), str(problem)))
    images = [(source, id) for source in sources for id in source.ids]
    without_mask = 0
    for done, (source, id) in enumerate(images, start=1):
        found += _image_findings(source, id)
        size, mask_findings = _mask_findings(source, id)
        found += mask_findings
        without_mask += size is None and not mask_findings
        if progress is not None:
            progress(done, len(images))
    if without_mask:
        text = f"{without_mask} of {len(images)} images have no true mask"
        found.append(Problem("no mask", str(root), text, accepted=True))
    return Findings(
        tuple(problem for problem in found if not problem.accepted),
        tuple(problem for problem in found if problem.accepted),
        len(images),
    )


def _list_findings(path: Path) -> Iterator[Problem]:
    try:
        content, ids = read_bytes(path), labels.read_list(path)
    except BadFileError as problem:
        yield Problem("bad list", str(path), str(problem))
        return
    unusual = (
        (content.startswith(b"\xef\xbb\xbf"), "begins with a byte-order mark"),
        (b"\r" in content, "has Windows line ends"),
        (any(not line.strip() for line in content.splitlines()), "has blank lines"),
    )
    for true, text in unusual:
        if true:
            yield Problem("list form", str(path), text, accepted=True)
    if not ids:
        yield Problem("empty list", str(path), "no ids in it, wanted one a line")
    for id in labels.repeated(ids):
        yield Problem("duplicate id", str(path), f"{id!r} stands in it more than once")
    yield from _unsafe(ids, str(path))


def _unsafe(ids: tuple[str, ...], where: str) -> Iterator[Problem]:
    for id in dict.fromkeys(ids):
        if not _is_safe(id):
            text = f"{id!r} is no safe file name: wanted letters, digits, '.', '_' and '-' only"
            yield Problem("unsafe id", where, text)


def _is_safe(id: str) -> bool:
    try:
        check_id(id)
    except ValueError:
        return False
    return True


def _sources(root: Path, layout: str, lists: Path | None, found: list[Problem]) -> list[Source]:
    """The data set opened so that every image is in it once, whatever is wrong with its lists."""
    if layout in ("coco", "tfds"):
        return _each_split(root, layout, found)
    source = datasets.open_dataset(root, split=datasets.ALL, layout=layout, ids=(), lists=lists)
    if not isinstance(source, PictureFolder):
        raise UserError(
            f"layout {layout!r} cannot be checked; wanted {', '.join(datasets.DATASETS)}"
        )
    for id in source.table.twice:
        found.append(Problem("duplicate id", id, "has labels twice"))
    files = datasets.list_files(root, layout, lists)
    ids = _listed(files) if files else datasets.known_ids(source.images, source.table)
    if not files:
        found += _unsafe(ids, str(root))
        if not ids:
            found.append(Problem("empty list", str(root), "no images and no labels"))
    safe = tuple(id for id in ids if _is_safe(id))
    return [datasets.open_dataset(root, split=datasets.ALL, layout=layout, ids=safe, lists=lists)]


def _each_split(root: Path, layout: str, found: list[Problem]) -> list[Source]:
    sources = []
    for split in datasets.splits(root, layout):
        try:
            sources.append(datasets.open_dataset(root, split=split, layout=layout))
        except BadFileError as problem:
            found.append(Problem("data set", split, str(problem)))
    return sources


def _listed(files: Mapping[str, Path]) -> tuple[str, ...]:
    ids: dict[str, None] = {}
    for path in files.values():
        try:
            ids |= dict.fromkeys(labels.read_list(path))
        except BadFileError:
            continue  # reported by _list_findings
    return tuple(ids)


def _image_findings(source: Source, id: str) -> Iterator[Problem]:
    try:
        content = source.encoded(id)
        mode, orientation = encoded_mode(content, id)
        decode_image(content, id)
    except MissingFileError as problem:
        yield Problem("missing image", id, str(problem))
    except BadFileError as problem:
        yield Problem("bad image", id, str(problem))
    else:
        if mode != "RGB":
            yield Problem("colour mode", id, f"{mode}, read as RGB", accepted=True)
        if orientation != 1:
            text = f"EXIF orientation {orientation} is ignored, as masks are not turned either"
            yield Problem("orientation", id, text, accepted=True)
    try:
        if not source.labels(id).any():
            yield Problem("no class", id, "its labels name no class", accepted=True)
    except MissingFileError as problem:
        yield Problem("missing labels", id, str(problem))
    except BadFileError as problem:
        yield Problem("bad labels", id, str(problem))


def _mask_findings(source: Source, id: str) -> tuple[Size | None, list[Problem]]:
    """The size of the mask, None where there is none or it cannot be read, and what is wrong."""
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
            text = f"(height, width) {mask.shape}, its image has {size}"
            found.append(Problem("mask size", id, text))
    except BadFileError:
        pass  # of the image, and reported with it
    values = _foreign(mask, len(source.classes))
    if values:
        text = f"values {', '.join(map(str, values))}, wanted 0 to {len(source.classes)} or 255"
        found.append(Problem("mask values", id, text))
    return mask.shape, found


def _foreign(mask: UInt8[np.ndarray, "H W"], classes: int) -> list[int]:
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1))
    return [int(value) for value in present if classes < value < IGNORE]
