"""Masks that people corrected, found again and checked before anything learns from them.

A mask is a PNG called like its photograph: class numbers in a palette or in grey, or the colours
of exported masks, which is what painting programs and CVAT ("Segmentation mask 1.1", with its
labelmap.txt) give back. Or it was painted in Label Studio and comes in its JSON, or in CVAT ("CVAT
for images 1.1") or a program that writes COCO, whose one file has all photographs; ``stated`` tells
which of these count. What is checked: size, values, and that it shows the photograph's labels.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from wsss_jax.config import lookup
from wsss_jax.data.classes import BACKGROUND, ClassList, palette, to_class_index, to_mask_index
from wsss_jax.data.files import decoded, opened
from wsss_jax.data.mask_files import read_truth
from wsss_jax.data.photographs import decode_image, header
from wsss_jax.data.stores import Store
from wsss_jax.data.texts import read_json, read_text
from wsss_jax.datasets.table import Source
from wsss_jax.datasets.views import View
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.export import brush_tasks, drawn_masks, stated
from wsss_jax.export.drawn_masks import Drawn
from wsss_jax.export.exported import APPROVED, RECORD, photograph_names, stem_of
from wsss_jax.export.stated import LIST, Found, Reader
from wsss_jax.types import IGNORE

LABELMAP = "labelmap.txt"
"""Where CVAT keeps the colours of classes: ``name:red,green,blue:parts:actions`` a line."""

MAX_JSON = 2**30
"""Larger exports are refused."""

_OBJECTS = "SegmentationObject"
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_SHOWN = 3
_NAMED = 10

Colours = Mapping[tuple[int, int, int], int]
"""Mask values by colour."""


@dataclass(frozen=True)
class Corrected:
    """Corrected masks that were found and checked.

    files: where the mask of each image is from, by id, in the order of the data set. readers: what
    reads it again. reasons: why it counts. passed: names of photographs whose masks do not count,
    since they are as the run made them.
    """

    files: Mapping[str, Path]
    readers: Mapping[str, Reader]
    reasons: Mapping[str, str]
    passed: tuple[PurePosixPath, ...] = ()

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """The mask of one image; None where there is none. Raises BadFileError."""
        return self.readers[id]() if id in self.readers else None


class _Problem(NamedTuple):
    """What is wrong with one mask: of what kind, which mask, and the facts."""

    kind: str
    name: str
    facts: str


def read_corrected(folder: Path, source: Source, made: Sequence[Store] = ()) -> Corrected:
    """The corrected masks in a folder and below it.

    All are read and checked. made: masks of the run (``stated.masks_of_run``), with which those of
    files that hold all photographs are compared. Raises UserError that counts the problems by kind
    with three examples of each, MissingFileError without a folder, and BadFileError for a file that
    is none of its kind.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of corrected masks")
    if (folder / RECORD).is_file():
        raise UserError(
            f"{folder} is an export, and nothing tells which of its masks were corrected; copy "
            "those that were into a folder of their own"
        )
    known = _by_name(source)
    given = [*_pictures(folder, source, made), *_painted(folder, source), *_of_cvat(folder, source)]
    if not given:
        raise UserError(
            f"{folder}: no mask in it; wanted a PNG called like its photograph, a JSON of Label "
            "Studio with annotations, a COCO file, or the XML of CVAT for images"
        )
    listed = {name: _id_of(PurePosixPath(name), known) for name in stated.read_list(folder)}
    problems = [*_wrong_names(listed, given)]
    taken, passed = stated.choose(given, made, set(listed.values()))
    names = photograph_names(source, [one.id for one in passed if one.id is not None])
    if not taken and not problems:
        raise UserError(
            f"{folder}: all of its {len(passed)} masks are as the run made them; {_how(folder)}"
        )
    right: dict[str, Found] = {}
    for one in taken:
        problem = _wrong(one, source, right)
        if problem is not None:
            problems.append(_Problem(problem[0], one.name, problem[1]))
        elif one.id is not None:
            right[one.id] = one
    if problems:
        raise UserError(_report(folder, problems, len(taken)))
    kept = {id: right[id] for id in source.ids if id in right}
    return Corrected(
        files={id: one.path for id, one in kept.items()},
        readers={id: one.read for id, one in kept.items()},
        reasons={id: one.why for id, one in kept.items()},
        passed=tuple(names[id] for id in source.ids if id in names and id not in right),
    )


def describe(corrected: Corrected, folder: Path, source: Source) -> list[str]:
    """Which masks count and why, and which do not and what makes them count, for the terminal."""
    taken = list(photograph_names(source, corrected.files).values())
    reasons = Counter(corrected.reasons.values())
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    count = "1 corrected mask" if len(taken) == 1 else f"{len(taken)} corrected masks"
    lines = [f"{count} in {folder} ({why}): {_some(taken, _NAMED)}"]
    if corrected.passed:
        several = len(corrected.passed) > 1
        what = f"{len(corrected.passed)} masks are" if several else "1 mask is"
        lines.append(
            f"{what} as the run made {'them' if several else 'it'} and not counted: "
            f"{_some(corrected.passed, _SHOWN)}; {_how(folder)}"
        )
    return lines


def with_corrected(source: Source, corrected: Corrected) -> View:
    """The same photographs and labels, whose only true masks are the corrected ones."""
    return View(source, source.classes, source.labels, corrected.mask)


def mask_of_file(path: Path, colours: Colours) -> UInt8[np.ndarray, "H W"]:
    """Mask values of a corrected file. Raises BadFileError for colours of no class.

    A palette counts by its colours where all of them are those of classes, since some programs
    sort it anew; else by its numbers.
    """
    mode = header(path, path).mode
    if mode not in ("P", "RGB", "RGBA", "LA"):
        return read_truth(path)  # grey of any depth
    erased = _transparent(path)
    if mode == "LA":
        return np.where(erased, np.uint8(0), read_truth(path))
    pixels = decode_image(path, path, whole=True)
    values, foreign = _by_colour(pixels, {**colours, **_hidden(pixels, erased, colours)})
    values[erased] = 0
    if not len(foreign):
        return values
    numbers = np.where(erased, np.uint8(0), read_truth(path)) if mode == "P" else values
    ours = _by_colour(pixels, colours)[0]
    if mode == "P" and not ((ours > 0) & (ours != numbers) & ~erased).any():
        return numbers
    examples = ", ".join(str(tuple(colour)) for colour in foreign[:_SHOWN].tolist())
    raise BadFileError(
        f"{len(foreign)} colours of no class, such as {examples}; paint without smoothing, or save "
        "class numbers"
    )


def _hidden(
    pixels: UInt8[np.ndarray, "H W 3"], erased: Bool[np.ndarray, "H W"], colours: Colours
) -> Colours:
    """As background the colours of erased pixels that stand nowhere else."""
    gone = {_colour(colour) for colour in np.unique(pixels[erased], axis=0)}
    kept = {_colour(colour) for colour in np.unique(pixels[~erased], axis=0)}
    return dict.fromkeys(gone - kept - colours.keys(), 0)


def _transparent(path: Path) -> Bool[np.ndarray, "H W"]:
    """Where a mask was erased: background. BadFileError where pixels are half transparent."""
    with opened(path, path) as picture:
        ready = decoded(picture, path)
        if not ready.has_transparency_data:
            return np.zeros((ready.height, ready.width), bool)
        alpha = np.asarray(ready.convert("RGBA").getchannel("A"))
    half = (alpha > 0) & (alpha < alpha.max())
    if half.any():
        raise BadFileError(
            f"{half.sum()} pixels are partly transparent; paint without smoothing, or flatten the "
            "picture onto its background"
        )
    return alpha == 0


def colours_of(folder: Path, classes: ClassList) -> Colours:
    """What colours mean: those of exported masks, or what a labelmap.txt in the folder tells."""
    path = folder / LABELMAP
    numbers = to_mask_index(np.arange(len(classes))).tolist()
    if not path.is_file():
        table = palette()
        return {_colour(table[value]): value for value in (0, *numbers, IGNORE)}
    values = {BACKGROUND: 0, **dict(zip(classes.names, numbers, strict=True))}
    found: dict[tuple[int, int, int], int] = {}
    for line in read_text(path, 2**20)[0].splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, colour, *_ = line.rsplit(":", 3)
            red, green, blue = (int(part) for part in colour.split(","))
            if not all(0 <= part <= 255 for part in (red, green, blue)):
                raise ValueError("a colour is three numbers from 0 to 255")
            if name.casefold() != APPROVED or name in values:  # CVAT lists tags, too
                found[red, green, blue] = lookup(values, name, "class")
        except ValueError as problem:
            raise BadFileError(f"{path}: line {line!r}: {problem}") from problem
    return found


def _pictures(folder: Path, source: Source, made: Sequence[Store]) -> list[Found]:
    """Pictures in the folder and below it, sorted; CVAT's pictures of objects are none of ours.

    Each is a statement, but where CVAT wrote those of all photographs.
    """
    known, found = _by_name(source), []
    own = {path.parent: colours_of(path.parent, source.classes) for path in folder.rglob(LABELMAP)}
    own = {folder: colours_of(folder, source.classes), **own}
    for path, name in _files(folder, _PICTURES):
        if _OBJECTS not in name.parts:
            stem = name.with_name(name.name.removesuffix(name.suffix))
            nearest = next(above for above in path.parents if above in own)
            read = partial(mask_of_file, path, own[nearest])
            found.append(Found(str(name), path, _id_of(stem, known), read, "files of their own"))
    every = {id for store in made for id in store.ids()}
    of_cvat = any((one / LABELMAP).is_file() for one in own)
    of_all = every and every <= {one.id for one in found} and of_cvat
    return [one._replace(why="") for one in found] if of_all else found


def _painted(folder: Path, source: Source) -> Iterator[Found]:
    """What was painted in Label Studio or drawn for COCO, from all JSON files in the folder."""
    known = _by_name(source)
    for path, name in _files(folder, (".json",)):
        content = read_json(path, MAX_JSON)
        if isinstance(content, dict) and "images" in content:
            drawn = drawn_masks.of_coco(path, content, source.classes)
            yield from _of_all(drawn, path, name, known)
            continue
        for one in brush_tasks.read_tasks(path, content):
            id = _id_of(one.name, known)
            size = source.size(id) if id is not None else (0, 0)
            read = partial(brush_tasks.mask_of, one, source.classes, size)
            yield Found(f"{name} {one.name}", path, id, read, "annotated in Label Studio")


def _of_cvat(folder: Path, source: Source) -> Iterator[Found]:
    known = _by_name(source)
    for path, name in _files(folder, (".xml",)):
        yield from _of_all(drawn_masks.of_cvat(path, source.classes), path, name, known)


def _of_all(
    drawn: list[Drawn], path: Path, name: PurePosixPath, known: Mapping[PurePosixPath, str | None]
) -> Iterator[Found]:
    for one in drawn:
        yield Found(f"{name} {one.name}", path, _id_of(one.name, known), one.read, one.why)


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, PurePosixPath]]:
    """Files with one of the suffixes that are not hidden, sorted, and their names in the folder."""
    for path in sorted(folder.rglob("*")):
        name = PurePosixPath(path.relative_to(folder))
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield path, name


def _by_name(source: Source) -> dict[PurePosixPath, str | None]:
    """Ids by what a mask may be called, without its suffix; None where several are meant."""
    names = photograph_names(source, source.ids)
    found: dict[PurePosixPath, str | None] = {}
    for id in source.ids:
        photograph = names.get(id, stem_of(id))
        # Of "cats/1.jpg": 1, cats/1, 1.jpg and cats/1.jpg.
        for name in {stem_of(id), photograph.with_suffix(""), photograph}:
            for tail in {name, PurePosixPath(name.name)}:
                found[tail] = id if found.get(tail, id) == id else None
    return found


def _id_of(name: PurePosixPath, known: Mapping[PurePosixPath, str | None]) -> str | None:
    """The id that a name means: by its whole path, else by ever less of its folders."""
    tails = (PurePosixPath(*name.parts[start:]) for start in range(len(name.parts)))
    return next((known[tail] for tail in tails if tail in known), None)


def _wrong_names(listed: Mapping[str, str | None], given: Sequence[Found]) -> Iterator[_Problem]:
    """Names in approved.txt that are of no photograph, or of one without a mask in the folder."""
    held = {one.id for one in given}
    for name, id in listed.items():
        if id is None:
            yield _Problem("of no photograph, or of several", f"{name} in {LIST}", "")
        elif id not in held:
            facts = "has no mask in the folder; copy it there"
            yield _Problem("without a mask", f"{name} in {LIST}", facts)


def _wrong(one: Found, source: Source, right: Mapping[str, Found]) -> tuple[str, str] | None:
    """What is wrong with a mask, as its kind and the facts; None where nothing is."""
    if one.id is None:
        return "of no photograph, or of several", "is called like none alone"
    if one.path.suffix.lower() not in (".png", ".json", ".xml"):
        return "no PNG", "other formats change class numbers or lose them"
    if one.id in right:
        return "twice", f"is of {one.id}, as {right[one.id].name} is"
    try:
        mask = one.read()
        size = source.size(one.id)
    except BadFileError as problem:
        return "not readable", str(problem)
    if mask.shape != size:
        (height, width), (tall, wide) = mask.shape, size
        return "another size", f"{width}×{height}, its photograph has {wide}×{tall}"
    try:
        labels = source.labels(one.id)
    except MissingFileError:
        labels = None  # of a photograph without labels, any class may be shown
    return _against_labels(mask, source.classes, labels)


def _against_labels(
    mask: UInt8[np.ndarray, "H W"], classes: ClassList, labels: Bool[np.ndarray, " c"] | None
) -> tuple[str, str] | None:
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1))
    foreign = [value for value in values.tolist() if len(classes) < value < IGNORE]
    if foreign:
        return "values of no class", f"{foreign[:_SHOWN]}, wanted 0 to {len(classes)} or 255"
    if labels is None:
        return None
    shown = to_class_index(values[(values > 0) & (values < IGNORE)])
    extra = [classes.names[label] for label in shown.tolist() if not labels[label]]
    if extra:
        text = f"shows {', '.join(extra)}; add that to the labels, or take it out of the mask"
        return "classes that its labels do not have", text
    if labels.any() and not len(shown):
        wanted = ", ".join(classes.names[label] for label in np.flatnonzero(labels).tolist())
        only = "holds only 0 and 255 (not decided)" if IGNORE in values else "is all background"
        return "none of its labels", f"{only}, wanted {wanted}"
    return None


def _by_colour(
    pixels: UInt8[np.ndarray, "H W 3"], colours: Colours
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "n 3"]]:
    """Values of pixels by their colours, and the colours that have none."""
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    codes, places = np.unique(packed, return_inverse=True)
    unpacked = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
    values = np.array([colours.get(_colour(colour), -1) for colour in unpacked], np.int64)
    mask = np.maximum(values, 0).astype(np.uint8)[places].reshape(packed.shape)
    return mask, unpacked[values < 0]


def _colour(colour: UInt8[np.ndarray, " 3"]) -> tuple[int, int, int]:
    red, green, blue = colour.tolist()
    return red, green, blue


def _how(folder: Path) -> str:
    return (
        f"where one is right as it is, put its name into {folder / LIST}, or tag it "
        f'"{APPROVED}" in CVAT'
    )


def _some(names: Sequence[PurePosixPath], count: int) -> str:
    return ", ".join(map(str, names[:count])) + (" …" if len(names) > count else "")


def _report(folder: Path, problems: list[_Problem], count: int) -> str:
    return f"{folder}: {len(problems)} of {count} corrected masks cannot be used\n" + "\n".join(
        _lines(problems)
    )


def _lines(problems: list[_Problem]) -> Iterator[str]:
    """One line for each kind: how many, and three of them."""
    for kind in dict.fromkeys(problem.kind for problem in problems):
        same = [problem for problem in problems if problem.kind == kind]
        shown = "; ".join(f"{problem.name} {problem.facts}" for problem in same[:_SHOWN])
        yield f"  {kind} ({len(same)}): {shown}{' …' if len(same) > _SHOWN else ''}"
