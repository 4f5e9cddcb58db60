"""Folders that lie between stages: score maps or masks by image id, and an index that says whose.

A store is created with the settings that make it; opening it again with other settings is refused
with the settings that differ, so a resumed run never mixes two experiments. Every record is
written whole or not at all, and ``missing`` is all there is to resuming. Every record is checked
when it is read: by the checksums of its format (zip members, PNG chunks), and for what score maps
and masks can hold at all. No pickle, ever.

Each record is a file, which people and other programs can open. A store of more than MANY of them
gathers them in a few large files (``shards``) while it is written; ``Store`` reads and writes both.
"""

import io
import os
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from wsss_jax.config import SOURCES, Record, as_json, differences
from wsss_jax.data import json_records, records, shards
from wsss_jax.data.classes import SALIENCY, ClassList, difference, palette
from wsss_jax.data.files import decode_mask, mask_png, path_of, write_atomic
from wsss_jax.data.ids import ids_in
from wsss_jax.errors import BadFileError, MissingFileError, UserError, first_few
from wsss_jax.formats import npz
from wsss_jax.formats.bounded import MAX_TOTAL, one_error, read_bytes
from wsss_jax.types import IGNORE, Kind, ScoreMaps

FORMAT = 1
Holds = Literal["scores", "masks", "regions"]
MANY = 20_000
"""Records above which a store gathers them in shards."""

_SUFFIX = {"scores": ".npz", "masks": ".png", "regions": ".npz"}
_PARTS = ("holds", "kind", "classes", "made_by", "parents")
_FIELDS = {"scores": "f", "classes": "i", "size": "i", "peak": "f"}


_written: dict[Path, list[str]] = {}
"""By store, the records that this process wrote and has not gathered."""

_lock = threading.Lock()


@dataclass(frozen=True)
class Store:
    """One folder of records by image: ``get_scores`` or ``get_mask``, ``missing`` the ids to make.

    folder: the run folder. holds: score maps, masks or regions. classes: names in label order.
    kind: what score values mean. made_by: the settings that made it. parents: stores it came from.
    made: a random mark that a store gets when its folder is made. of: the marks that its parents
    had then, by name.

    >>> import wsss_jax as wj
    >>> store = wj.open_store(some_store)
    >>> store.holds, store.ids(), store.get_scores("a").scores.shape
    ('scores', ('a', 'b'), (2, 3, 1))
    """

    folder: Path
    holds: Holds
    classes: tuple[str, ...]
    kind: Kind
    made_by: Record
    parents: tuple[str, ...]
    made: str = field(default="", compare=False)
    of: Mapping[str, str] = field(default_factory=dict, compare=False)

    def ids(self) -> tuple[str, ...]:
        """Ids of all finished records, sorted."""
        return tuple(sorted({*self._loose(), *shards.ids(self.folder)}))

    def missing(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Those of the ids that have no record yet, in the given order."""
        done = set(self.ids())
        return tuple(id for id in ids if id not in done)

    def has(self, id: str) -> bool:
        """Whether there is a record of the image."""
        return self.path(id).is_file() or shards.has(self.folder, id)

    def path(self, id: str) -> Path:
        """The file of one record, named by ``ids.disk_name``, where it lies in no shard."""
        return path_of(self.folder / self.holds, id, _SUFFIX[self.holds])

    def write(self, id: str, content: bytes) -> None:
        """Write the bytes of one record, whole or not at all. Raises OSError for a full disk."""
        write_atomic(self.path(id), content)
        with _lock:
            own = _written.setdefault(self.folder, [])
            own.append(id)
            if len(own) < shards.GROUP:
                return
            ready = own.copy()
            own.clear()
        if self._is_large():
            self.pack(ready)

    def read(self, id: str) -> tuple[bytes, str]:
        """The bytes of one record, and what errors call it. MissingFileError, BadFileError."""
        path = self.path(id)
        try:
            return read_bytes(path), str(path)
        except MissingFileError:
            if shards.exist(self.folder):
                return shards.read(self.folder, id)
            raise MissingFileError(f"{path}: no such record; run the stage that makes it") from None

    def gather(self) -> None:
        """Gather what lies in single files, where there are many records or shards already."""
        if self._is_large():
            self.pack()

    def pack(self, ids: Sequence[str] | None = None) -> None:
        """Gather these records, or all, in shards; what is written later goes there too."""
        wanted = self._loose() if ids is None else ids
        shards.seal(self.folder, self.folder / self.holds, _SUFFIX[self.holds], wanted)

    def unpack(self) -> None:
        """Give each record a file of its own again."""
        if shards.exist(self.folder):
            shards.unseal(self.folder, self.folder / self.holds, _SUFFIX[self.holds])

    def _require(self, *wanted: Holds) -> None:
        if self.holds not in wanted:
            raise UserError(f"{self.folder} holds {self.holds}; wanted a store of {wanted[0]}")

    def _loose(self) -> tuple[str, ...]:
        """Ids of the records that are single files."""
        return ids_in(self.folder / self.holds, _SUFFIX[self.holds])

    def _is_large(self) -> bool:
        return shards.exist(self.folder) or len(self._loose()) > MANY

    def put_scores(self, id: str, maps: ScoreMaps) -> None:
        """Write one image's score maps, float16 on disk. ValueError if the kind is another."""
        if maps.kind != self.kind:
            raise UserError(f"{self.folder} holds {self.kind} scores, {id} came as {maps.kind}")
        fault = records.fault(maps, len(self.classes))
        if fault is not None:
            raise UserError(f"{id}: {fault}; nothing was written")
        buffer = io.BytesIO()
        np.savez(
            buffer,
            scores=maps.scores.astype(np.float16),
            classes=maps.classes.astype(np.int16),
            size=np.asarray(maps.size, np.int32),
            peak=maps.peak.astype(np.float32),
        )
        self.write(id, buffer.getvalue())

    def get_scores(self, id: str) -> ScoreMaps:
        """Read one image's score maps.

        Raises BadFileError when the record is missing, damaged, oversized, or holds what score maps
        of its kind cannot hold (``records.fault``).
        """
        self._require("scores", "regions")
        content, name = self.read(id)
        with (
            one_error(name, "damaged or not ours"),
            zipfile.ZipFile(io.BytesIO(content)) as archive,
        ):
            arrays = npz.read_members(archive, _FIELDS, MAX_TOTAL)
        shapes = [array.shape for array in arrays.values()]
        count = arrays["classes"].size
        if shapes != [(*shapes[0][:2], count), (count,), (2,), (count,)]:
            raise BadFileError(f"{name}: arrays of shapes {shapes} do not belong together")
        maps = ScoreMaps(
            arrays["scores"].astype(np.float32),
            arrays["classes"].astype(np.int32),
            (int(arrays["size"][0]), int(arrays["size"][1])),
            arrays["peak"].astype(np.float32),
            self.kind,
        )
        fault = records.fault(maps, len(self.classes))
        if fault is not None:
            raise BadFileError(f"{name}: {fault}; delete the file and run its stage again")
        return maps

    def put_mask(self, id: str, mask: UInt8[np.ndarray, "H W"]) -> None:
        """Write one mask as a palette PNG."""
        self.write(id, mask_png(mask, palette()))

    def get_mask(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Read one mask as class indices.

        Raises BadFileError when it is missing, when any bit of it was changed since it was written
        (``records.check_png``), and for values that are no class.
        """
        self._require("masks")
        content, name = self.read(id)
        records.check_png(content, name)
        mask = decode_mask(content, name)
        wrong = mask[(mask > len(self.classes)) & (mask != IGNORE)]
        if wrong.size:
            raise BadFileError(f"{name}: value {wrong[0]} in a mask of {len(self.classes)} classes")
        return mask


def require(store: Store, ids: Sequence[str], what: str) -> None:
    """UserError that names some of the ids of which the store has no record. what: ``masks``.

    Those that its own stage left out may be missing, as long as there are others: whoever reads
    them leaves them out, too.
    """
    missing = store.missing(ids)
    if len(missing) < len(ids):
        known = skipped(store.folder)
        missing = tuple(id for id in missing if id not in known)
    if missing:
        raise UserError(
            f"{store.folder}: no {what} of {len(missing)} of {len(ids)} images "
            f"({first_few(missing, 5)}); make them first"
        )


def require_scores(store: Store, advice: str) -> None:
    """UserError for a store of anything but activations or probabilities, with the advice."""
    if store.holds != "scores" or store.kind == "logit":
        held = store.kind if store.holds == "scores" else store.holds
        raise UserError(f"{store.folder} holds {held}; {advice}")


def skipped(folder: Path) -> dict[str, str]:
    """Reasons by id of the images that the stage left out which made the store."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("skipped*.json")):
        found |= {id: str(reason) for id, reason in json_records.read(path).items()}
    return found


def create(
    folder: Path,
    *,
    holds: Holds,
    classes: tuple[str, ...],
    made_by: Record,
    kind: Kind = "activation",
    parents: Sequence[Store | str] = (),
) -> Store:
    """A new store, or the same one again to go on with.

    parents: stores, or names of runs. A folder that holds nothing but the index of a start that
    failed is no store yet. Other ``data.provenance`` is written over the old. Raises UserError that
    lists the differing settings where the folder was made by others, and where a parent was made
    anew since.
    """
    names = tuple(one if isinstance(one, str) else one.folder.name for one in parents)
    of = marks(one for one in parents if isinstance(one, Store))
    store = Store(folder, holds, classes, kind, as_json(made_by), names, os.urandom(8).hex(), of)
    path = folder / "index.json"
    if path.exists() and _holds_anything(folder):
        before = open_store(folder)
        store = replace(store, made=before.made, of={**of, **before.of})
        old, new = _index(before), _index(store)
        changed = differences(old, new)
        if changed:
            raise UserError(
                f"{folder} was made with other settings; choose another folder or delete it:\n  "
                + "\n  ".join(changed)
            )
        others = [name for name in of if before.of.get(name, of[name]) != of[name]]
        if others:
            raise UserError(
                f"{folder} was made from another store called {first_few(others)}, not from the "
                f"one that is there now; delete {folder} to make it again, or choose another folder"
            )
        if old == new or SOURCES not in store.made_by:
            return store
    json_records.write(path, _index(store))
    return store


def marks(parents: Iterable[Store]) -> dict[str, str]:
    """By name the marks of stores as their folders have them now; of stores that have one."""
    found = {}
    for one in parents:
        if (one.folder / "index.json").is_file() and (made := open_store(one.folder).made):
            found[one.folder.name] = made
    return found


def open_stores(folders: Sequence[Path]) -> list[Store]:
    """Several existing stores. ValueError where none is named, BadFileError as ``open_store``."""
    if not folders:
        raise UserError("no store is named; wanted the folder of at least one")
    return [open_store(folder) for folder in folders]


def open_store(folder: Path) -> Store:
    """An existing store. BadFileError when there is none or its index is damaged."""
    path = folder / "index.json"
    if not path.is_file():
        raise BadFileError(f"{folder}: no index.json, so no store; run the stage that makes it")
    index = json_records.read(path)
    if index.get("format", FORMAT) != FORMAT:
        raise BadFileError(f"{path}: format {index['format']!r}, this version reads {FORMAT}")
    if not _is_index(index):
        raise BadFileError(f"{path}: not an index of this program")
    return Store(
        folder,
        index["holds"],
        tuple(index["classes"]),
        index["kind"],
        index["made_by"],
        tuple(index["parents"]),
        index.get("made", ""),
        index.get("of", {}),
    )


def require_classes(store: Store, names: tuple[str, ...]) -> None:
    """UserError where a store has other classes than the data set, or in another order."""
    if store.classes == names:
        return
    if store.classes == SALIENCY.names:
        raise UserError(f"{store.folder} holds saliency, no classes; it goes into --saliency")
    told = difference(store.classes, names)
    raise UserError(f"{store.folder} holds {told}; it was made for another data set or class list")


def check_systems(systems: Sequence[Store], names: tuple[str, ...]) -> None:
    """ValueError unless there are systems, and all hold score maps of the classes ``names``."""
    if not systems:
        raise UserError("no system is given; wanted at least one store of score maps")
    for one in systems:
        if one.holds != "scores":
            raise UserError(f"{one.folder} holds {one.holds}; wanted score maps of a system")
        require_classes(one, names)


def read_npz(path: Path, fields: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Named arrays of an npz whose sizes are checked from the headers before they are read.

    fields: name to the wanted dtype kinds ("f", "i", "uif" …). Object arrays are refused, so
    nothing is ever unpickled. Raises BadFileError.
    """
    if not path.is_file():
        raise BadFileError(f"{path}: no such record; run the stage that makes it")
    return npz.read(path, fields, MAX_TOTAL)


def _holds_anything(folder: Path) -> bool:
    """Whether there is more than an index: records, or lists of what was skipped."""
    names = {path.relative_to(folder) for path in folder.rglob("[!.]*") if path.is_file()}
    return names != {Path("index.json")}


def _is_index(index: Record) -> bool:
    """Whether an index that was read has all that a store needs, of the right kinds."""
    if set(index) - {"made", "of"} != {"format", *_PARTS}:
        return False
    lists = (index["classes"], index["parents"])
    named = all(isinstance(part, list) and all(type(v) is str for v in part) for part in lists)
    of = index.get("of", {})
    named = named and _are_classes(index["classes"]) and isinstance(of, dict)
    named = named and all(type(v) is str for v in (index.get("made", ""), *of.values()))
    known = index["holds"] in get_args(Holds) and index["kind"] in get_args(Kind)
    return named and known and isinstance(index["made_by"], dict)


def _are_classes(names: list[str]) -> bool:
    try:
        return ClassList(tuple(names)).names == tuple(names)
    except UserError:
        return False


def _index(store: Store) -> Record:
    return {
        "format": FORMAT,
        "holds": store.holds,
        "kind": store.kind,
        "classes": list(store.classes),
        "made_by": store.made_by,
        "parents": list(store.parents),
        "made": store.made,
        "of": dict(store.of),
    }
