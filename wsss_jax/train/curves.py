"""Curves of a run for TensorBoard, where tensorboardX is installed (``pip install wsss-jax[tb]``).

    tensorboard --logdir runs

One events file lies in the run's folder, beside metrics.jsonl, which has the same numbers and is
always written.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Curves:
    """Writes numbers by step into a folder; does nothing where tensorboardX is missing.

    start: the step from which an earlier run goes on; later points of it are taken back.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self._folder, self._start = folder, start
        self._missing = importlib.util.find_spec("tensorboardX") is None
        self._writer: Any = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of every curve, on disk when this returns."""
        if self._missing:
            return
        if self._writer is None:
            made = importlib.import_module("tensorboardX").SummaryWriter
            # TensorBoard drops what earlier files say of this step and later ones.
            purge = self._start + 1 if self._start else None
            self._writer = made(str(self._folder), purge_step=purge, write_to_disk=True)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
