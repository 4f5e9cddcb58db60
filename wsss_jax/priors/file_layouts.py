"""Which layouts one file may have, told from its content; or why it has none.

Not here: which of them a folder has (``layouts``), and reading the maps (``external``).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import colours, image_size
from wsss_jax.data.photographs import decode_image, header
from wsss_jax.errors import BadFileError, UserError, first_few
from wsss_jax.formats import npz
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.formats.pickled_arrays import read_content
from wsss_jax.priors import planes, regions
from wsss_jax.priors import prior_readers as readers
from wsss_jax.priors.class_pictures import class_numbers
from wsss_jax.priors.prior_readers import ARRAYS, PICTURES, READERS, Found
from wsss_jax.types import IGNORE, Size

REGIONS = "regions"
"""The layout of regions without classes, which become a store of regions, not of score maps."""

MANY = 40
"""Values of a picture that are more than classes on one photograph."""

_RECORD = frozenset({"scores", "classes", "size", "peak"})
_OWN_FIELDS = frozenset(how.fields[0] for how in READERS.values() if how.fields)


def layout_of(path: Path, names: ClassList, guessed: bool = False) -> str:
    """The one layout that a file may have, without the labels of its image.

    guessed: nobody told how many classes there are. Raises BadFileError that lists the choices.
    """
    if _is_record(path):
        return "store"
    if path.suffix.lower() == ".json":
        found = region_readings(path, None)
    elif path.suffix.lower() in PICTURES:
        found = picture_readings(path, len(names))
        if guessed and len(found) > 1 and len(found["mask_png"].keys) > MANY:
            return "saliency_png"
    else:
        told = [*(name for name, how in READERS.items() if how.told), REGIONS]
        found = array_readings(path, told, np.ones(len(names), bool))
    left = [name for name in found if name in READERS]
    if "psa_crf" in left and readers.sums_to_one(found["psa_crf"]):
        return "psa_crf"
    if len(left) == 1 and not (guessed and left == ["array"]):
        return left[0]
    if not left:
        raise BadFileError(f"{path}: regions without classes; read them by read_regions")
    if left == ["array"]:
        raise BadFileError(f"{path}: planes, with background or without? give the classes")
    choices = " or ".join(f'layout="{name}"' for name in left)
    raise BadFileError(
        f"{path}: may be {' or '.join(left)}; one file does not tell, give {choices}"
    )


def count_classes(path: Path) -> int:
    """How many classes a file may have where nobody tells: planes less background, else the most.

    Raises BadFileError.
    """
    if path.suffix.lower() in ARRAYS and not _is_record(path):
        content = read_content(path)
        if isinstance(content, np.ndarray):
            return min(content.shape[-3], IGNORE - 1) or 1 if content.ndim > 2 else 1
        shapes = [
            value.shape
            for name, value in content.items()
            if name in ("msc_seg", "msc_segs", "segs") and isinstance(value, np.ndarray)
        ]
        counts = [shape[-3] - 1 for shape in shapes if len(shape) in (3, 4)]
        return min(max(counts, default=IGNORE - 1), IGNORE - 1) or 1
    return IGNORE - 1


def size_of(path: Path, layout: str) -> Size:
    """The (H, W) that a picture, record or file of regions tells; of others it is not needed."""
    if path.suffix.lower() in PICTURES:
        return image_size(path)
    if layout in ("store", "saliency_store"):
        height, width = npz.read(path, {"size": "i"})["size"].ravel()[:2]
        return int(height), int(width)
    return regions.read_regions(path).size if layout == "instances" else (1, 1)


def _is_record(path: Path) -> bool:
    return path.suffix == ".npz" and set(npz.headers(path)) == _RECORD


def region_readings(path: Path, size: Size | None) -> Mapping[str, Found]:
    """The layout of a file of regions: with classes, or without."""
    found = regions.read_regions(path, size=size)
    numbers = sorted({one for one in found.classes if isinstance(one, int)})
    if not len(found):  # nothing was found in this photograph, by whatever tool
        return {"instances": Found((), ()), REGIONS: Found((), ())}
    if any(one is not None for one in found.classes):
        return {"instances": Found(tuple(numbers), ())}
    return {REGIONS: Found((), ())}


def array_readings(
    path: Path, names: Sequence[str], labels: Bool[np.ndarray, " c"]
) -> Mapping[str, Found]:
    """Those of the layouts that a file of arrays may have; all but one are sifted by likelihood.

    Raises BadFileError with the reasons where there is none.
    """
    content = read_content(path)
    if isinstance(content, Mapping) and not content and len(names) > 1:
        raise BadFileError(f"{path}: an empty dictionary, which tells no layout")
    if _has_regions(content) and {"instances", REGIONS} & set(names):
        return region_readings(path, None)
    found: dict[str, Found] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            if name in READERS and ARRAYS[0] in READERS[name].endings:
                found[name] = _reading(name, content, labels)
        except ValueError as problem:
            reasons[name] = str(problem)
    if len(names) > 1:
        found = {name: f for name, f in found.items() if _is_likely(name, f, content)}
        if len(found) > 1:  # one of the layouts that have names for their fields
            found.pop("array", None)
    if not found:
        raise BadFileError(f"{path}: {_why(content, reasons)}")
    return found


def _has_regions(content: Any) -> bool:
    return isinstance(content, Mapping) and "masks" in content and "keys" not in content


def _reading(name: str, content: Any, labels: Bool[np.ndarray, " c"]) -> Found:
    how = READERS[name]
    if name == "array":
        (numbers, _), field = planes.of_array(content, labels)
        return Found(numbers, (), field)
    if isinstance(content, np.ndarray):
        raise UserError(f"an array of shape {content.shape}, wanted a dictionary of maps")
    if name in ("msc_seg", "weclip"):
        field, values = planes.stacked_logits(content, how.fields, None)
        if len(values) != len(labels) + 1:
            raise UserError(f"{field} holds {len(values)} planes, wanted {len(labels) + 1}")
        return Found(tuple((np.flatnonzero(labels) + 1).tolist()), (), field)
    if name == "instances":
        raise UserError("no regions")
    own = readers.exported_maps(content) if "high_res" in how.fields else None
    return own or readers.maps_of(content, how)


def _why(content: Any, reasons: Mapping[str, str]) -> str:
    """Why a file fits no layout: the reasons of those whose fields it has."""
    if isinstance(content, np.ndarray):
        return reasons.get("array", f"an array of shape {content.shape}, wanted maps by class")
    own = {n for n in reasons if n in READERS and set(READERS[n].fields[:1]) & set(content)}
    some = {n for n in reasons if n in READERS and set(READERS[n].fields) & set(content)}
    numbers = {n for n in reasons if n in ("psa_cam", "psa_crf")}
    relevant = own or some or (numbers if all(isinstance(key, int) for key in content) else set())
    fields = first_few(content, 12)
    if not relevant:
        known = ", ".join(dict.fromkeys(f for how in READERS.values() for f in how.fields))
        return f"fields {fields}, which no known layout has (keys with {known}, or class numbers)"
    told: dict[str, list[str]] = {}
    for name in READERS:
        if name in relevant:
            told.setdefault(reasons[name], []).append(name)
    return f"fields {fields}; " + "; ".join(f"as {' or '.join(n)}: {r}" for r, n in told.items())


def _is_likely(name: str, reading: Found, content: Any) -> bool:
    """Whether the tool of this layout would write just such a file."""
    how = READERS[name]
    if isinstance(content, np.ndarray) or name in ("array", "msc_seg", "weclip"):
        return True
    if not how.fields:
        return name != "psa_crf" or 0 in reading.keys
    keys = tuple(content["keys"])
    if name == "ccam" and not (len(reading.keys) == 1 and keys == (0, 1)):
        return False
    if any(field in content for field in _OWN_FIELDS):
        return how.fields[0] in content
    # Only the grid of stride 4 is there, which IRN and Puzzle-CAM call alike: the leading number
    # of the background, which has no map, tells them apart.
    return (reading.keys == keys) == (how.first == 0)


def picture_readings(path: Path, classes: int) -> Mapping[str, Found]:
    """The layouts that a picture may have: saliency, a mask, or both. Raises BadFileError.

    ``maps`` of saliency are its levels, where they are few enough to be told.
    """
    content = read_bytes(path)
    about = header(content, path)
    saliency = {"saliency_png": Found((0,), ())}
    if about.format != "PNG":
        return _of_jpeg(content, path, classes, saliency)
    if about.mode in ("RGB", "RGBA"):
        _check_grey(content, path)
    try:
        values = readers.values_of(class_numbers(content, path, about.mode))
    except BadFileError:  # of 16 bits with levels, or of grey colours that are a little apart
        return saliency
    inner = tuple(value for value in values if value not in (0, IGNORE))
    mask = {"mask_png": Found(inner, ())}
    if inner and inner[-1] > classes:
        if about.mode != "P":
            _check_levels(path, inner, classes)
            return {"saliency_png": Found((0,), tuple(value for value in values if value))}
        with suppress(BadFileError):  # of a palette of colours
            _check_grey(content, path)
            return saliency
        return mask
    return mask if about.mode == "P" else mask | saliency


def _check_levels(path: Path, values: tuple[int, ...], classes: int) -> None:
    """BadFileError where values are rather numbers of other classes than levels of saliency."""
    if all(value <= MANY or value == IGNORE - 1 for value in values):
        raise BadFileError(
            f"{path}: values {first_few(values, 12)} look like class numbers, but there are "
            f"{classes} classes; if they are levels of saliency, give --layout saliency_png"
        )


def _check_grey(content: bytes, path: Path) -> int:
    """The highest level of a picture whose colours are grey. Raises BadFileError for others."""
    pixels = decode_image(content, path, whole=True).astype(np.int16)
    if np.abs(pixels - pixels[..., 1:2]).max(initial=0) > 8:
        raise BadFileError(f"{path}: {colours(pixels.astype(np.uint8))}")
    return int(pixels.max(initial=0))


def _of_jpeg(
    content: bytes, path: Path, classes: int, saliency: Mapping[str, Found]
) -> Mapping[str, Found]:
    highest = _check_grey(content, path)
    if 0 < highest <= min(classes, MANY):
        raise BadFileError(
            f"{path}: no level above {highest} of 255: class numbers? JPEG changes them; save "
            "masks as PNG"
        )
    return saliency
