"""A store in few large files, or with one file for each record."""

from pathlib import Path
from typing import Literal

import tyro

from wsss_jax.data.ids import files_below
from wsss_jax.data.stores import open_store

Positional = tyro.conf.Positional


def command(action: Positional[Literal["pack", "unpack"]], store: Positional[Path]) -> None:
    """Pack the records of a store into a few large files, or unpack them into one file each.

    Every verb reads and writes both. Stores of more than 20,000 records are packed while they are
    made. Other programs need unpacked ones. The same command resumes a stopped one.

    Args:
        action: pack, or unpack.
        store: folder of the store.
    """
    opened = open_store(store)
    if action == "pack":
        opened.pack()
    else:
        opened.unpack()
    files = tuple(files_below(store))
    size = sum(path.stat().st_size for path in files)
    print(f"{store}: {len(opened.ids())} records in {len(files)} files, {size / 2**20:.1f} MiB")
