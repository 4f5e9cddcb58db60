"""Checkpoints that are checked: written by orbax, verified by checksum.

Orbax commits a step atomically but restores a flipped bit in a data file silently, so each step
carries a manifest (path, shape, dtype and BLAKE2 of every array) that is compared on restore. Of
several hosts all take part in a save, and each reads for itself, onto the host, so a step may have
been written on any number of devices. Reading deletes nothing. A run that goes on may do so from an
older step (``newest_whole``); who reads a finished run gets its last step or an error (``last``).
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from wsss_jax.config import Record
from wsss_jax.errors import CorruptCheckpointError, UserError
from wsss_jax.train.optimizers import path_name
from wsss_jax.types import Leaf

FINISHED = "finished"
"""File of a run that was trained to its end: the number of steps, and on the second line the
``identity`` of its checkpoints."""

FOLDER = "checkpoint"
"""Of a run."""

_ROOM = 1 << 18
"""Bytes that a step takes on disk besides its arrays."""


class Restored(NamedTuple):
    """A step that was read back: its number, its arrays, and the JSON values saved beside them."""

    step: int
    state: PyTree
    extra: Record


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: ``save`` a step, read one back.

    folder: where they lie. keep: how many steps stay. warn: receives one line for each damaged
    step that was passed over.
    """

    folder: Path
    keep: int = 2
    warn: Callable[[str], None] = print

    def save(self, step: int, state: PyTree, extra: Record) -> None:
        """Write one step, arrays of ``state`` and JSON values ``extra``; blocks until done.

        Raises OSError that names the step's folder where the disk is full; earlier steps stay.
        """
        arrays = flatten(state)
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            manifest=ocp.args.JsonSave(_manifest(arrays)),
            extra=ocp.args.JsonSave({"extra": json.dumps(extra), "step": step}),
        )
        with _naming_full_disk(self.folder / str(step)), _quiet():
            _check_room(self.folder, sum(array.nbytes for array in arrays.values()))
            with self._writer() as manager:
                if step in manager.all_steps():
                    return
                manager.save(step, args=content)
                manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Finished steps, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal())

    def newest_whole(self, template: PyTree) -> Restored | None:
        """The newest step that is whole, None when there is none at all.

        template: a state of the wanted structure. Damaged newer steps are reported.
        Raises CorruptCheckpointError when steps exist and none is whole.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                return self._restored(step, template)
            except CorruptCheckpointError as problem:
                damaged.append(str(problem))
                self.warn(damaged[-1])
        if damaged:
            raise CorruptCheckpointError(
                "no checkpoint is whole; delete the folder to start again\n  "
                + "\n  ".join(damaged)
            )
        return None

    def last(self, template: PyTree) -> Restored | None:
        """The last step, None when there is none. CorruptCheckpointError where it is damaged."""
        steps = self.steps()
        return self._restored(steps[-1], template) if steps else None

    def damage(self) -> str | None:
        """What is wrong with the last step, None where it is whole or there is none."""
        steps = self.steps()
        if not steps:
            return None
        try:
            self._read(steps[-1], None)
        except CorruptCheckpointError as problem:
            return str(problem)
        return None

    def identity(self) -> str:
        """Number of the last step and a digest of what it should hold; "" where there is none.

        Raises CorruptCheckpointError where that cannot be read.
        """
        steps = self.steps()
        if not steps:
            return ""
        part = ocp.args.Composite(manifest=ocp.args.JsonRestore())
        with self._damage_of(steps[-1]), self._reader() as manager:
            manifest = manager.restore(steps[-1], args=part)["manifest"]
        text = json.dumps(manifest, sort_keys=True)
        return f"{steps[-1]} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"

    def other_than(self, told: str) -> str | None:
        """What is there in place of the step with this ``identity``, None where it is the last.

        Raises UserError where another run ended at the same step.
        """
        found = self.identity()
        if found == told:
            return None
        last, now = (text.partition(" ")[0] for text in (told, found))
        if last == now:
            raise UserError(f"{self.folder} is of another run than its {FINISHED}; delete the run")
        return f"{self.folder} ends at step {now or 0}, the run ended at {last}"

    def drop_after(self, step: int) -> None:
        """Delete newer steps, which are to be written again."""
        if jax.process_index() == 0:
            for newer in self.steps():
                if newer > step:
                    shutil.rmtree(self.folder / str(newer))

    def _restored(self, step: int, template: PyTree) -> Restored:
        arrays, extra = self._read(step, flatten(template))
        leaves = [jnp.asarray(array) for array in arrays.values()]
        return Restored(step, jax.tree.unflatten(jax.tree.structure(template), leaves), extra)

    def _read(
        self, step: int, wanted: Mapping[str, Leaf] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays and extra of one step, in the order of ``wanted``; None takes what there is."""
        with self._damage_of(step):
            with self._reader() as manager:
                arrays, manifest, extra = _contents(manager, step)
            names = list(manifest if wanted is None else wanted)
            if set(names) != set(manifest):
                other = min(set(names) ^ set(manifest))
                raise CorruptCheckpointError(f"it holds other arrays than wanted, {other} first")
            for name in names:
                _check_array(name, arrays[name], manifest[name], wanted)
            return {name: arrays[name] for name in names}, extra

    @contextmanager
    def _damage_of(self, step: int) -> Iterator[None]:
        """One CorruptCheckpointError that names the step for all that the block raises."""
        try:
            with _quiet():
                yield
        except Exception as problem:  # orbax raises eight unrelated types for damaged files
            reason = f"{type(problem).__name__}: {str(problem)[:200]}"
            if isinstance(problem, CorruptCheckpointError):
                reason = str(problem)
            where = self.folder / str(step)
            raise CorruptCheckpointError(f"checkpoint {where} is damaged: {reason}") from problem

    def _writer(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            enable_async_checkpointing=False,
            create=True,
            cleanup_tmp_directories=True,  # of a run that was killed
        )
        return ocp.CheckpointManager(self.folder.resolve(), options=options)

    def _reader(self) -> ocp.CheckpointManager:
        own = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=own, active_processes={own}
            ),
        )
        return ocp.CheckpointManager(self.folder.resolve(), options=options)


def ended(run: Path) -> str | None:
    """What is wrong with how a finished run ends: not with the checkpoint that it ended with.

    Runs of the combiner and of heads end without one. Raises UserError as ``other_than``.
    """
    told = (run / FINISHED).read_text(errors="replace").splitlines()[1:]
    return Checkpoints(run / FOLDER).other_than(told[0]) if told else None


def flatten(tree: PyTree) -> dict[str, Leaf]:
    """The arrays of a pytree by their path, in tree order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        f"{i:05d} {path_name(path)}".replace("/", "."): leaf
        for i, (path, leaf) in enumerate(leaves)
    }


def _contents(
    manager: ocp.CheckpointManager, step: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Arrays on the host, manifest and extra of a step, as they are on disk."""
    parts = ocp.args.Composite(manifest=ocp.args.JsonRestore(), extra=ocp.args.JsonRestore())
    found = manager.restore(step, args=parts)
    manifest, extra = found["manifest"], json.loads(found["extra"]["extra"])
    if found["extra"].get("step", step) != step:
        raise CorruptCheckpointError(f"it is step {found['extra']['step']} under another name")
    like = {
        name: np.empty(entry["shape"], np.dtype(entry["dtype"])) for name, entry in manifest.items()
    }
    content = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    return manager.restore(step, args=content)["state"], manifest, extra


def _manifest(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: _entry(array) for name, array in arrays.items()}


def _entry(array: Any) -> dict[str, Any]:
    array = np.asarray(array)
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "blake2": digest}


def _check_array(
    name: str, array: Any, entry: Mapping[str, Any], wanted: Mapping[str, Leaf] | None
) -> None:
    if _entry(array) != entry:
        raise CorruptCheckpointError(f"{name} differs from its checksum")
    if wanted is not None:
        shape, dtype = list(wanted[name].shape), str(wanted[name].dtype)
        if entry["dtype"] != dtype or entry["shape"] != shape:
            raise CorruptCheckpointError(
                f"{name} is {entry['dtype']} of {entry['shape']}, wanted {dtype} of {shape}"
            )


def _check_room(folder: Path, size: int) -> None:
    """OSError where a disk has too little room for so many bytes, which are hardly compressed.

    Half-written, a step makes orbax print a hundred lines before it raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < size + _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs the tracebacks of what it raises; the error alone is enough."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def _naming_full_disk(step: Path) -> Iterator[None]:
    """One OSError for the many that orbax and tensorstore raise where the disk is full."""
    try:
        yield
    except Exception as problem:
        full = errno.ENOSPC, errno.EDQUOT
        texts = [os.strerror(number) for number in full]
        chain = [problem, problem.__cause__, problem.__context__]
        for number, text in zip(full, texts, strict=True):
            if any(text in str(one) for one in chain):
                raise OSError(number, text, str(step)) from problem
        raise
