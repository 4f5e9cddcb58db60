"""Text and JSON files of people: of any usual encoding, of bounded size, one error if damaged."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsss_jax.errors import BadFileError, UserError
from wsss_jax.formats.bounded import MAX_BYTES, once, read_bytes

MISTAKES = (
    KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, LookupError,
    ArithmeticError, MemoryError,
)  # fmt: skip
"""What reading a value of a strange form raises: it is the file's mistake, never ours."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_MAC = re.compile(rb"[A-Za-z][\x80-\x84\x86-\x8b\x8d-\x90\x98-\x9b\x9d-\x9f][a-z\xa7]")
"""A letter with an accent inside of a word as the Macintosh had it: in the Windows code, signs and
capitals that hardly stand there."""

_WINDOWS = re.compile(rb"[\xc0-\xff]")
"""Letters with accents as Windows has them, which are signs to the Macintosh."""


def read_text(path: Path, limit: int = MAX_BYTES) -> tuple[str, str]:
    """A text file, and the encoding that it was read as.

    UTF-8, UTF-16, and else Latin-1 as Windows or an old Macintosh has it; byte-order marks are
    dropped. Raises BadFileError for what is no text at all.
    """
    content = _content(path, limit)
    for encoding in _encodings(content):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\x00" in text:
            break
        return text, encoding
    raise BadFileError(f"{path}: not a text file; save it as UTF-8 text")


def read_json(path: Path, limit: int = MAX_BYTES, pairs: Any = once) -> Any:
    """A JSON value of at most ``limit`` bytes. pairs: as in json.loads.

    Raises MissingFileError where there is no file, BadFileError where it is no JSON, or has a name
    twice in one object.
    """
    content = _content(path, limit)
    try:
        return json.loads(content.decode(next(_encodings(content))), object_pairs_hook=pairs)
    except UserError as problem:
        raise BadFileError(f"{path}: {problem}") from problem
    except UnicodeDecodeError as problem:
        raise BadFileError(f"{path}: letters that are not UTF-8; save it as UTF-8") from problem
    except MISTAKES as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise BadFileError(f"{path}: damaged, or no JSON ({reason})") from problem


def _content(path: Path, limit: int) -> bytes:
    """The bytes of a file that is no pointer to it, and no page about it. Raises BadFileError."""
    content = read_bytes(path, limit)
    if content.startswith(b"version https://git-lfs"):
        raise BadFileError(f"{path}: a pointer of Git LFS instead of the file; run git lfs pull")
    if content[:100].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise BadFileError(f"{path}: a web page instead of the file; get it again")
    return content


def _encodings(content: bytes) -> Iterator[str]:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            yield encoding
            return
    if content[1:2] == b"\x00" or content[:1] == b"\x00":
        yield "utf-16-le" if content[1:2] == b"\x00" else "utf-16-be"
        return
    yield "utf-8"
    if _MAC.search(content) and not _WINDOWS.search(content):
        yield "mac_roman"
    yield "cp1252"
    yield "latin-1"
