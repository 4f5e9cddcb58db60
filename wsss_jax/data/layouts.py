"""Which layout the files of a folder have, and whether their numbering fits the data set.

Some files of the folder are looked at. What is inside leaves few layouts; where it leaves several
(PSA numbers the same dictionary from 0 for maps and from 1 for results of its CRF), the image-level
labels decide, and where they do not, the folder is refused with the layouts that remain. Not here:
reading the maps (``external``).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from wsss_jax.config import lookup
from wsss_jax.data import external, stores
from wsss_jax.data.datasets import Source
from wsss_jax.data.external import READERS, SALIENCY, Found, Layout
from wsss_jax.data.files import decode_mask
from wsss_jax.data.ids import disk_name
from wsss_jax.data.photographs import header
from wsss_jax.errors import BadFileError
from wsss_jax.formats.bounded import read_bytes
from wsss_jax.formats.pickled_arrays import read_dictionary
from wsss_jax.types import IGNORE, Kind

AUTO = "auto"
"""The layout is told from the files."""

LOOK = 32
"""Files that are looked at, evenly spread over the images."""

_STORES = ("store", "saliency_store")
_TOLD = tuple(name for name, how in READERS.items() if how.told)
_OWN_FIELDS = frozenset(how.fields[0] for how in READERS.values() if how.fields)
_PNG = (".png",)


class Plan(NamedTuple):
    """How a folder is read: layout, where the files lie, number of the first class, kind, names."""

    layout: str
    folder: Path
    first: int
    kind: Kind
    classes: tuple[str, ...]


class _Look(NamedTuple):
    """One file: the layouts it may have, and what each takes it to hold."""

    id: str
    path: Path
    readings: Mapping[str, Found]
    labels: Bool[np.ndarray, " c"]


def survey(
    folder: Path,
    source: Source,
    ids: Sequence[str],
    *,
    layout: str = AUTO,
    first: int | None = None,
) -> Plan:
    """Decide how the files of ``folder`` are read as maps of the images ``ids``.

    layout: a name of READERS, or AUTO. first: number of the first class where it is not the
    layout's own. Raises BadFileError for a folder that has no file of the images, mixes layouts,
    leaves several possible, or numbers its classes otherwise; ValueError for an unknown layout.
    """
    if layout != AUTO:
        lookup(READERS, layout, "layout (or auto)")
    if not folder.is_dir():
        raise BadFileError(f"{folder}: no such folder")
    if layout in _STORES or (layout == AUTO and (folder / "index.json").is_file()):
        return _of_store(folder, source)
    names = _TOLD if layout == AUTO else (layout,)
    looks = _looks(_files(folder, ids, names), source, names)
    name = _decided(folder, looks) if layout == AUTO else layout
    how = READERS[name]
    start = how.first if first is None else first
    readings = [(look, look.readings[name]) for look in looks if name in look.readings]
    if first is None and not how.agnostic:
        _check_numbering(folder, readings, start, name)
    classes = SALIENCY.names if how.agnostic else source.classes.names
    return Plan(name, folder, start, _kind(how, readings), classes)


def _of_store(folder: Path, source: Source) -> Plan:
    store = stores.open_store(folder)
    if store.classes not in (source.classes.names, SALIENCY.names):
        raise BadFileError(
            f"{folder} holds classes {', '.join(store.classes[:3])} …, the data set has "
            f"{', '.join(source.classes.names[:3])} …"
        )
    if store.holds == "masks":
        return Plan("mask_png", folder / "masks", 1, "probability", store.classes)
    layout = "store" if store.classes == source.classes.names else "saliency_store"
    return Plan(layout, folder / "scores", 0, store.kind, store.classes)


def _files(folder: Path, ids: Sequence[str], layouts: Sequence[str]) -> dict[str, Path]:
    """Files of up to LOOK of the images. An image with two files is refused."""
    suffixes = tuple(dict.fromkeys(s for name in layouts for s in READERS[name].suffixes))
    there = {path.name for path in folder.iterdir()}
    names = {id: dict.fromkeys((id, disk_name(id))) for id in ids}
    found = {id: [n + s for n in names[id] for s in suffixes if n + s in there] for id in ids}
    found = {id: names for id, names in found.items() if names}
    if not found:
        some = ", ".join(sorted(there)[:3]) or "nothing"
        example = ", ".join(f"{ids[0]}{s}" for s in suffixes) if ids else "no image"
        raise BadFileError(
            f"{folder}: no file of any of the {len(ids)} images; it holds {some} …, wanted names "
            f"such as {example}"
        )
    chosen = list(found)[:: -(-len(found) // LOOK)]
    for id in chosen:
        if len(found[id]) > 1:
            raise BadFileError(f"{folder}: both {' and '.join(found[id])}; say which with --layout")
    return {id: folder / found[id][0] for id in chosen}


def _looks(paths: Mapping[str, Path], source: Source, names: Sequence[str]) -> list[_Look]:
    """What the files may be; those that cannot be read are left to the import to report.

    Raises BadFileError when none can be read and their layout is asked for.
    """
    looks, problems = [], []
    for id, path in paths.items():
        try:
            labels = source.labels(id)
            readings = _readings(path, names, len(labels))
            looks.append(_Look(id, path, readings, labels))
        except ValueError as problem:
            problems.append(str(problem))
    if not looks and len(names) > 1:
        raise BadFileError(
            f"none of the {len(problems)} files looked at can be read, so their layout cannot be "
            f"told; first {problems[0]}"
        )
    return looks


def _readings(path: Path, names: Sequence[str], classes: int) -> Mapping[str, Found]:
    """Those of the layouts that one file may have. Raises BadFileError when it is none."""
    if path.suffix == ".png":
        return _picture_readings(path, classes)
    content = read_dictionary(path)
    found, reasons = {}, []
    for name in names:
        if READERS[name].suffixes == _PNG:
            continue
        try:
            found[name] = external.maps_of(content, READERS[name])
        except ValueError as problem:
            reasons.append(f"{name}: {problem}")
    if len(names) > 1:
        found = {name: f for name, f in found.items() if _is_likely(name, f, content)}
    if not found:
        fields = ", ".join(str(key)[:40] for key in list(content)[:12])
        raise BadFileError(f"{path}: fields {fields}, which no known layout has")
    return found


def _is_likely(name: str, reading: Found, content: Mapping) -> bool:
    """Whether the tool of this layout would write just such a file."""
    how = READERS[name]
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


def _picture_readings(path: Path, classes: int) -> Mapping[str, Found]:
    content = read_bytes(path)
    mode = header(content, path).mode
    saliency = {"saliency_png": Found((0,), ())}
    if mode == "1":
        return saliency
    values = external.values_of(decode_mask(content, str(path)))
    inner = tuple(value for value in values if value not in (0, IGNORE))
    mask = {"mask_png": Found(inner, ())}
    if mode == "P":
        return mask
    return saliency if inner and inner[-1] > classes else mask | saliency


def _decided(folder: Path, looks: Sequence[_Look]) -> str:
    """The one layout that all files may have and the labels agree with."""
    left = [name for name in READERS if all(name in look.readings for look in looks)]
    if not left:
        examples = {tuple(look.readings): look.path.name for look in reversed(looks)}
        listed = "; ".join(f"{file} is {' or '.join(names)}" for names, file in examples.items())
        raise BadFileError(f"{folder} mixes layouts: {listed}; import them apart with --layout")
    if len(left) > 1:
        scores = {name: _evidence(name, looks) for name in left}
        best = max(scores.values())
        chosen = [name for name in left if scores[name] == best]
        if len(chosen) > 1 or best == (0, 0):
            raise BadFileError(
                f"{folder}: the {len(looks)} files looked at may be {' or '.join(left)}, and the "
                f"image labels do not tell which; give --layout {' or --layout '.join(left)}"
            )
        left = chosen
    return left[0]


def _evidence(name: str, looks: Sequence[_Look]) -> tuple[int, int]:
    """Files whose classes under this layout are just the image's labels, and are among them."""
    how = READERS[name]
    if name == "ccam":  # nothing but this would number every image's classes alike
        return len(looks), len(looks)
    if how.agnostic:
        return 0, 0
    pairs = [
        (
            set(external.numbered(look.readings[name], how, how.first)),
            set(np.flatnonzero(look.labels).tolist()),
        )
        for look in looks
    ]
    if how.hard:  # no value above the number of classes is evidence, whatever they are
        count = sum(bool(classes) for classes, _ in pairs)
        return count, count
    equal = sum(bool(classes) and classes == present for classes, present in pairs)
    return equal, sum(bool(classes) and classes <= present for classes, present in pairs)


def _check_numbering(
    folder: Path, readings: Sequence[tuple[_Look, Found]], first: int, layout: str
) -> None:
    """Raises BadFileError when another number for the first class fits more files."""
    shifts = Counter(
        external.shift_of(classes, look.labels)
        for look, found in readings
        if (classes := external.numbered(found, READERS[layout], first))
    )
    best = max((1, -1), key=lambda shift: shifts[shift])
    if shifts[best] > shifts[0]:
        count = sum(shifts.values())
        raise BadFileError(
            f"{folder}: off by one? In layout {layout} the first class is number {first}, but in "
            f"{shifts[best]} of {count} files looked at the image's labels fit only if it is "
            f"{first - best}: add --first-class {first - best} (or {first}, to import it as it is)"
        )


def _kind(how: Layout, readings: Sequence[tuple[_Look, Found]]) -> Kind:
    """What values mean; a dictionary with background that does not sum to 1 is no CRF's result."""
    if how.kind != "probability" or how.agnostic or how.hard:
        return how.kind
    sums = [external.sums_to_one(found) for _, found in readings]
    known = [value for value in sums if value is not None]
    return "activation" if known and 2 * sum(known) < len(known) else how.kind
