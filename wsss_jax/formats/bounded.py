"""Files opened and read within bounds, and one error for everything that damage can cause."""

import io
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

from wsss_jax.errors import BadFileError, MissingFileError, UserError

MAX_BYTES = 256 * 2**20
"""Larger files are refused before they are read, where no other limit is named."""

MAX_TOTAL = 256 * 2**20
"""Bytes that all arrays of one file may hold together, where no other limit is named."""

LONG = 2**17
"""Bytes from which ``Views`` copies nothing."""

DAMAGE = (
    ValueError, LookupError, TypeError, ArithmeticError, AttributeError, EOFError, OSError,
    MemoryError, NotImplementedError, RecursionError, RuntimeError, SyntaxError, TokenError,
    struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
)  # fmt: skip
"""What the readers of the standard library and of NumPy raise for damaged or hostile bytes."""


@contextmanager
def one_error(path: Path | str, what: str) -> Iterator[None]:
    """Turn every error of DAMAGE inside the block into one BadFileError: ``path: what: reason``."""
    try:
        yield
    except BadFileError:
        raise
    except DAMAGE as problem:
        raise BadFileError(f"{path}: {what}: {reason(problem)}") from problem


def reason(problem: BaseException) -> str:
    """The first line of a message; of other errors than ours the kind is told as well."""
    text = str(problem).split("\n")[0][:300]
    plain = isinstance(problem, (UserError, EOFError)) and text
    return text if plain else f"damaged ({type(problem).__name__} {text})"


def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of these names and values. Raises UserError where a name stands twice."""
    found = dict(items)
    if len(found) != len(items):
        counts = Counter(name for name, _ in items)
        raise UserError(f"{counts.most_common(1)[0][0]!r} stands twice; leave one of them")
    return found


def as_path(given: object, what: str = "path") -> Path:
    """The path that a caller gave as text or as a path. UserError for anything else."""
    if isinstance(given, str | bytes | os.PathLike) and (text := os.fspath(given)):
        return Path(os.fsdecode(text))
    raise UserError(f"{what} is {given!r}, wanted the path of a file or folder, as text or Path")


def open_file(path: Path) -> io.BufferedReader:
    """A regular file, opened for reading.

    Pipes, devices, sockets and folders are refused, not waited for. Raises MissingFileError or
    BadFileError.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe waits for somebody who writes.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as problem:
        raise MissingFileError(f"{path}: no such file") from problem
    except (OSError, ValueError) as problem:
        raise BadFileError(f"{path}: cannot be read ({problem})") from problem
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadFileError(f"{path}: a folder, pipe, device or socket; wanted a file")
    return open(handle, "rb")


class Views:
    """A file in memory, whose long parts are read as views of it.

    Copying the maps of a dictionary takes longer than all that is done with them afterwards.
    """

    def __init__(self, content: bytes) -> None:
        self._file, self._whole = io.BytesIO(content), memoryview(content)
        self.readline, self.seek, self.tell = self._file.readline, self._file.seek, self._file.tell

    def read(self, count: int = -1) -> bytes | memoryview:
        """As of a file; a view of ``count`` bytes where that is long."""
        if count < LONG:
            return self._file.read(count)
        start = self._file.tell()
        part = self._whole[start : start + count]
        self._file.seek(start + len(part))
        return part


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The whole content of a regular file of at most ``limit`` bytes. Raises BadFileError."""
    try:
        with open_file(path) as file:
            # A buffer of the limit's size would cost more than reading a small file.
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as problem:
        raise BadFileError(f"{path}: cannot be read ({problem})") from problem
    if len(content) > limit:
        raise BadFileError(f"{path}: more than {limit:,} bytes, the most that is read")
    return content
