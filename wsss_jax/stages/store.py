"""A store in few large files, or with one file for each record."""

from pathlib import Path
from typing import Literal

import tyro

from wsss_jax.data.ids import files_below
from wsss_jax.data.stores import open_store

Positional = tyro.conf.Positional


def command(action: Positional[Literal["pack", "unpack"]], store: Positional[Path]) -> None:
    """Gather the records of a store in a few large files, or give each a file of its own again.

    Every verb reads and writes both. Stores of more than 20,000 records are packed while they are
    made; other programs open the files of unpacked ones. Stopped, the same command goes on.

    Args:
        action: pack: gather the records; unpack: a file for each.
        store: folder that a verb wrote.
    """
    opened = open_store(store)
    if action == "pack":
        opened.pack()
    else:
        opened.unpack()
    files = tuple(files_below(store))
    size = sum(path.stat().st_size for path in files)
    print(f"{store}: {len(opened.ids())} records in {len(files)} files, {size / 2**20:.1f} MiB")
