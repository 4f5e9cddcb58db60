"""How other tools write score maps: one layout per table row, and the functions that read them.

A layout says how a file is written: which fields it has, which number its first class carries, and
what the values mean. Nothing is ever unpickled. Not here: the checks of what was read
(``external``), which layout a folder has (``layouts``), and regions (``regions``).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wsss_jax.data import stores
from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import read_levels
from wsss_jax.data.ids import id_of_disk_name
from wsss_jax.data.photographs import header, working_size
from wsss_jax.errors import UserError, first_few
from wsss_jax.formats import npz
from wsss_jax.formats.pickled_arrays import kind_of, read_content, read_dictionary
from wsss_jax.ops.resize import resize
from wsss_jax.priors import planes, regions
from wsss_jax.priors.class_pictures import class_numbers, levels_or_error, per_class_files
from wsss_jax.priors.planes import SUM_SLACK, field_of
from wsss_jax.types import IGNORE, Kind, ScoreMaps, Size

ARRAYS = (".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle")
"""Endings of files of arrays; the content tells which of them a file is."""

PICTURES = (".png", ".jpg", ".jpeg")
"""Endings of pictures."""

EXPORTED: tuple[Kind, ...] = ("activation", "probability")
"""Fields that exports of ours add to IRN's: the record's own scores (k,h,w), called by kind."""

COARSE = 4
"""Pixels per cell of what is kept of soft maps, where no other stride is asked for."""


@dataclass(frozen=True)
class Wanted:
    """What is known of one image, and how its maps shall come.

    labels: classes of the image (C,). size: (H, W) of the photograph in pixels. grid: the finest
    grid that is kept. first: number of the first class in the files, None for the layout's own.
    kind: what values mean, None for the layout's own. field: which of the layout's fields is read,
    None for the first that the file has. entries: the image's regions, where one file holds those
    of all images.
    """

    classes: ClassList
    labels: Bool[np.ndarray, " c"]
    size: Size
    grid: Size
    first: int | None = None
    kind: Kind | None = None
    field: str | None = None
    entries: Any = None


class Found(NamedTuple):
    """A file's content before any check.

    keys: numbers of the classes as they stand in the file. maps: one of (h,w) for each key; what is
    no map is left for the checks to name. field: where they came from, "" where there is one place
    only. peaks: (k,) where the file tells them. notes: what was put right on the way. kind: of maps
    that this program exported, which come back as they were; else None.
    """

    keys: tuple[int, ...]
    maps: Any
    field: str = ""
    peaks: Any = None
    notes: tuple[str, ...] = ()
    kind: Kind | None = None


class Layout(NamedTuple):
    """How one tool writes its files.

    endings: of the file names, whatever stands between id and ending. fields: names of the maps in
    a dictionary, the finest first; none where the dictionary maps class numbers to maps. first:
    number of the first class; where it is 1, number 0 is background and dropped. agnostic: one map
    of no class. hard: masks. told: files may be taken for this layout without being called so.
    free: grids need not be the photograph's divided by a whole number. grid: grids are compared
    with the photograph's size. loose: files may name classes that the image does not show, and lack
    some that it shows. stride: pixels per cell that are kept where nothing else is asked for.
    """

    read: Callable[[Path, "Layout", Wanted], Found]
    endings: tuple[str, ...] = ARRAYS
    fields: tuple[str, ...] = ()
    first: int = 0
    kind: Kind = "activation"
    agnostic: bool = False
    hard: bool = False
    told: bool = True
    free: bool = False
    grid: bool = True
    loose: bool = False
    stride: int = COARSE


def exported_maps(content: Mapping[str | int, Any]) -> Found | None:
    """The record that an export of ours adds to IRN's fields: its scores by kind, and its peaks."""
    kind: Kind | None = next((one for one in EXPORTED if one in content), None)
    if kind is None or not {"keys", "peak", "high_res"} <= set(content):
        return None
    keys, peak, scores = content["keys"], content["peak"], content[kind]
    if not all(isinstance(part, np.ndarray) for part in (keys, peak, scores)):
        return None
    if scores.ndim != 3 or not keys.shape == peak.shape == scores.shape[:1]:
        return None
    return Found(tuple(int(key) for key in keys), scores, "", peak, (), kind)


def _unchanged(found: Found, content: Mapping[str | int, Any], size: Size) -> bool:
    """Whether the fields that others read are still those of the record."""
    scores = np.moveaxis(np.asarray(found.maps, np.float32), 0, -1)
    return np.array_equal(np.moveaxis(resize(scores, size), -1, 0), content["high_res"])


def maps_of(content: Mapping[str | int, Any], layout: Layout, field: str | None = None) -> Found:
    """Class numbers and maps of a dictionary. Raises ValueError when it has another layout."""
    if not layout.fields:
        if all(isinstance(key, str) and key.isdecimal() for key in content):
            content = {int(key): item for key, item in content.items()}
        if not all(isinstance(key, int) for key in content):
            raise UserError(f"fields {first_few(content, 12)}, wanted class numbers alone")
        if content and not any(is_map(item) for item in content.values()):
            key, item = next(iter(content.items()))
            told = f"{key} is {kind_of(item)}, wanted a map (h, w)"
            raise UserError(f"a dictionary of class numbers whose values are no maps: {told}")
        return Found(tuple(int(key) for key in content), tuple(content.values()))
    name = field_of(content, layout.fields, field, "keys and ")
    if "keys" not in content:
        raise UserError(f"fields {first_few(content, 12)}, wanted keys and {name}")
    keys = content["keys"]
    keys = np.asarray(keys) if isinstance(keys, (np.ndarray, int, float)) else keys
    if not isinstance(keys, np.ndarray):
        raise UserError(f"keys are {kind_of(keys)}, wanted class numbers")
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise UserError(f"keys of shape {keys.shape} and type {keys.dtype}, wanted class numbers")
    if not isinstance(content[name], np.ndarray):
        raise UserError(f"{name} is {kind_of(content[name])}, wanted maps")
    return _paired(tuple(int(key) for key in keys), content[name])._replace(field=name)


def numbered(found: Found, layout: Layout, first: int) -> tuple[int, ...]:
    """0-based classes of a file whose first class is number ``first``, background left out."""
    return tuple(key - first for key in found.keys if not is_background(key, layout, first))


def is_background(key: int, layout: Layout, first: int) -> bool:
    """Whether a number of the file stands for background; masks have no map of it."""
    return key == 0 and (first == 1 or (layout.first == 1 and not layout.hard))


def is_map(item: Any) -> bool:
    """Whether a value of a file may be a map (h,w)."""
    return isinstance(item, np.ndarray) and item.ndim == 2


def values_of(mask: UInt8[np.ndarray, "H W"]) -> list[int]:
    """The values that occur, sorted; five times as fast as sorting the pixels."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)).tolist()


def sums_to_one(found: Found) -> bool | None:
    """Whether background (number 0) and classes are probabilities; None without background."""
    maps = found.maps
    if 0 not in found.keys or any(
        not is_map(item) or item.shape != maps[0].shape or item.dtype.kind not in "fbiu"
        for item in maps
    ):
        return None
    total = np.sum(list(maps), axis=0, dtype=np.float64)
    return bool(np.abs(total - 1).max(initial=0) < SUM_SLACK)


def _paired(keys: tuple[int, ...], maps: np.ndarray) -> Found:
    """One map per number: a leading background is taken off where only one side has it."""
    count = len(maps) if maps.ndim == 3 else -1
    if count in (len(keys), len(keys) + 1):
        return Found(keys, maps[1:] if count > len(keys) else maps)
    if count == len(keys) - 1 and keys[:1] == (0,):
        return Found(keys[1:], maps)
    raise UserError(f"{len(keys)} keys for maps of shape {maps.shape}, wanted one map per class")


def _dictionary(path: Path, layout: Layout, wanted: Wanted) -> Found:
    content = read_dictionary(path)
    found = exported_maps(content) if "high_res" in layout.fields and not wanted.field else None
    if found is not None and _unchanged(found, content, wanted.size):
        return found
    found = maps_of(content, layout, wanted.field)
    kind = wanted.kind or layout.kind
    if kind == "probability" and not layout.fields and sums_to_one(found) is False:
        raise UserError("background and classes do not sum to 1, so they are no CRF's result")
    return found


def _logits(path: Path, layout: Layout, wanted: Wanted) -> Found:
    name, values = planes.stacked_logits(read_dictionary(path), layout.fields, wanted.field)
    if len(values) != len(wanted.classes) + 1:
        raise UserError(
            f"{name} holds {len(values)} planes, wanted {len(wanted.classes) + 1}: background and "
            f"the {len(wanted.classes)} classes"
        )
    return Found(*planes.shares(values, wanted.labels), name)


def _array(path: Path, layout: Layout, wanted: Wanted) -> Found:
    (numbers, maps), name = planes.of_array(read_content(path), wanted.labels)
    return Found(numbers, maps, name)


def _saliency(path: Path, layout: Layout, wanted: Wanted) -> Found:
    return Found((layout.first,), *_binary(read_levels(path)))


def _binary(levels: Float[np.ndarray, "H W"]) -> tuple[tuple[np.ndarray], str, None, tuple]:
    if levels.max(initial=0) == np.float32(1 / 255):
        note = "the picture holds 0 and 1 only, taken for no and yes"
        return (levels * np.float32(255),), "", None, (note,)
    return (levels,), "", None, ()


_PER_CLASS = re.compile(r"(.+)_(\d{1,3})")


def _per_class(path: Path, layout: Layout, wanted: Wanted) -> Found:
    """One grey picture per class: ``<id>_<class>.png``."""
    match = _PER_CLASS.fullmatch(path.stem)
    if match is None:
        raise UserError("the name has no class number at its end, wanted <id>_<class>.png")
    found = per_class_files(path.parent, match[1], path.suffix, len(wanted.classes))
    return Found(tuple(found), [levels_or_error(file) for file in found.values()])


def _mask(path: Path, layout: Layout, wanted: Wanted) -> Found:
    about = header(path, path)
    if about.raw != wanted.size:
        check_grid(about.raw, wanted.size, (1,))
    return of_mask(class_numbers(path, path, about.mode), wanted)


def of_mask(mask: UInt8[np.ndarray, "H W"], wanted: Wanted) -> Found:
    """The classes of a mask as maps of 0 and 1, and of less where it is IGNORE. UserError."""
    check_grid(mask.shape, wanted.size, (1,))
    none = (IGNORE,) if wanted.first == 0 else (0, IGNORE)
    values = [value for value in values_of(mask) if value not in none]
    if values and values[-1] > len(wanted.classes):
        raise UserError(
            f"value {values[-1]}, but {len(wanted.classes)} classes; a saliency map is read by "
            "layout saliency_png"
        )
    # Where the tool was not sure, no class and no background is likelier than the others.
    unknown = (mask == IGNORE) * np.float32(1 / (len(values) + 1))
    return Found(tuple(values), [(mask == value) + unknown for value in values])


def check_grid(
    shape: tuple[int, ...], size: Size, strides: Sequence[int], *, free: bool = False
) -> None:
    """UserError unless a map covers a photograph of ``size`` at one of the strides.

    free: any stride will do, to a cell.
    """
    # Our own maps of a photograph that is worked on reduced are those of its working size.
    sizes = dict.fromkeys((size, working_size(size)))
    grids = [(-(-h // s), -(-w // s)) for h, w in sizes for s in strides]
    if shape in grids or (free and _same_aspect(shape, size)):
        return
    if shape[::-1] in grids:
        raise UserError(
            f"a map of {shape} for a photograph of {size}: rows and columns are exchanged; save it "
            "transposed"
        )
    whole = "" if len(strides) == 1 else f", or that divided by {', '.join(map(str, strides[1:]))}"
    raise UserError(f"a map of shape {shape}, wanted the photograph's {size}{whole}")


def _same_aspect(shape: tuple[int, ...], size: Size) -> bool:
    """Whether one stride explains both sides, each rounded up or down to a cell."""
    if len(shape) != 2 or min(shape) < 1:
        return False
    low = max(side / (cells + 1) for side, cells in zip(size, shape, strict=True))
    high = min(side / max(cells - 1, 0.5) for side, cells in zip(size, shape, strict=True))
    return low <= high


def _record(path: Path, layout: Layout, wanted: Wanted) -> Found:
    most = math.prod(wanted.size) * len(wanted.classes)
    for name, told in npz.headers(path).items():
        if math.prod(told.shape) > most:
            raise UserError(f"{name} of shape {told.shape} for a photograph of {wanted.size}")
    id = id_of_disk_name(path.name.removesuffix(".npz"))
    return of_maps(stores.open_store(path.parent.parent).get_scores(id), wanted)


def of_maps(maps: ScoreMaps, wanted: Wanted) -> Found:
    """The maps of a record of ours. UserError where they are of another photograph."""
    if maps.size != wanted.size:
        raise UserError(f"made for a photograph of {maps.size}, this one is {wanted.size}")
    return Found(tuple(maps.classes.tolist()), list(maps.scores.transpose(2, 0, 1)), "", maps.peak)


def _instances(path: Path, layout: Layout, wanted: Wanted) -> Found:
    if wanted.entries is None:
        found = regions.read_regions(path, size=wanted.size)
    else:
        found = regions.parsed(wanted.entries, path, size=wanted.size)
    labels = regions.labels_of(found.classes, wanted.classes, wanted.first)
    scores = {
        label: found.class_map([n for n, other in enumerate(labels) if other == label])
        for label in sorted({label for label in labels if label is not None})
    }
    unknown = sorted(
        {str(c) for c, label in zip(found.classes, labels, strict=True) if label is None}
    )
    notes = (f"regions of other classes left out: {first_few(unknown, 12)}",) if unknown else ()
    notes = (*found.notes, *notes)
    first = layout.first if wanted.first is None else wanted.first
    return Found(tuple(label + first for label in scores), list(scores.values()), "", None, notes)


READERS: Mapping[str, Layout] = MappingProxyType({
    # PSA infer_cls.py, OC-CSE, SEAM: {class: (H,W) float32}, each map / (its maximum + 1e-5).
    "psa_cam": Layout(_dictionary),
    # MCTformer engine.py: the same dictionary, each map (x - min) / (max - min + 1e-8). Nothing
    # tells it from psa_cam, and it is read the same way.
    "mctformer": Layout(_dictionary, told=False),
    # PSA, OC-CSE out_la_crf, out_ha_crf: {0: background, class + 1: (H,W)}, marginals of a CRF.
    "psa_crf": Layout(_dictionary, first=1, kind="probability"),
    # IRN make_cam.py: {keys: classes, cam: tensor at stride 4, high_res: (k,H,W)}. ORANDNet adds
    # _1 to the name; AMN puts a plane of background before high_res.
    "irn": Layout(_dictionary, fields=("high_res", "cam")),
    # Puzzle-CAM, P-NOC: {keys: [0, class + 1, …], cam: tensor at stride 4, hr_cam: (k,H,W)}.
    "puzzle": Layout(_dictionary, fields=("hr_cam", "cam"), first=1),
    # The same after the random walk: {keys, rw: (k,H,W)}, divided by the maximum of all classes.
    "puzzle_rw": Layout(_dictionary, fields=("rw",), first=1),
    # CCAM in P-NOC: {keys: [0, 1], cam, hr_cam: (1,H,W)}, one map of no class.
    "ccam": Layout(_dictionary, fields=("hr_cam", "cam"), first=1, agnostic=True),
    # CLIP-ES: {keys: classes, attn_highres: (k,H,W) float16}.
    "clipes": Layout(_dictionary, fields=("attn_highres",)),
    # DHR produce_wss_masks.py, torch.save: {keys: [0, class + 1, …], masks: (k,h,w) float16},
    # softmax over background and classes, those above 0.05 somewhere.
    "dhr": Layout(_dictionary, fields=("masks",), first=1, kind="probability", free=True),
    # ToCo, DuPL, SeCo, ExCEL infer_seg_voc.py: {msc_seg: (1 or n, 1+C, h, w)} logits.
    "msc_seg": Layout(_logits, fields=("msc_seg",), first=1, kind="probability", free=True),
    # WeCLIP test_msc_flip_voc.py: {segs, msc_segs: (1, 1+C, h, w)} logits of one and of all scales.
    "weclip": Layout(_logits, fields=("msc_segs", "segs"), first=1, kind="probability", free=True),
    # Plain arrays: (C,h,w), or (1+C,h,w) with background first, which are logits where negative.
    "array": Layout(_array, first=1, free=True),
    # OAA: <id>_<class>.png, 8-bit grey, one picture per class.
    "oaa": Layout(_per_class, PICTURES),
    # Masks, grey (IRN, PSA, Puzzle-CAM, CLIP-ES) or palette (MCTformer, VOC): class + 1 or IGNORE.
    "mask_png": Layout(_mask, (".png",), first=1, kind="probability", hard=True, loose=True,
                       stride=1),
    # Saliency (PoolNet, SOD100K, CCAM + CRF): grey of any size and depth, white is an object.
    "saliency_png": Layout(_saliency, PICTURES, kind="probability", agnostic=True),
    # COCO results, or text-prompt masks (Grounded SAM, SAM 3): regions with classes and scores.
    "instances": Layout(_instances, (".json", *ARRAYS), first=1, kind="probability", loose=True,
                        stride=1),
    # Our own stores of score maps are known by their index, which says kind and classes.
    "store": Layout(_record, (".npz",), told=False),
    "saliency_store": Layout(_record, (".npz",), agnostic=True, told=False),
})  # fmt: skip
"""Layouts of other tools by name, each with its source."""
