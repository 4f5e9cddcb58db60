"""Records of a store in few large files: ArrayRecord shards, for sets of very many photographs.

A record is first a file of its own, written whole or not at all (``stores``). ``seal`` gathers such
files into a shard: it writes the shard under a temporary name, reads every record back, renames
the shard, and only then removes the files. So a process that is killed at any moment loses no
finished record, and any number of processes and machines may write to one store: each seals its
own files, and whatever lies in two places is the same.

The last record of a shard lists the ids of the others. Every record carries a checksum of its id
and content, since ArrayRecord itself takes some damaged files for empty ones. Not here: what a
record means, and when a store gets shards (``stores``).
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from wsss_jax.data.files import path_of, replacing, write_atomic
from wsss_jax.errors import BadFileError, MissingFileError
from wsss_jax.formats.bounded import read_bytes

FOLDER = "shards"
"""Of a store; where it exists, records go into shards."""

GROUP = 1000
"""Records of a shard, at most; a process that writes to a store seals so many of its own at once.
"""

BYTES = 256 * 2**20
"""Of the records of a shard, about; those of frozen features are large."""

_SUFFIX = ".array_record"
_OPEN = 32  # shards that are kept open for reading by this process
_DIGEST = 16
_ONE_BY_ONE = "group_size:1"  # records are read in any order
_AT_RANDOM = "readahead_buffer_size:0,max_parallelism:0"
_LIST = ""  # the id of the record that lists the ids; no image has it


class _Place(NamedTuple):
    shard: str
    position: int


@dataclass
class _Index:
    """Where each record lies, as far as this process knows; shards never change once written."""

    folder: Path
    names: frozenset[str] = frozenset()
    places: dict[str, _Place] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refreshed(self) -> dict[str, _Place]:
        """The places after a look at which shards there are. Raises BadFileError."""
        with self.lock:
            names = frozenset(_shard_names(self.folder))
            if not self.names <= names:  # unpacked or deleted meanwhile
                self.names, self.places = frozenset(), {}
            for name in sorted(names - self.names):
                path = self.folder / name
                for position, id in enumerate(_ids_of(_opened(path), path)):
                    before = self.places.get(id)
                    if before is None or before.shard < name:  # of two the later one counts
                        self.places[id] = _Place(name, position)
            self.names = names
            return self.places


_indices: dict[Path, _Index] = {}


def exist(store: Path) -> bool:
    """Whether records of this store go into shards."""
    return (store / FOLDER).is_dir()


def ids(store: Path) -> Iterable[str]:
    """Ids of all records in the shards of a store. Raises BadFileError for a damaged shard."""
    return _index(store).refreshed().keys() if exist(store) else ()


def has(store: Path, id: str) -> bool:
    """Whether the shards of a store hold a record of the image. Raises BadFileError."""
    if not exist(store):
        return False
    index = _index(store)
    return id in index.places or id in index.refreshed()


def read(store: Path, id: str) -> tuple[bytes, str]:
    """A record, and what errors about it call it.

    Raises MissingFileError where there is none, BadFileError where it is damaged.
    """
    index = _index(store)
    for look in (lambda: index.places, index.refreshed):
        place = look().get(id)
        if place is not None and (index.folder / place.shard).is_file():
            path = index.folder / place.shard
            return _record(_reader(path, os.getpid()), path, place.position, id), f"{path} ({id})"
    raise MissingFileError(f"{store}: no record of {id}; run the stage that makes it")


def seal(store: Path, records: Path, suffix: str, wanted: Sequence[str]) -> None:
    """Gather the files of these records into shards, and remove the files.

    records: their folder. Files that another process has sealed meanwhile are passed over. Raises
    OSError for a disk that is full, with all files still there.
    """
    folder = store / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for some in _groups(records, suffix, wanted):
        _write(folder, records, suffix, some)
        for id in some:
            path_of(records, id, suffix).unlink(missing_ok=True)
    _index(store).refreshed()


def unseal(store: Path, records: Path, suffix: str) -> int:
    """Give each record of the shards a file of its own, and remove the shards; returns how many.

    Stopped in the middle, both hold whole records, and it goes on when it is called again.
    """
    places = sorted(_index(store).refreshed().items(), key=lambda item: item[1])
    for id, _ in places:
        path = path_of(records, id, suffix)
        if not path.is_file():
            write_atomic(path, read(store, id)[0])
    shutil.rmtree(store / FOLDER)
    _indices.pop((store / FOLDER).resolve(), None)
    return len(places)


def _index(store: Path) -> _Index:
    folder = (store / FOLDER).resolve()
    return _indices.setdefault(folder, _Index(folder))


def _shard_names(folder: Path) -> Iterator[str]:
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
            yield entry.name


def _groups(records: Path, suffix: str, wanted: Sequence[str]) -> Iterator[list[str]]:
    """The ids whose file is there, in groups of at most GROUP records and about BYTES."""
    group: list[str] = []
    total = 0
    for id in wanted:
        try:
            size = path_of(records, id, suffix).stat().st_size
        except FileNotFoundError:
            continue  # another process may seal it at any moment
        group.append(id)
        total += size
        if len(group) == GROUP or total >= BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def _write(folder: Path, records: Path, suffix: str, some: Sequence[str]) -> None:
    """One shard, whole or not at all, under a name that sorts behind those that are there."""
    last = max((int(name.split("-")[0]) for name in _shard_names(folder)), default=-1)
    path = folder / f"{last + 1:06d}-{secrets.token_hex(4)}{_SUFFIX}"
    with replacing(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), _ONE_BY_ONE)
            written = []
            for id in some:
                try:
                    content = read_bytes(path_of(records, id, suffix))
                except MissingFileError:
                    continue  # sealed by another process meanwhile
                writer.write(_framed(id, content))
                written.append(id)
            writer.write(_framed(_LIST, json.dumps(written).encode()))
            writer.close()
        except RuntimeError as problem:
            raise _disk_error(problem) from problem
        reader = _opened(temporary)
        for position, id in enumerate(_ids_of(reader, temporary)):
            _record(reader, temporary, position, id)
        reader.close()


def _disk_error(problem: RuntimeError) -> OSError:
    """What ArrayRecord raised for a file that cannot be written, as the error of the disk."""
    text = str(problem)
    known = (code for code in errno.errorcode if os.strerror(code) in text)
    return OSError(next(known, errno.EIO), text.split(";")[0])


def _framed(id: str, content: bytes) -> bytes:
    name = id.encode()
    rest = len(name).to_bytes(4, "big") + name + content
    return hashlib.blake2b(rest, digest_size=_DIGEST).digest() + rest


def _record(reader: ArrayRecordReader, path: Path, position: int, id: str) -> bytes:
    """The content of a record, after a look at its checksum and its id. Raises BadFileError."""
    try:
        (framed,) = reader.read([position])
    except (RuntimeError, ValueError, IndexError, OSError) as problem:
        raise _damaged(path, f"the record of {id or 'all ids'}: {problem}") from problem
    rest = framed[_DIGEST:]
    length = int.from_bytes(rest[:4], "big")
    whole = hashlib.blake2b(rest, digest_size=_DIGEST).digest() == framed[:_DIGEST]
    if not whole or rest[4 : 4 + length] != id.encode():
        raise _damaged(path, f"the record of {id or 'all ids'} is not what was written")
    return rest[4 + length :]


def _ids_of(reader: ArrayRecordReader, path: Path) -> list[str]:
    """The ids in a shard, by position. Raises BadFileError."""
    count = reader.num_records()
    found = json.loads(_record(reader, path, count - 1, _LIST)) if count else []
    if not count or len(found) != count - 1:
        raise _damaged(path, "it does not list its records")
    return found


@lru_cache(_OPEN)
def _reader(path: Path, process: int) -> ArrayRecordReader:
    """A shard that stays open; ``process``: a fork must not share it. Serves several threads."""
    return _opened(path)


def _opened(path: Path) -> ArrayRecordReader:
    reader = ArrayRecordReader(str(path), _AT_RANDOM)
    if not reader.ok():
        raise _damaged(path, "no shard that can be opened")
    return reader


def _damaged(path: Path, what: str) -> BadFileError:
    return BadFileError(
        f"{path}: damaged ({what}); delete the file and run its stage again, which makes its "
        "records anew"
    )
