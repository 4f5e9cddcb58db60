"""``wsss boxes``: what a run with a box head finds."""

from pathlib import Path

import tyro

from wsss_jax.cli.bare import Bare
from wsss_jax.datasets.boxes import reader_if_any
from wsss_jax.datasets.selection import Data
from wsss_jax.stages import boxes


def command(run: tyro.conf.Positional[Path], data: Bare[Data], out: Path) -> None:
    """Write the boxes that a trained box head finds, and judge them if there are true ones.

    Args:
        run: run folder of the system boxes.
        data: the photographs and their labels.
        out: folder for boxes.csv, which may be copied into the data set.
    """
    source = data.open()
    found = boxes.find(run, source, out, ids=source.ids)
    print(f"{out / boxes.NAME}: boxes of {len(found)} photographs")
    read = reader_if_any(source)
    if read is not None:
        print(boxes.judge(found, read))
