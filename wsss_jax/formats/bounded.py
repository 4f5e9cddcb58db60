"""Files read whole, of a size that is bounded before anything is allocated."""

import os
from pathlib import Path

from wsss_jax.errors import BadFileError, MissingFileError

MAX_BYTES = 256 * 2**20
"""Larger files are refused before they are read, where no other limit is named."""


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The whole content of a file of at most ``limit`` bytes. Raises BadFileError."""
    try:
        with path.open("rb") as file:
            # A buffer of the limit's size would cost more than reading a small file.
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except FileNotFoundError as problem:
        raise MissingFileError(f"{path}: no such file") from problem
    except OSError as problem:
        raise BadFileError(f"{path}: cannot be read ({problem})") from problem
    if len(content) > limit:
        raise BadFileError(f"{path}: more than {limit:,} bytes, the most that is read")
    return content
