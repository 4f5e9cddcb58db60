"""Files of other tools, read as score maps: one layout per table row, one check for all.

One check serves all layouts: classes against the image's labels, grids against the photograph's
size, values against their range. A class whose map cannot be trusted is left out with the reason,
the others go on; a file of which nothing can be trusted is one BadFileError. The few things that
are put right are told in the prior's notes. Nothing is ever unpickled. Not here: how files are
written (``prior_readers``), which layout a folder has (``layouts``), and storing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from wsss_jax.config import lookup
from wsss_jax.data import json_records
from wsss_jax.data.classes import SALIENCY, ClassList
from wsss_jax.data.files import named_file
from wsss_jax.data.stores import Store
from wsss_jax.errors import MissingFileError, UserError, first_few
from wsss_jax.formats.bounded import as_path, one_error
from wsss_jax.formats.pickled_arrays import kind_of
from wsss_jax.ops.resize import resize
from wsss_jax.priors import file_layouts
from wsss_jax.priors.class_pictures import per_class_files
from wsss_jax.priors.prior_readers import (
    READERS,
    Found,
    Layout,
    Wanted,
    check_grid,
    is_background,
    numbered,
    of_maps,
    of_mask,
)
from wsss_jax.types import Kind, ScoreMaps, Size

STRIDES = (1, 2, 4, 8, 16, 32)
"""Pixels per cell of the grids that class maps may come on."""

SLACK = 1e-3
"""How far beyond its range a value may lie (rounding of float16) before the map is refused."""

OVERSHOOT = 0.1
"""How far below 0 enlarging by cubic splines takes a map, as a share of its maximum."""

FAINT = 1e-5
"""Maxima below this are told: records hold 16 bits, which end at 6e-8."""

ISOLATED = 0.001
"""The share of pixels that may lie far below 0 in maps of SEAM without being one value."""


DROPPED = "dropped"
"""Name of the list, beside a store, of classes that were left out: id to class name to reason."""


class Place(NamedTuple):
    """Where the files of a layout lie: a sub-folder ("" for none), and what follows the id.

    ``#`` in the suffix stands for the number of a class.
    """

    folder: str
    suffix: str


class Prior(NamedTuple):
    """Score maps of one file, in words what was put right to get them, and what was left out.

    dropped: classes of the image by name whose map cannot be trusted, with the reason.
    """

    maps: ScoreMaps
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, str] = MappingProxyType({})


def read_prior(
    layout: str, folder: Path, id: str, wanted: Wanted, places: Sequence[Place] = ()
) -> Prior:
    """The score maps that another tool wrote for one image.

    layout: a name of READERS. folder: where one file per image lies, named by id. places: where in
    it, and what follows the id; the layout's own endings where none is given. Maps finer than
    ``wanted.grid`` are reduced to it by the mean over areas. Raises BadFileError where the file is
    missing, damaged or does not belong to the image, ValueError for an unknown layout or an unsafe
    id.
    """
    how = lookup(READERS, layout, "layout")
    return read_file(layout, file_of(folder, id, how, places, len(wanted.classes)), wanted)


def read_file(layout: str, path: Path, wanted: Wanted) -> Prior:
    """The score maps of one file. Raises BadFileError as ``read_prior``."""
    how = lookup(READERS, layout, "layout")
    with one_error(path, f"read as layout {layout}"):
        return checked(how.read(path, how, wanted), how, wanted)


def read_record(layout: str, store: Store, id: str, wanted: Wanted) -> Prior:
    """The score maps that a store of ours holds of one image, or makes of its mask.

    layout: what the store's records are read as. Raises BadFileError as ``read_prior``.
    """
    how = lookup(READERS, layout, "layout")
    with one_error(f"{store.folder}: {id}", f"read as layout {layout}"):
        if store.holds == "masks":
            found = of_mask(store.get_mask(id), wanted)
        else:
            found = of_maps(store.get_scores(id), wanted)
        return checked(found, how, wanted)


def dropped_classes(folder: Path) -> dict[str, dict[str, str]]:
    """Classes that an import left out of the store at ``folder``: id to class name to reason."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob(f"{DROPPED}*.json")):
        found.update(json_records.read(path))
    return found


def file_of(
    folder: Path, id: str, layout: Layout, places: Sequence[Place] = (), count: int = 0
) -> Path:
    """The file of one image. count: classes, for layouts with a file for each. MissingFileError."""
    places = places or [Place("", ending) for ending in layout.endings]
    for place in places:
        where = folder / place.folder
        if "#" in place.suffix:
            start, ending = place.suffix.split("#")
            found = per_class_files(where, id, ending, count) if start == "_" else {}
            path = next(iter(found.values()), None)
        else:
            path = named_file(where, id, place.suffix)
        if path is not None and path.is_file():
            return path
    wanted = ", ".join(f"{place.folder}/{id}{place.suffix}".lstrip("/") for place in places)
    raise MissingFileError(f"{folder}: no file of {id} (wanted {wanted})")


def numbers_of(path: Path, count: int) -> tuple[int, ...]:
    """Class numbers of which an image has a picture; path: that of one of them."""
    start = path.stem.rpartition("_")[0]
    return tuple(per_class_files(path.parent, start, path.suffix, count))


def shift_of(
    found: Found, layout: Layout, labels: Bool[np.ndarray, " c"], first: int
) -> int | None:
    """What must be added to the classes to make them labels of the image: 0, 1, -1, or nothing.

    first: number of the first class; with 1 instead, a leading 0 would be background.
    """
    present = set(np.flatnonzero(labels).tolist())
    for shift in (0, 1, -1):
        if set(numbered(found, layout, first - shift)) <= present:
            return shift
    return None


def checked(found: Found, layout: Layout, wanted: Wanted) -> Prior:
    """The maps of a file that belong to the image and can be trusted.

    Raises ValueError where there were some and none is left.
    """
    first = layout.first if wanted.first is None else wanted.first
    kind = wanted.kind or layout.kind
    kept, classes, notes = _belonging(found, layout, wanted, first)
    # An export of ours was compared with the photograph's size; its records have any grid.
    layout = layout if found.kind is None else layout._replace(grid=False)
    notes = [*found.notes, *notes]
    dropped: dict[str, str] = {}
    maps: dict[int, tuple[np.ndarray, float]] = {}
    for position, name in zip(kept, _names(classes, layout, wanted), strict=True):
        try:
            item, peak, note = _trusted(found.maps[position], layout, wanted, kind)
        except UserError as problem:
            dropped[name] = str(problem)
            continue
        notes += [f"{name}: {note}"] if note else []
        maps[position] = item, peak
    _drop_coarse(maps, dict(zip(kept, _names(classes, layout, wanted), strict=True)), dropped)
    if dropped and not maps:
        reasons = "; ".join(f"{name}: {text}" for name, text in dropped.items())
        raise UserError(reasons if len(dropped) > 1 else next(iter(dropped.values())))
    notes += [f"left out {name}: {text}" for name, text in dropped.items()]
    if found.kind is not None and not maps:  # a record of no class has a grid, too
        wanted = replace(wanted, grid=found.maps.shape[1:])
    ready = _stacked(maps, dict(zip(kept, classes, strict=True)), found.peaks, wanted, kind)
    return Prior(ready, tuple(notes), dropped)


def _stacked(
    maps: Mapping[int, tuple[np.ndarray, float]],
    labels: Mapping[int, int],
    peaks: Any,
    wanted: Wanted,
    kind: Kind,
) -> ScoreMaps:
    """Maps by their position in the file as one record."""
    scores = [item for item, _ in maps.values()]
    stacked = np.stack(scores, axis=-1) if scores else np.zeros((*wanted.grid, 0), np.float32)
    peak = [peak if peaks is None else peaks[n] for n, (_, peak) in maps.items()]
    largest = np.finfo(np.float32).max
    return ScoreMaps(
        stacked,
        np.asarray([labels[n] for n in maps], np.int32),
        wanted.size,
        np.minimum(np.asarray(peak, np.float64), largest).astype(np.float32),
        kind,
    )


def _drop_coarse(maps: dict, names: Mapping[int, str], dropped: dict[str, str]) -> None:
    """Leave out maps that are coarser than the finest."""
    finest = max((item.shape for item, _ in maps.values()), default=None)
    for position in [n for n, (item, _) in maps.items() if item.shape != finest]:
        shape = maps.pop(position)[0].shape
        dropped[names[position]] = f"a map of shape {shape}, others of {finest}"


def _trusted(
    item: Any, layout: Layout, wanted: Wanted, kind: Kind
) -> tuple[Float[np.ndarray, "h w"], float, str | None]:
    """One map on the wanted grid, its peak, and what was put right. Raises UserError."""
    if isinstance(item, UserError):
        raise item
    if not isinstance(item, np.ndarray):
        raise UserError(f"{kind_of(item)}, wanted a map")
    if item.ndim != 2 or not item.size:
        raise UserError(f"a map of shape {item.shape}, wanted the photograph's {wanted.size}")
    if layout.grid and not layout.agnostic:
        check_grid(item.shape, wanted.size, STRIDES, free=layout.free)
    fine, peak, note = _in_range(item, kind)
    target: Size = (min(fine.shape[0], wanted.grid[0]), min(fine.shape[1], wanted.grid[1]))
    return (fine if fine.shape == target else resize(fine, target)), peak, note


def _names(classes: Sequence[int], layout: Layout, wanted: Wanted) -> list[str]:
    names = SALIENCY.names if layout.agnostic else wanted.classes.names
    return [names[label] for label in classes]


def _belonging(
    found: Found, layout: Layout, wanted: Wanted, first: int
) -> tuple[list[int], list[int], list[str]]:
    """Positions and classes of the maps that the image's labels allow, and what was left out.

    Raises ValueError where all numbers are off by one, or no class is among the labels.
    """
    if len(set(found.keys)) != len(found.keys):
        raise UserError(f"class numbers {found.keys} repeat")
    if layout.agnostic:
        count = len(numbered(found, layout, layout.first))
        if count != 1:
            raise UserError(f"{count} classes, wanted one map of no class")
        return [len(found.keys) - 1], [0], []
    classes = numbered(found, layout, first)
    present = set(np.flatnonzero(wanted.labels).tolist())
    absent = [label for label in classes if label not in present]
    shift = shift_of(found, layout, wanted.labels, first)
    if absent and not layout.loose:
        numbers = f"class numbers {first_few(found.keys, 12)}, but the image's labels are "
        numbers += first_few((label + first for label in sorted(present)), 12)
        if shift:
            raise UserError(
                f"{numbers} in this layout: off by one? --first-class {first - shift} would fit"
            )
        if len(absent) == len(classes):
            raise UserError(f"{numbers} in this layout: it belongs to another image or data set")
    kept = [
        n
        for n, key in enumerate(found.keys)
        if key - first in present and not is_background(key, layout, first)
    ]
    notes = [f"left out class {label}, which the image's labels do not have" for label in absent]
    lacking = sorted(present - set(classes)) if not layout.loose else []
    notes += [f"no map of {wanted.classes.names[label]}" for label in lacking]
    return kept, [found.keys[n] - first for n in kept], notes


def _in_range(item: np.ndarray, kind: Kind) -> tuple[Float[np.ndarray, "H W"], float, str | None]:
    """The map as float32 in its kind's range, its peak, and what was put right."""
    note = None
    if item.dtype.kind not in "fbiu":
        raise UserError(f"a map of type {item.dtype}, wanted numbers")
    if item.dtype.kind == "b" or item.dtype == np.float16:  # exact, and checked faster
        item = item.astype(np.float32)
    if item.dtype == np.uint8 and item.max() > 1:
        note, item = "8-bit values divided by 255", item.astype(np.float32) / np.float32(255)
    if not np.isfinite(item).all():
        raise UserError("a map with NaN or infinity, which nothing can put right; make it again")
    low, peak = float(item.min()), float(item.max())
    if kind == "logit":
        return item.astype(np.float32), peak, note
    if low < -SLACK:
        note = _seam(item, low, peak) if kind == "activation" else None
        if note is None:
            raise UserError(
                f"scores down to {low:.3g}: logits? wanted {kind} scores from 0, after ReLU, "
                "sigmoid or softmax"
            )
        item, low, peak = np.maximum(item, 0), 0.0, max(peak, 0.0)
    if peak > 1 + SLACK:
        if kind == "probability":
            raise UserError(f"scores up to {peak:.3g}, wanted probabilities up to 1")
        note, item = f"divided by its maximum {peak:.3g}", item / peak
    if 0 < peak < FAINT:
        note = f"its maximum is {peak:.3g}, of which half precision keeps little or nothing"
    scores = item.astype(np.float32, copy=False)
    return (np.maximum(scores, 0) if low < 0 else scores), peak, note


def _seam(item: np.ndarray, low: float, peak: float) -> str | None:
    """What SEAM's formula did to a map below 0; None where these are logits.

    It sets the pixels at the minimum to 0 before it takes the minimum off: they end below 0, all at
    one value, and a class that never fires is -1 everywhere. Enlarging by cubic splines leaves
    small values. Logits are many different values of the size of the map's range.
    """
    if peak > 1 + SLACK:
        return None
    below = item[item < -SLACK]
    if below.size == item.size and low == float(below.max()):
        return f"{low:.3g} everywhere: the class never fires"
    one_value = float(below.max()) - low <= SLACK * max(1.0, -low)
    if one_value or below.size <= ISOLATED * item.size or -low <= OVERSHOOT * peak:
        return f"{below.size} pixel(s) below 0, down to {low:.3g}, set to 0"
    return None


def read_maps(
    path: Path | str, classes: ClassList | Sequence[str] | None = None, layout: str = "auto"
) -> ScoreMaps:
    """Score maps of one file of another tool, without image labels and without the photograph.

    classes: names in label order, which tell how many planes and numbers there may be; None takes
    as many as the file has. layout: a name of READERS, told from the file if "auto". Returns scores
    (h,w,k) of all k classes of the file, numbered from 0, on its finest grid, which is taken as the
    photograph's size. Nothing in the file is run. ``wsss import`` reads whole folders, and checks
    them against photographs and labels.

    Raises BadFileError for a file that cannot be read, has more classes, or may have several
    layouts (it names them), UserError for an unknown layout.

    >>> import wsss_jax as wj
    >>> maps = wj.read_maps(irn_file)
    >>> maps.classes.tolist(), maps.scores.shape, maps.kind
    ([2, 14], (4, 6, 2), 'activation')
    """
    path = as_path(path)
    if classes is None:
        names = ClassList(tuple(f"class {n}" for n in range(file_layouts.count_classes(path))))
    else:
        names = classes if isinstance(classes, ClassList) else ClassList((*classes,))
    name = file_layouts.layout_of(path, names, classes is None) if layout == "auto" else layout
    how = lookup(READERS, name, "layout (or auto)")
    with one_error(path, f"read as layout {name}"):
        size = file_layouts.size_of(path, name)
        found = how.read(path, how, Wanted(names, np.ones(len(names), bool), size, size))
        shapes = [item.shape for item in found.maps if isinstance(item, np.ndarray)]
        size = max((shape for shape in shapes if len(shape) == 2), default=size)
        labels = np.zeros(len(names), bool)
        for label in () if how.agnostic else numbered(found, how, how.first):
            if not 0 <= label < len(names):
                raise UserError(f"class number {label + how.first}, but {len(names)} classes")
            labels[label] = True
        return checked(found, how, Wanted(names, labels, size, size)).maps
