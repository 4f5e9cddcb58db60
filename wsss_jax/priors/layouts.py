"""Which layout the files of a folder have, and whether their numbering fits the data set.

Some files of the folder are looked at. What is inside leaves few layouts; where it leaves several
(PSA numbers the same dictionary from 0 for maps and from 1 for results of its CRF), the image-level
labels decide, and where they do not, the folder is refused with the layouts that remain. A file
that fits none is refused with the reason of the layouts whose fields it has. Tools number the
classes of PASCAL VOC and COCO as those do, also where a data set has only some of their classes:
the labels decide on that too. Not here: reading the maps (``external``), and finding the files
(``places``).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from wsss_jax.config import lookup
from wsss_jax.data import stores
from wsss_jax.data.classes import COCO, SALIENCY, VOC, ClassList, difference
from wsss_jax.data.stores import Store
from wsss_jax.data.texts import read_json
from wsss_jax.datasets import views
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError, first_few
from wsss_jax.priors import external, places, regions
from wsss_jax.priors import file_layouts as told
from wsss_jax.priors import prior_readers as readers
from wsss_jax.priors.external import Place
from wsss_jax.priors.file_layouts import REGIONS
from wsss_jax.priors.prior_readers import ARRAYS, PICTURES, READERS, Found, Layout
from wsss_jax.types import IGNORE, Kind, Size

AUTO = "auto"
"""The layout is told from the files."""

LOOK = 32
"""Files that are looked at, evenly spread over the images."""

NUMBERINGS = MappingProxyType({"PASCAL VOC": VOC, "COCO": COCO})
"""Class lists whose numbers the tools of the field write, whatever a data set holds of them."""

_STORES = ("store", "saliency_store")
_TOLD = (*(name for name, how in READERS.items() if how.told), REGIONS)
_ENDINGS = (*ARRAYS, *PICTURES, ".json")


class Plan(NamedTuple):
    """How a folder is read.

    layout: a name of READERS, or REGIONS. folder: where the files lie; places: where in it. first:
    number of the first class. classes: of the store. numbering: the classes in the order of their
    numbers in the files. field: which one is read, where files have several. entries: regions by
    image id, where one file holds those of all images. store: of ours, where the folder is one.
    exported: the files are an export of ours, whose records come back as they were.
    """

    layout: str
    folder: Path
    first: int
    kind: Kind
    classes: tuple[str, ...]
    numbering: ClassList
    places: tuple[Place, ...] = ()
    field: str | None = None
    entries: Mapping[str, Any] | None = None
    store: Store | None = None
    exported: bool = False


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
    field: str | None = None,
    suffix: str | None = None,
) -> Plan:
    """Decide how the files of ``folder`` are read as maps of the images ``ids``.

    folder: or one JSON file with the regions of all images. layout: a name of READERS, REGIONS, or
    AUTO. first: number of the first class where it is not the layout's own. field: which field is
    read, None for the finest that the files have. suffix: what follows the id in the names, where
    images have several files. Raises BadFileError for a folder that has no file of the images,
    mixes layouts, leaves several possible, or numbers its classes otherwise; ValueError for an
    unknown layout or field.
    """
    if layout not in (AUTO, REGIONS):
        how = lookup(READERS, layout, "layout (or auto)")
        if field is not None and field not in how.fields:
            raise UserError(f"field {field}; layout {layout} has {', '.join(how.fields) or 'none'}")
    if folder.is_file():
        return _of_file(folder, source, ids, layout, first)
    if not folder.is_dir():
        raise BadFileError(f"{folder}: no such folder")
    if layout in _STORES or (layout == AUTO and (folder / "index.json").is_file()):
        return _of_store(folder, source)
    names = _TOLD if layout == AUTO else (layout,)
    found = _found(folder, ids, _ENDINGS if layout == AUTO else _endings(layout))
    where = places.one_each(folder, found, suffix)
    found = {place: found[place] for place in where}
    numbering, looks = _numbered_looks(folder, found, source, names)
    name = _decided(folder, looks) if layout == AUTO else layout
    if name == REGIONS:
        return Plan(name, folder, 0, "probability", source.classes.names, numbering, where)
    how = READERS[name]
    start = how.first if first is None else first
    readings = [(look, look.readings[name]) for look in looks if name in look.readings]
    if first is None and not how.agnostic:
        _check_numbering(folder, readings, start, name)
    if name == "saliency_png" and layout == AUTO:
        _check_scaled(folder, readings)
    classes = SALIENCY.names if how.agnostic else source.classes.names
    field = _field(how, readings) if field is None else field
    own = bool(readings) and field is None and all(found.kind for _, found in readings)
    kind = _kind(how, readings)
    return Plan(name, folder, start, kind, classes, numbering, where, field, exported=own)


def _of_store(folder: Path, source: Source) -> Plan:
    store = stores.open_store(folder)
    if store.classes not in (source.classes.names, SALIENCY.names):
        raise BadFileError(f"{folder} holds {difference(store.classes, source.classes.names)}")
    own = source.classes
    layout = "store" if store.classes == source.classes.names else "saliency_store"
    read_as = {"masks": "mask_png", "regions": REGIONS, "scores": layout}[store.holds]
    first = 1 if store.holds == "masks" else 0
    kind = store.kind if store.holds == "scores" else "probability"
    return Plan(read_as, folder / store.holds, first, kind, store.classes, own, store=store)


def _of_file(
    path: Path, source: Source, ids: Sequence[str], layout: str, first: int | None
) -> Plan:
    """One file with the regions of all images, as detectors write their results."""
    if path.suffix.lower() != ".json":
        raise BadFileError(f"{path}: a file; wanted the folder with a file per image, or a JSON of "
                           "regions")  # fmt: skip
    grouped = regions.by_image(read_json(path, regions.MAX_JSON))
    if grouped is None:
        raise BadFileError(f"{path}: regions of no image; wanted image_id in them")
    keys = {id: regions.key_of(id, grouped) for id in ids}
    entries = {id: grouped[key] for id, key in keys.items() if key is not None}
    if not entries:
        raise BadFileError(
            f"{path}: no regions of any of the {len(ids)} images; it has images "
            f"{first_few(grouped)}, wanted such as {ids[0] if ids else 'none'}"
        )
    some = [entry for found in list(entries.values())[:LOOK] for entry in found]
    classed = any(name in entry for entry in some for name in regions.CLASSES)
    name = ("instances" if classed else REGIONS) if layout == AUTO else layout
    start = READERS["instances"].first if first is None else first
    classes = source.classes
    if name != REGIONS:
        _check_regions(path, source, entries, first)
    return Plan(name, path, start, "probability", classes.names, classes, entries=entries)


def _check_regions(
    path: Path, source: Source, entries: Mapping[str, Sequence], first: int | None
) -> None:
    """BadFileError where no region shows a class of its photograph, and why that may be."""
    told = [(id, regions.classes_of(found)) for id, found in list(entries.items())[:LOOK]]
    shown = {id: source.labels(id) for id, _ in told}
    if not any(found for _, found in told) or not any(labels.any() for labels in shown.values()):
        return

    def hits(start: int | None) -> int:
        labels = ((id, regions.labels_of(own, source.classes, start)) for id, own in told)
        return sum(bool(shown[id][n]) for id, own in labels for n in own if n is not None)

    if hits(first):
        return
    some = first_few(dict.fromkeys(one for _, found in told for one in found), 12)
    better = next((start for start in (0, 1) if hits(start)), None)
    hint = (
        f"wanted names or numbers of {first_few(source.classes.names, 12)}"
        if better is None
        else f"off by one? --first-class {better} would fit"
    )
    raise BadFileError(
        f"{path}: no region shows a class of its photograph: the regions have {some}; {hint}"
    )


def _endings(layout: str) -> tuple[str, ...]:
    return READERS[layout].endings if layout in READERS else (".json", *ARRAYS)


def _found(folder: Path, ids: Sequence[str], endings: Sequence[str]) -> places.Found:
    found = places.find(folder, ids, endings)
    if not found:
        example = f"{ids[0]}{endings[0]}" if ids else "no image"
        example += f", or {', '.join(endings[1:])}" if ids and endings[1:] else ""
        raise BadFileError(
            f"{folder}: no file of any of the {len(ids)} images; it holds "
            f"{places.listing(folder)}, wanted names such as {example}"
        )
    return found


def _numbered_looks(
    folder: Path, found: places.Found, source: Source, names: Sequence[str]
) -> tuple[ClassList, list[_Look]]:
    """The class list by which most files are numbered, the data set's own where that fits as many.

    Raises BadFileError when no file can be read and their layout is asked for.
    """
    own = source.classes
    wholes = [
        whole for whole in NUMBERINGS.values() if whole != own and set(own.names) < set(whole.names)
    ]
    best, problems = None, []
    for seen in (source, *(views.among(source, whole) for whole in wholes)):
        try:
            looks = _looks(folder, found, seen, names)
        except BadFileError as problem:
            problems.append(problem)
            continue
        fits = sum(_may_fit(look) for look in looks)
        if fits > best[0] if best else (fits or seen is source):
            best = fits, seen.classes, looks
    if best is None:
        raise problems[0]
    return best[1:]


def _may_fit(look: _Look) -> bool:
    """Whether a layout takes a file to hold maps of the image's classes and of no others."""
    present = set(np.flatnonzero(look.labels).tolist())
    readings = ((READERS.get(name), found) for name, found in look.readings.items())
    return any(
        set(classes) <= present
        for how, found in readings
        if how is not None and not how.agnostic
        if (classes := readers.numbered(found, how, how.first))
    )


def _looks(folder: Path, found: places.Found, source: Source, names: Sequence[str]) -> list[_Look]:
    """What the files may be; those that cannot be read are left to the import to report.

    Raises BadFileError when none can be read and their layout is asked for.
    """
    where = {id: place for place, ids in found.items() for id in ids}
    looks, problems = [], []
    for id in list(where)[:: -(-len(where) // LOOK)]:
        try:
            labels = source.labels(id)
            path = _example(folder, where[id], id, len(labels))
            found_in = _readings(path, where[id], names, labels, source.size(id))
            looks.append(_Look(id, path, found_in, labels))
        except ValueError as problem:
            problems.append(str(problem))
    if not looks and len(names) > 1:
        raise BadFileError(
            f"none of the {len(problems)} files looked at can be read, so their layout cannot be "
            f"told; first {problems[0]}"
        )
    return looks


def _example(folder: Path, place: Place, id: str, count: int) -> Path:
    return external.file_of(folder, id, READERS["oaa"], (place,), count)


def _readings(
    path: Path, place: Place, names: Sequence[str], labels: Bool[np.ndarray, " c"], size: Size
) -> Mapping[str, Found]:
    """Those of the layouts that one file may have. Raises BadFileError when it is none."""
    if path.suffix.lower() in PICTURES:
        if "#" in place.suffix:
            number = external.numbers_of(path, len(labels))
            return {"oaa": Found(number, ())}
        return told.picture_readings(path, len(labels))
    if path.suffix.lower() == ".json":
        return told.region_readings(path, size)
    return told.array_readings(path, names, labels)


def _decided(folder: Path, looks: Sequence[_Look]) -> str:
    """The one layout that all files may have and the labels agree with."""
    known = (*READERS, REGIONS)
    left = [name for name in known if all(name in look.readings for look in looks)]
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
    if name == REGIONS:
        return 0, 0
    how = READERS[name]
    if name == "ccam":  # nothing but this would number every image's classes alike
        return len(looks), len(looks)
    if how.agnostic:
        return 0, 0
    pairs = [
        (
            set(readers.numbered(look.readings[name], how, how.first)),
            set(np.flatnonzero(look.labels).tolist()),
        )
        for look in looks
    ]
    if how.hard:  # values from 2 on; a picture of 0 and 1 may be saliency as well as one class
        count = sum(bool(classes - {0}) for classes, _ in pairs)
        return count, count
    equal = sum(bool(classes) and classes == present for classes, present in pairs)
    return equal, sum(bool(classes) and classes <= present for classes, present in pairs)


def _check_numbering(
    folder: Path, readings: Sequence[tuple[_Look, Found]], first: int, layout: str
) -> None:
    """Raises BadFileError when another number for the first class fits more files."""
    shifts = Counter(
        external.shift_of(found, READERS[layout], look.labels, first)
        for look, found in readings
        if readers.numbered(found, READERS[layout], first)
    )
    best = max((1, -1), key=lambda shift: shifts[shift])
    count = sum(shifts.values())
    # Of files with maps of all classes a few fit another number by chance.
    if shifts[best] > max(shifts[0], count / 4):
        raise BadFileError(
            f"{folder}: off by one? In layout {layout} the first class is number {first}, but in "
            f"{shifts[best]} of {count} files looked at the image's labels fit only if it is "
            f"{first - best}: add --first-class {first - best} (or {first}, to import it as it is)"
        )


def _check_scaled(folder: Path, readings: Sequence[tuple[_Look, Found]]) -> None:
    """Raises BadFileError for masks whose numbers were spread over 0 to 255 to be looked at.

    All pictures then have as many levels as their image has labels, and 255 or not.
    """
    levels = [(set(found.maps), int(look.labels.sum())) for look, found in readings]
    inner = set().union(*(seen for seen, _ in levels)) - {IGNORE}
    if len(inner) < 2 or len(inner) > max((len(look.labels) for look, _ in readings), default=0):
        return
    if all(count in (len(seen), len(seen - {IGNORE})) for seen, count in levels):
        raise BadFileError(
            f"{folder}: each picture has as many levels of grey as its image has classes "
            f"({first_few(sorted(inner), 6)} in all): masks that were brightened to be looked at? "
            "Save them with the classes' own numbers 1, 2, 3 …; if they are levels of saliency, "
            "give --layout saliency_png"
        )


def _kind(how: Layout, readings: Sequence[tuple[_Look, Found]]) -> Kind:
    """What values mean; a dictionary with background that does not sum to 1 is no CRF's result."""
    own: set[Kind | None] = {found.kind for _, found in readings}
    told = own.pop() if len(own) == 1 else None
    if told is not None:
        return told
    if how is not READERS["psa_crf"]:
        return how.kind
    sums = [readers.sums_to_one(found) for _, found in readings]
    known = [value for value in sums if value is not None]
    return "activation" if known and 2 * sum(known) < len(known) else how.kind


def _field(how: Layout, readings: Sequence[tuple[_Look, Found]]) -> str | None:
    """The field that most files have; the others are refused one by one, not read from another."""
    if len(how.fields) < 2 or not readings or all(found.kind for _, found in readings):
        return None
    counts = Counter(found.field for _, found in readings)
    return max(how.fields, key=lambda name: counts[name])
