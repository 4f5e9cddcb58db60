"""Files of other tools, read as score maps: one layout per table row, one check for all.

A layout says how a file is written: which fields it has, which number its first class carries, and
what the values mean. What comes out is checked alike for all: classes against the image's labels,
grids against the photograph's size, values against their range. A file that cannot be trusted is
one BadFileError; the few things that are put right are told in the prior's notes. Nothing is ever
unpickled. Not here: which layout a folder has (``layouts``), and storing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wsss_jax.config import lookup
from wsss_jax.data import stores
from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import image_size, named_file, read_grey, read_mask
from wsss_jax.data.ids import id_of_disk_name
from wsss_jax.data.photographs import working_size
from wsss_jax.errors import BadFileError, MissingFileError, UserError
from wsss_jax.formats import npz
from wsss_jax.formats.pickled_arrays import read_dictionary
from wsss_jax.ops.resize import resize
from wsss_jax.types import IGNORE, Kind, ScoreMaps, Size

SALIENCY = ClassList(("saliency",))
"""What the one class of a saliency map is called."""

EDGES = ("edge",)
"""What the one class of an edge map is called."""

STRIDES = (1, 2, 4, 8, 16, 32)
"""Pixels per cell of the grids that class maps may come on."""

SLACK = 1e-3
"""How far beyond its range a value may lie (rounding of float16) before the file is refused."""

SUM_SLACK = 0.02
"""How far background and classes of a CRF may sum from 1."""


@dataclass(frozen=True)
class Wanted:
    """What is known of one image, and how its maps shall come.

    labels: classes of the image (C,). size: (H, W) of the photograph in pixels. grid: the finest
    grid that is kept. first: number of the first class in the files, None for the layout's own.
    kind: what values mean, None for the layout's own.
    """

    classes: ClassList
    labels: Bool[np.ndarray, " c"]
    size: Size
    grid: Size
    first: int | None = None
    kind: Kind | None = None


class Prior(NamedTuple):
    """Score maps of one file, and in words what was put right to get them."""

    maps: ScoreMaps
    notes: tuple[str, ...] = ()


class Found(NamedTuple):
    """A file's content before any check.

    keys: numbers of the classes as they stand in the file. choices: the same maps on different
    grids, the finest first, each (k,h,w) or a list of (h,w). peaks: (k,) where the file tells them.
    """

    keys: tuple[int, ...]
    choices: tuple[Sequence[np.ndarray], ...]
    peaks: Any = None


class Layout(NamedTuple):
    """How one tool writes its files.

    suffixes: what follows the id. fields: names of the maps in a dictionary with ``keys``, finest
    first; none where the dictionary maps class numbers to maps. first: number of the first class;
    where it is 1, number 0 is background and dropped. agnostic: one map of no class. hard: masks.
    told: files may be taken for this layout without being called so.
    """

    read: Callable[[Path, "Layout", Wanted], Found]
    suffixes: tuple[str, ...] = (".npy",)
    fields: tuple[str, ...] = ()
    first: int = 0
    kind: Kind = "activation"
    agnostic: bool = False
    hard: bool = False
    told: bool = True


def read_prior(layout: str, folder: Path, id: str, wanted: Wanted) -> Prior:
    """The score maps that another tool wrote for one image.

    layout: a name of READERS. folder: where one file per image lies, named by id. Maps finer than
    ``wanted.grid`` are reduced to it by the mean over areas. Raises BadFileError where the file is
    missing, damaged or does not belong to the image, ValueError for an unknown layout or an unsafe
    id.
    """
    how = lookup(READERS, layout, "layout")
    path = file_of(folder, id, how)
    try:
        return _checked(how.read(path, how, wanted), how, wanted)
    except BadFileError:
        raise
    except ValueError as problem:
        raise BadFileError(f"{path}: {problem} (read as layout {layout})") from problem


def file_of(folder: Path, id: str, layout: Layout) -> Path:
    """The file of one image. Raises MissingFileError."""
    for suffix in layout.suffixes:
        path = named_file(folder, id, suffix)
        if path.is_file():
            return path
    wanted = ", ".join(f"{id}{suffix}" for suffix in layout.suffixes)
    raise MissingFileError(f"{folder}: no file of {id} (wanted {wanted})")


def maps_of(content: Mapping[str | int, Any], layout: Layout) -> Found:
    """Class numbers and maps of a dictionary. Raises ValueError when it has another layout."""
    if not layout.fields:
        if not all(isinstance(key, int) for key in content):
            raise UserError(f"fields {_listed(content)}, wanted class numbers alone")
        if not all(isinstance(item, np.ndarray) and item.ndim == 2 for item in content.values()):
            raise UserError("a dictionary of class numbers whose values are no maps")
        return Found(tuple(int(key) for key in content), (tuple(content.values()),))
    choices = tuple(np.asarray(content[name]) for name in layout.fields if name in content)
    if "keys" not in content or not choices:
        wanted = " or ".join(layout.fields)
        raise UserError(f"fields {_listed(content)}, wanted keys and {wanted}")
    keys = np.asarray(content["keys"])
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise UserError(f"keys of shape {keys.shape} and type {keys.dtype}, wanted class numbers")
    return _paired(tuple(int(key) for key in keys), choices)


def numbered(found: Found, layout: Layout, first: int) -> tuple[int, ...]:
    """0-based classes of a file whose first class is number ``first``, background left out."""
    return tuple(key - first for key in found.keys if not _is_background(key, layout))


def _is_background(key: int, layout: Layout) -> bool:
    return key == 0 and layout.first == 1


def shift_of(classes: Sequence[int], labels: Bool[np.ndarray, " c"]) -> int | None:
    """What must be added to the classes to make them labels of the image: 0, 1, -1, or nothing."""
    present = set(np.flatnonzero(labels).tolist())
    for shift in (0, 1, -1):
        if {label + shift for label in classes} <= present:
            return shift
    return None


def values_of(mask: UInt8[np.ndarray, "H W"]) -> list[int]:
    """The values that occur, sorted; five times as fast as sorting the pixels."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)).tolist()


def sums_to_one(found: Found) -> bool | None:
    """Whether background (number 0) and classes are probabilities; None without background."""
    maps = found.choices[0]
    if 0 not in found.keys or any(np.shape(item) != np.shape(maps[0]) for item in maps):
        return None
    total = np.sum(list(maps), axis=0)
    return bool(np.abs(total - 1).max() < SUM_SLACK)


def _dictionary(path: Path, layout: Layout, wanted: Wanted) -> Found:
    found = maps_of(read_dictionary(path), layout)
    kind = wanted.kind or layout.kind
    if kind == "probability" and sums_to_one(found) is False:
        raise UserError("background and classes do not sum to 1, so they are no CRF's result")
    return found


def _saliency(path: Path, layout: Layout, wanted: Wanted) -> Found:
    return Found((layout.first,), ((read_grey(path).astype(np.float32) / np.float32(255),),))


def _mask(path: Path, layout: Layout, wanted: Wanted) -> Found:
    if image_size(path) != wanted.size:
        _check_grid(image_size(path), wanted.size, (1,))
    mask = read_mask(path)
    values = [value for value in values_of(mask) if value not in (0, IGNORE)]
    if values and values[-1] > len(wanted.classes):
        raise UserError(
            f"value {values[-1]}, but {len(wanted.classes)} classes; a saliency map is read by "
            "layout saliency_png"
        )
    # Where the tool was not sure, no class and no background is likelier than the others.
    unknown = (mask == IGNORE) * np.float32(1 / (len(values) + 1))
    return Found(tuple(values), ([(mask == value) + unknown for value in values],))


def _record(path: Path, layout: Layout, wanted: Wanted) -> Found:
    most = math.prod(wanted.size) * len(wanted.classes)
    for name, (shape, _) in npz.headers(path).items():
        if math.prod(shape) > most:
            raise UserError(f"{name} of shape {shape} for a photograph of {wanted.size}")
    maps = stores.open_store(path.parent.parent).get_scores(
        id_of_disk_name(path.name.removesuffix(".npz"))
    )
    if maps.size != wanted.size:
        raise UserError(f"made for a photograph of {maps.size}, this one is {wanted.size}")
    scores = maps.scores.transpose(2, 0, 1)
    return Found(tuple(maps.classes.tolist()), (list(scores),), maps.peak)


_GREY = (".png",)
READERS: Mapping[str, Layout] = MappingProxyType({
    # PSA infer_cls.py, OC-CSE, SEAM: {class: (H,W) float32}, each map / (its maximum + 1e-5).
    "psa_cam": Layout(_dictionary),
    # MCTformer engine.py: the same dictionary, each map (x - min) / (max - min + 1e-8). Nothing
    # tells it from psa_cam, and it is read alike.
    "mctformer": Layout(_dictionary, told=False),
    # PSA, OC-CSE out_la_crf, out_ha_crf: {0: background, class + 1: (H,W)}, marginals of a CRF.
    "psa_crf": Layout(_dictionary, first=1, kind="probability"),
    # IRN make_cam.py: {keys: classes, cam: tensor at stride 4, high_res: (k,H,W)}. ORANDNet adds
    # _1 to the name; AMN puts a plane of background before high_res.
    "irn": Layout(_dictionary, (".npy", "_1.npy"), ("high_res", "cam")),
    # Puzzle-CAM, P-NOC: {keys: [0, class + 1, …], cam: tensor at stride 4, hr_cam: (k,H,W)}.
    "puzzle": Layout(_dictionary, fields=("hr_cam", "cam"), first=1),
    # The same after the random walk: {keys, rw: (k,H,W)}, divided by the maximum of all classes.
    "puzzle_rw": Layout(_dictionary, fields=("rw",), first=1),
    # CCAM in P-NOC: {keys: [0, 1], cam, hr_cam: (1,H,W)}, one map of no class.
    "ccam": Layout(_dictionary, fields=("hr_cam", "cam"), first=1, agnostic=True),
    # CLIP-ES: {keys: classes, attn_highres: (k,H,W) float16}.
    "clipes": Layout(_dictionary, fields=("attn_highres",)),
    # Masks, grey (IRN, PSA, Puzzle-CAM, CLIP-ES) or palette (MCTformer, VOC): class + 1 or IGNORE.
    "mask_png": Layout(_mask, _GREY, first=1, kind="probability", hard=True),
    # Saliency (PoolNet, SOD100K, CCAM + CRF): 8-bit grey of any size, 255 is certainly an object.
    "saliency_png": Layout(_saliency, _GREY, kind="probability", agnostic=True),
    # Our own stores of score maps are known by their index, which says kind and classes.
    "store": Layout(_record, (".npz",), told=False),
    "saliency_store": Layout(_record, (".npz",), agnostic=True, told=False),
})  # fmt: skip
"""Layouts of other tools by name, each with its source."""


def _checked(found: Found, layout: Layout, wanted: Wanted) -> Prior:
    first = layout.first if wanted.first is None else wanted.first
    kind = wanted.kind or layout.kind
    kept, classes, notes = _belonging(found, layout, wanted, first)
    maps = _choice(found, kept, wanted.grid)
    scores, peaks = [], []
    for name, item in zip(_names(classes, layout, wanted), maps, strict=True):
        if not layout.agnostic:
            _check_grid(np.shape(item), wanted.size, STRIDES)
        fine, peak, note = _in_range(item, kind)
        notes += [f"{name}: {note}"] if note else []
        peaks.append(peak)
        target: Size = (min(fine.shape[0], wanted.grid[0]), min(fine.shape[1], wanted.grid[1]))
        scores.append(fine if fine.shape == target else resize(fine, target))
    if len({item.shape for item in scores}) > 1:
        raise UserError(f"maps of different shapes {sorted({np.shape(item) for item in maps})}")
    stacked = np.stack(scores, axis=-1) if scores else np.zeros((*wanted.grid, 0), np.float32)
    peak = np.asarray(peaks) if found.peaks is None else found.peaks[kept]
    peak = np.minimum(peak, np.finfo(np.float32).max).astype(np.float32)
    ready = ScoreMaps(stacked, np.asarray(classes, np.int32), wanted.size, peak, kind)
    return Prior(ready, tuple(notes))


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
    shift = shift_of(classes, wanted.labels)
    if absent and not layout.hard:
        numbers = f"class numbers {_listed(found.keys)}, but the image's labels are "
        numbers += _listed(label + first for label in sorted(present))
        if shift:
            raise UserError(
                f"{numbers} in this layout: off by one? --first-class {first - shift} would fit"
            )
        if len(absent) == len(classes):
            raise UserError(f"{numbers} in this layout: it belongs to another image or data set")
    kept = [
        n
        for n, key in enumerate(found.keys)
        if key - first in present and not _is_background(key, layout)
    ]
    notes = [f"left out class {label}, which the image's labels do not have" for label in absent]
    lacking = sorted(present - set(classes)) if not layout.hard else []
    notes += [f"no map of {wanted.classes.names[label]}" for label in lacking]
    return kept, [found.keys[n] - first for n in kept], notes


def _choice(found: Found, kept: Sequence[int], grid: Size) -> list[np.ndarray]:
    """The kept maps on the wanted grid where the file has that, else the finest."""
    fitting = (maps for maps in found.choices if len(maps) and np.shape(maps[0]) == grid)
    chosen = next(fitting, found.choices[0])
    return [np.asarray(chosen[n]) for n in kept]


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
        raise UserError(
            f"scores down to {low:.3g}: logits? wanted {kind} scores from 0, after ReLU, sigmoid "
            "or softmax"
        )
    if peak > 1 + SLACK:
        if kind == "probability":
            raise UserError(f"scores up to {peak:.3g}, wanted probabilities up to 1")
        note, item = f"divided by its maximum {peak:.3g}", item / peak
    scores = item.astype(np.float32, copy=False)
    return (np.maximum(scores, 0) if low < 0 else scores), peak, note


def _check_grid(shape: tuple[int, ...], size: Size, strides: Sequence[int]) -> None:
    # Our own maps of a photograph that is worked on reduced are those of its working size.
    sizes = dict.fromkeys((size, working_size(size)))
    grids = [(-(-h // s), -(-w // s)) for h, w in sizes for s in strides]
    if shape in grids:
        return
    if shape[::-1] in grids:
        raise UserError(
            f"a map of {shape} for a photograph of {size}: rows and columns are exchanged; save it "
            "transposed"
        )
    whole = "" if len(strides) == 1 else f", or that divided by {', '.join(map(str, strides[1:]))}"
    raise UserError(f"a map of shape {shape}, wanted the photograph's {size}{whole}")


def _paired(keys: tuple[int, ...], choices: tuple[Any, ...]) -> Found:
    """One map per number: a leading background is taken off where only one side has it."""
    counts = {len(maps) if maps.ndim == 3 else -1 for maps in choices}
    if counts <= {len(keys), len(keys) + 1}:
        trimmed = (maps[1:] if len(maps) > len(keys) else maps for maps in choices)
        return Found(keys, tuple(trimmed))
    if counts == {len(keys) - 1} and keys[:1] == (0,):
        return Found(keys[1:], choices)
    shapes = ", ".join(str(np.shape(maps)) for maps in choices)
    raise UserError(f"{len(keys)} keys for maps of shape {shapes}, wanted one map per class")


def _listed(values: Any) -> str:
    items = [str(value)[:40] for value in values]
    return ", ".join(items[:12]) + (" …" if len(items) > 12 else "") if items else "none"
