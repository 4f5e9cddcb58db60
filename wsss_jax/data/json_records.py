"""JSON files of ours, which decide what a folder is: written with a checksum, refused when changed.

A flipped bit in a name or a number is JSON as well, and would be read as another setting. Not here:
JSON of other programs and of people (``texts``), which has no checksum.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsss_jax.data.files import write_atomic
from wsss_jax.data.texts import read_json
from wsss_jax.errors import BadFileError

CHECKSUM = "checksum"
"""Last entry of each file: BLAKE2 of all others."""


def write(path: Path, content: Mapping[str, object]) -> None:
    """Write an object of JSON values, whole or not at all."""
    plain = json.loads(json.dumps(content))
    text = json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=1)
    write_atomic(path, text.encode())


def read(path: Path, *fields: str) -> dict[str, Any]:
    """The object in a file, without its checksum.

    fields: names that it must have. Raises MissingFileError without a file, BadFileError for a
    damaged one, for one that lacks a field, and for one that was changed since it was written. A
    file without a checksum is read as it stands.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadFileError(f"{path}: a {type(content).__name__}, wanted an object of this program")
    told = content.pop(CHECKSUM, None)
    if told is not None and told != _checksum(content):
        raise BadFileError(
            f"{path}: changed since it was written; where that was no damage but you, remove its "
            f'line "{CHECKSUM}"'
        )
    lacking = [name for name in fields if name not in content]
    if lacking:
        raise BadFileError(f"{path}: lacks {', '.join(lacking)}; run what made it again")
    return content


def _checksum(content: Mapping[str, object]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
