"""Checkpoints that are checked: written by orbax, verified by checksum, the last good one wins.

Orbax commits a step atomically but restores a flipped bit in a data file silently, so each step
carries a manifest (path, shape, dtype and BLAKE2 of every array) that is compared on restore.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from wsss_jax.errors import CorruptCheckpointError
from wsss_jax.train.optimizers import path_name


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: ``save`` a step, ``restore`` the newest that is whole.

    folder: where they lie. keep: how many steps stay. say: receives one line for each damaged
    step that was passed over.
    """

    folder: Path
    keep: int = 2
    say: Callable[[str], None] = print

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Write one step, arrays of ``state`` and JSON values ``extra``; blocks until done."""
        arrays = flatten(state)
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            manifest=ocp.args.JsonSave(_manifest(arrays)),
            extra=ocp.args.JsonSave({"extra": json.dumps(extra)}),
        )
        with self._manager() as manager:
            if step in manager.all_steps():
                return
            manager.save(step, args=content)
            manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Finished steps, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal())

    def restore(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, extra) of the newest whole step, or None when there is none at all.

        template: a state of the wanted structure. Damaged newer steps are reported and removed.
        Raises CorruptCheckpointError when steps exist and none is whole.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state, extra = self._restore_step(step, template)
            except CorruptCheckpointError as problem:
                damaged[step] = f"checkpoint {self.folder / str(step)} is damaged: {problem}"
                self.say(damaged[step])
                continue
            if jax.process_index() == 0:
                for bad in damaged:  # else orbax would refuse to write these steps again
                    shutil.rmtree(self.folder / str(bad))
            return step, state, extra
        if damaged:
            raise CorruptCheckpointError(
                "no checkpoint is whole; delete the folder to start again\n  "
                + "\n  ".join(damaged.values())
            )
        return None

    def _restore_step(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        wanted = flatten(template)
        like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in wanted.items()}
        content = ocp.args.Composite(
            state=ocp.args.StandardRestore(like),
            manifest=ocp.args.JsonRestore(),
            extra=ocp.args.JsonRestore(),
        )
        try:
            with self._manager() as manager:
                found = manager.restore(step, args=content)
            arrays, manifest = found["state"], found["manifest"]
            extra = json.loads(found["extra"]["extra"])
        except Exception as problem:  # orbax raises eight unrelated types for damaged files
            reason = f"{type(problem).__name__}: {str(problem)[:200]}"
            raise CorruptCheckpointError(f"unreadable ({reason})") from problem
        for name, entry in _manifest(arrays).items():
            if entry != manifest.get(name):
                raise CorruptCheckpointError(f"{name} differs from its checksum")
            if entry["dtype"] != str(wanted[name].dtype):
                raise CorruptCheckpointError(
                    f"{name} is {entry['dtype']}, wanted {wanted[name].dtype}"
                )
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), extra

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep, enable_async_checkpointing=False, create=True
        )
        return ocp.CheckpointManager(self.folder.resolve(), options=options)


def flatten(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by their path, in tree order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        f"{i:05d} {path_name(path)}".replace("/", "."): leaf
        for i, (path, leaf) in enumerate(leaves)
    }


def _manifest(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: _entry(np.asarray(array)) for name, array in arrays.items()}


def _entry(array: np.ndarray) -> dict[str, Any]:
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "blake2": digest}
