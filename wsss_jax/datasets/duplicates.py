"""The same photograph twice: files of the same bytes, whatever they are called.

Not here: photographs that were saved anew, whose bytes differ, and labels that stand twice.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from wsss_jax.errors import BadFileError
from wsss_jax.formats.bounded import read_bytes


def same_files(paths: Mapping[str, Path]) -> Iterator[Sequence[str]]:
    """Groups of ids whose files have the same bytes. Only files of the same size are read.

    paths: by id. Files that cannot be read are left out.
    """
    by_size: dict[int, list[str]] = {}
    for id, path in paths.items():
        with suppress(OSError):
            by_size.setdefault(path.stat().st_size, []).append(id)
    for ids in (ids for size, ids in by_size.items() if size and len(ids) > 1):
        groups: dict[bytes, list[str]] = {}
        for id in ids:
            with suppress(BadFileError):
                content = hashlib.blake2b(read_bytes(paths[id])).digest()
                groups.setdefault(content, []).append(id)
        yield from (group for group in groups.values() if len(group) > 1)
