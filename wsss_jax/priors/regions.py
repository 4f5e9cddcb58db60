"""Regions of one photograph: masks with scores that segment-anything tools and detectors write.

Read are JSON lists of run lengths or polygons (SAM's ``segmentation``, ``predicted_iou``; COCO
results with ``category_id`` and ``score``; text prompts with ``class_name`` or ``label``), arrays
``masks`` (n,H,W) with ``scores`` and labels in any container of ``pickled_arrays``, and our own
records. Regions may overlap, so they are kept as run lengths, not as one map of labels. A region
that cannot be read is left out and named in the notes. Not here: drawing polygons and decoding run
lengths (``coco_regions``), and what a combiner makes of regions.

Source of the run lengths: maskApi.c of the COCO API (column by column, beginning with zeros).
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from jaxtyping import Bool, Float

from wsss_jax.data import coco_regions
from wsss_jax.data.classes import COCO, ClassList
from wsss_jax.data.files import MAX_PIXELS
from wsss_jax.data.ids import PHOTOGRAPHS
from wsss_jax.data.stores import Store
from wsss_jax.data.texts import read_json
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.formats import npz
from wsss_jax.formats.bounded import DAMAGE, MAX_TOTAL, one_error, reason
from wsss_jax.formats.pickled_arrays import kind_of, read_dictionary
from wsss_jax.formats.run_lengths import runs as lengths_of
from wsss_jax.ops.resize import resize
from wsss_jax.types import Size

MAX_JSON = 2**30
"""Larger files of regions are refused."""

_LISTS = ("annotations", "regions", "predictions", "results")
_IMAGE = ("image_id", "file_name", "filename", "image", "file")
_NUMBER = re.compile(r"[0-9]*[.]?[0-9]+")
_REGION = ("segmentation", "mask", "rle", "mask_rle")
_SCORE = ("score", "predicted_iou", "confidence", "stability_score", "scores")
CLASSES = (
    "class_name", "category_name", "label", "phrase", "prompt", "text", "name", "class", "category",
    "category_id", "label_id",
)  # fmt: skip
"""Fields of a region that may tell what it shows."""

_COLUMNS = (
    "labels",
    "class_names",
    "classes",
    "phrases",
    "prompts",
    "names",
    "categories",
    "texts",
)
_FIELDS = {"size": "i", "scores": "f", "lengths": "i", "counts": "i"}
_OFFICIAL = tuple(n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The category numbers of COCO's 80 things, as its own files and results have them."""


@dataclass(frozen=True)
class Regions:
    """Regions of one photograph. size: (H, W). scores: (n,) in [0, 1].

    runs: per region the run lengths, column by column, beginning with zeros. classes: what each is
    said to show, a number or text of the file, or None. notes: what was left out.
    """

    size: Size
    runs: tuple[np.ndarray, ...]
    scores: Float[np.ndarray, " n"]
    classes: tuple[int | str | None, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def mask(self, number: int) -> Bool[np.ndarray, "H W"]:
        """The pixels of one region."""
        counts = self.runs[number]
        inside = np.arange(len(counts)) % 2 == 1
        return np.repeat(inside, counts).reshape(self.size[::-1]).T

    @property
    def masks(self) -> list[Bool[np.ndarray, "H W"]]:
        """The pixels of all regions."""
        return [self.mask(number) for number in range(len(self))]

    def on_grid(self, grid: Size) -> Float[np.ndarray, "n h w"]:
        """The share of each cell that each region covers."""
        shares = [resize(self.mask(n).astype(np.float32), grid) for n in range(len(self))]
        return np.stack(shares) if shares else np.zeros((0, *grid), np.float32)

    def class_map(self, numbers: Sequence[int]) -> Float[np.ndarray, "H W"]:
        """The largest score of the regions ``numbers`` at each pixel, 0 outside of them."""
        scores = np.zeros(self.size, np.float32)
        for number in numbers:
            np.maximum(scores, self.mask(number) * np.float32(self.scores[number]), out=scores)
        return scores


def read_regions(path: Path, *, size: Size | None = None) -> Regions:
    """The regions of one photograph, out of a file of any known form.

    size: (H, W) of the photograph; regions of another size are left out. None takes the size of
    the first region that tells it. Raises BadFileError where nothing can be read, or where the
    file holds several photographs.
    """
    if path.suffix.lower() == ".json":
        return parsed(read_json(path, MAX_JSON), path, size=size)
    if path.suffix == ".npz" and set(_FIELDS) <= set(npz.headers(path, MAX_TOTAL)):
        return _own(npz.read(path, _FIELDS, MAX_TOTAL), path)
    content = read_dictionary(path)
    with one_error(path, "cannot be read as regions"):
        return _of_arrays(content, size)


def by_image(value: Any) -> dict[str, list] | None:
    """Entries by image number or name, of a file for many photographs; None of a file for one."""
    if isinstance(value, Mapping) and isinstance(value.get("images"), list):
        return _of_dataset(value)
    if isinstance(value, Mapping):
        lists = {k: v for k, v in value.items() if isinstance(v, list) and all(map(_is_object, v))}
        inner = [lists[name] for name in _LISTS if name in lists]
        if not inner and lists and len(lists) == len(value) and "masks" not in lists:
            return {_named(id): entries for id, entries in lists.items()}
        value = inner[0] if inner else value
    if not isinstance(value, list) or not value:
        return None
    name = next((name for name in _IMAGE if all(_is_object(e) and name in e for e in value)), None)
    if name is None:
        return None
    grouped: dict[str, list] = {}
    for entry in value:
        grouped.setdefault(_named(entry[name]), []).append(entry)
    return grouped


def _is_object(entry: Any) -> bool:
    return isinstance(entry, Mapping)


def _named(image: Any) -> str:
    """What a file of many photographs calls one of them, without folders and suffix."""
    name = str(image).replace("\\", "/").rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in PHOTOGRAPHS else name


def key_of(id: str, known: Mapping[str, Any]) -> str | None:
    """The number or name by which a file of many photographs calls an image."""
    digits = re.search(r"(\d+)$", id)
    number = str(int(digits[1])) if digits and len(digits[1]) < 20 else None
    # IRN and others write VOC's 2007_000032 as the number 2007000032.
    whole = id.replace("_", "") if re.fullmatch(r"\d{4}_\d{6}", id) else None
    names = (id, _named(id), whole, number)
    return next((key for key in names if key is not None and key in known), None)


def labels_of(
    classes: Sequence[int | str | None], names: ClassList, first: int | None = None
) -> list[int | None]:
    """Labels (0-based) of what regions are said to show; None where no class is meant.

    Texts are compared without case, spaces and signs. Numbers count from ``first``, 1 if None, but
    are COCO's official ones (1 to 90, with gaps) where the names are COCO's.
    """
    by_name = {_plain(name): label for label, name in enumerate(names.names)}
    if first is None and names.names == COCO.names:
        by_number = {number: label for label, number in enumerate(_OFFICIAL)}
    else:
        start = 1 if first is None else first
        by_number = {label + start: label for label in range(len(names))}
    found: list[int | None] = []
    for one in classes:
        label = by_name.get(_plain(one)) if isinstance(one, str) else None
        number = int(one) if isinstance(one, str) and one.isdecimal() and len(one) < 5 else one
        found.append(by_number.get(number) if label is None else label)  # type: ignore
    return found


def classes_of(entries: Sequence[Any]) -> list[int | str]:
    """What the regions of one photograph are said to show, where that is told."""
    found = (_class(_first(entry, CLASSES)) for entry in entries if isinstance(entry, Mapping))
    return [one for one in found if one is not None]


def parsed(value: Any, name: Path | str, *, size: Size | None = None) -> Regions:
    """As ``read_regions``, from a JSON value; ``name`` is what errors call it."""
    with one_error(name, "cannot be read as regions"):
        entries, told = _entries(value)
        size = size or told or next((s for s in map(_own_size, entries) if s), None)
        if size is None:
            if not entries:
                raise UserError("no regions, and no size of the photograph")
            raise UserError("no region tells the size of the photograph")
        if not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise UserError(f"a photograph of {size[1]}×{size[0]} pixels")
        found = (_first(entry, _REGION) for entry in entries if isinstance(entry, Mapping))
        coco_regions.check_pixels(found, size)
    runs, scores, classes, notes = [], [], [], []
    for number, entry in enumerate(entries):
        try:
            one = _runs(_first(entry, _REGION), size)
            if not one[1::2].any():
                raise UserError("covers no pixel of the photograph")
            scores.append(_score(_first(entry, _SCORE)))
            runs.append(one)
            classes.append(_class(_first(entry, CLASSES)))
        except DAMAGE as problem:
            notes.append(f"region {number} left out: {reason(problem)}")
    if entries and not runs:
        raise BadFileError(f"{name}: none of {len(entries)} regions can be read: {notes[0]}")
    return Regions(size, tuple(runs), np.asarray(scores, np.float32), tuple(classes), tuple(notes))


def put_regions(store: Store, id: str, regions: Regions) -> None:
    """Write the regions of one image: their size, scores and run lengths."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        size=np.asarray(regions.size, np.int32),
        scores=regions.scores.astype(np.float16),
        lengths=np.asarray([len(run) for run in regions.runs], np.int32),
        counts=np.concatenate([np.zeros(0, np.int32), *regions.runs]).astype(np.int32),
    )
    store.write(id, buffer.getvalue())


def get_regions(store: Store, id: str) -> Regions:
    """The regions of one image in a store of them. Raises BadFileError."""
    content, name = store.read(id)
    with one_error(name, "damaged or not ours"), ZipFile(io.BytesIO(content)) as archive:
        arrays = npz.read_members(archive, _FIELDS, MAX_TOTAL)
    return _own(arrays, name)


def _own(arrays: Mapping[str, np.ndarray], name: Path | str) -> Regions:
    with one_error(name, "no record of regions"):
        size = tuple(int(n) for n in arrays["size"])
        lengths, counts = arrays["lengths"].astype(np.int64), arrays["counts"].astype(np.int64)
        if len(size) != 2 or not 0 < size[0] * size[1] <= MAX_PIXELS or min(size) < 1:
            raise UserError(f"of a photograph of {size}")
        if (lengths < 0).any() or lengths.sum() != len(counts) or (counts < 0).any():
            raise UserError("run lengths that do not belong together")
        if arrays["scores"].shape != lengths.shape:
            raise UserError(f"{len(arrays['scores'])} scores for {len(lengths)} regions")
        runs = tuple(np.split(counts, np.cumsum(lengths)[:-1])) if len(lengths) else ()
        if any(run.sum() != math.prod(size) for run in runs):
            raise UserError("run lengths that do not cover the photograph")
        scores = arrays["scores"].astype(np.float32)
        if not ((scores >= 0) & (scores <= 1)).all():
            raise UserError("scores outside of 0 to 1")
        return Regions((size[0], size[1]), runs, scores, (None,) * len(runs))


def _entries(value: Any) -> tuple[list, Size | None]:
    """The regions of a JSON value for one photograph, and its size where it is told apart."""
    if by_image(value) is not None and len(by_image(value) or ()) > 1:
        raise UserError("regions of several photographs; give this file itself to wsss import")
    if isinstance(value, list):
        return value, None
    if not isinstance(value, Mapping):
        raise UserError(f"a {type(value).__name__}, wanted a list of regions")
    image = value.get("image")
    image = image if isinstance(image, Mapping) else value
    told = [image.get(name, image.get(f"img_{name}")) for name in ("height", "width")]
    size = (told[0], told[1]) if all(type(n) is int and n > 0 for n in told) else None
    for name in _LISTS:
        if isinstance(value.get(name), list):
            return value[name], size
    if isinstance(value.get("masks"), list):
        return _rows(value), size
    if any(name in value for name in _REGION):
        return [value], size
    raise UserError(f"fields {', '.join(map(str, list(value)[:8]))}, wanted a list of regions")


def _rows(columns: Mapping[str, Any]) -> list[dict]:
    """Regions out of parallel lists."""
    count = len(columns["masks"])
    texts = next((columns[name] for name in _COLUMNS if name in columns), [None] * count)
    scores = columns.get("scores", columns.get("iou_predictions", [1.0] * count))
    if not len(texts) == len(scores) == count:
        raise UserError(f"{count} masks, {len(scores)} scores and {len(texts)} labels")
    return [
        {"segmentation": region, "score": score, "label": text}
        for region, score, text in zip(columns["masks"], scores, texts, strict=True)
    ]


def _of_dataset(value: Mapping) -> dict[str, list]:
    """Entries by image of a whole COCO file whose annotations may have scores."""
    try:
        names = {c["id"]: c["name"] for c in value.get("categories") or ()}
        files = {i["id"]: Path(str(i["file_name"])).stem for i in value["images"]}
        grouped: dict[str, list] = {stem: [] for stem in files.values()}
        for entry in value.get("annotations") or ():
            named = {**entry, "class_name": names.get(entry.get("category_id"))}
            grouped[files[entry["image_id"]]].append(named)
    except DAMAGE as problem:
        raise UserError(f"not a COCO file: {reason(problem)}") from problem
    return grouped


def _of_arrays(content: Mapping, size: Size | None) -> Regions:
    masks = content.get("masks", content.get("segmentation"))
    if not isinstance(masks, np.ndarray) or masks.ndim not in (3, 4) or 0 in masks.shape[1:]:
        raise UserError(f"masks are {kind_of(masks)}, wanted (n, H, W)")
    if masks.ndim == 4:
        if masks.shape[1] != 1:
            raise UserError(f"masks of shape {masks.shape}, wanted one plane each")
        masks = masks[:, 0]
    if masks.dtype.kind not in "fbiu":
        raise UserError(f"masks of type {masks.dtype}, wanted numbers")
    own = (int(masks.shape[1]), int(masks.shape[2]))
    if size is not None and own != size:
        raise UserError(f"masks of {own}, wanted the photograph's {size}")
    if math.prod(own) > MAX_PIXELS:
        raise UserError(f"masks of {own[1]}×{own[0]} pixels")
    threshold = 0.5 if masks.dtype.kind == "f" and masks.min(initial=0) >= 0 else 0
    inside = masks > threshold
    columns: dict[str, Any] = {"masks": [lengths_of(mask.T.ravel()) for mask in inside]}
    for name in (*_COLUMNS, "scores", "iou_predictions"):
        if isinstance(content.get(name), (np.ndarray, list)):
            values = content[name]
            columns[name] = values.ravel().tolist() if isinstance(values, np.ndarray) else values
    return parsed(columns, "the arrays", size=own)


def _own_size(entry: Any) -> Size | None:
    region = _first(entry, _REGION) if isinstance(entry, Mapping) else None
    told = region.get("size") if isinstance(region, Mapping) else None
    if isinstance(told, (list, tuple)) and len(told) == 2 and all(type(n) is int for n in told):
        return told[0], told[1]
    return None


def _first(entry: Any, names: Sequence[str]) -> Any:
    if not isinstance(entry, Mapping):
        raise UserError(f"a {type(entry).__name__}, wanted a region")
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _score(value: Any) -> float:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return 1.0
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"a score that is a {type(value).__name__}")
    # SAM's predicted overlap goes a little beyond 1.
    if not -0.2 <= value <= 1.2:
        raise UserError(f"a score of {value:.4g}, wanted 0 to 1")
    return min(max(float(value), 0.0), 1.0)


def _class(value: Any) -> int | str | None:
    if isinstance(value, Mapping):
        value = value.get("name", value.get("id"))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _runs(region: Any, size: Size) -> np.ndarray:
    """Run lengths of a region in any form. Raises the errors of ``bounded.DAMAGE``."""
    if isinstance(region, np.ndarray):
        return region
    if region is None or (isinstance(region, list) and not any(map(np.size, region))):
        raise UserError("no region, as segmentation has none; boxes alone are not read")
    if isinstance(region, Mapping):
        return coco_regions.counts_of(region, size)
    return lengths_of(coco_regions.draw(region, size).T.ravel())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
