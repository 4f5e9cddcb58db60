"""The folder of a training run, whatever is learned: settings.json, metrics.jsonl, checkpoint/.

A folder belongs to one setting of everything; the same command goes on with it, another one is
refused with the settings that differ.
"""

import errno
import fcntl
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from wsss_jax import __version__, config, memory
from wsss_jax.config import Record
from wsss_jax.data import json_records
from wsss_jax.data.files import naming, write_atomic
from wsss_jax.errors import BadFileError, CorruptCheckpointError, UserError, first_few
from wsss_jax.run import left_out
from wsss_jax.run.progress import meter
from wsss_jax.train import checkpoint, loop, parallel
from wsss_jax.train import state as states
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.types import System

_SETTINGS, _LOCK = "settings.json", ".lock"


@runtime_checkable
class ReportingBatches(loop.Batches, Protocol):
    """Batches that tell which images they left out."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Reason by id of every image left out until now."""
        ...


class Claim:
    """A run's folder that this process works in, made by ``claim``; the block of ``with`` ends it.

    finished: whether the run was trained to its end and its last checkpoint is whole, so that
    nothing is left to do.
    """

    def __init__(self, folder: Path, *, finished: bool, lock: int | None) -> None:
        self.folder, self.finished = folder, finished
        self._lock = lock

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._lock is None:
            return
        if kind is not None and not _holds_results(self.folder):
            for name in (_SETTINGS, _LOCK):
                (self.folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # somebody's own files lie there
                self.folder.rmdir()
        os.close(self._lock)
        self._lock = None

    def __del__(self) -> None:
        if self._lock is not None:
            os.close(self._lock)


def claim(folder: Path, record: Record) -> Claim:
    """Take a folder for a run of these settings: ``with claim(folder, record) as run: …``.

    Within the block no other process gets the folder: a lock that ends with this process, however
    it ends (``flock``; on NFS it needs Linux 2.6.12 and a lock server, and where a file system has
    no locks that is printed). A start that fails before it made anything leaves no trace, and a
    folder that holds nothing but settings is no run. Of several hosts the first one takes it.

    A finished run whose last checkpoint is damaged counts as not finished: it is trained on from
    an older checkpoint. Raises UserError for a folder that another process works in, or that holds
    a run of other settings, naming those that differ.
    """
    wanted = config.as_json(record)
    _check_same(folder, wanted)
    if is_finished(folder) and _last_damage(folder) is None:
        return Claim(folder, finished=True, lock=None)
    lock = _locked(folder) if parallel.is_first() else None
    found = Claim(folder, finished=False, lock=lock)
    if lock is None:
        return found
    _check_same(folder, wanted)  # again: it may have been taken between the two
    damage = _last_damage(folder) if is_finished(folder) else None
    if damage is not None:
        print(f"{damage}; training {folder.name} again from what is whole")
        (folder / checkpoint.FINISHED).unlink()
    content = {**wanted, "versions": versions()}
    if not (folder / _SETTINGS).exists() or not _holds_results(folder):
        json_records.write(folder / _SETTINGS, content)
    found.finished = is_finished(folder)
    return found


def _check_same(folder: Path, wanted: Record) -> None:
    path = folder / _SETTINGS
    if not path.exists() and (is_finished(folder) or (folder / checkpoint.FOLDER).is_dir()):
        raise UserError(
            f"{folder} holds a run whose {_SETTINGS} is gone, so nobody knows how it was made; "
            "put the file back or delete the folder"
        )
    if not path.exists() or not _holds_results(folder):
        return
    old = {name: value for name, value in json_records.read(path).items() if name != "versions"}
    changed = config.differences(old, wanted)
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings; choose another folder or delete it:\n  "
            + "\n  ".join(changed)
        )


def _holds_results(folder: Path) -> bool:
    """Whether anything but settings is there; hidden files are no results."""
    return any(not p.name.startswith(".") and p.name != _SETTINGS for p in folder.iterdir())


def _last_damage(folder: Path) -> str | None:
    """What is wrong with the last checkpoint of a finished run, None where it is whole."""
    return Checkpoints(folder / checkpoint.FOLDER).damage() or checkpoint.ended(folder)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock. UserError where another process has it."""
    path = folder / _LOCK
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, wanted the folder of a run")
    with naming(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        owner = os.read(lock, 200).decode(errors="replace").strip() or "another process"
        if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(lock)
            raise UserError(
                f"{folder}: {owner} is at work in it; wait for it, or choose another folder"
            ) from problem
        print(f"{folder}: no locks here ({problem.strerror}); start nothing else in this folder")
        return lock
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    return lock


def ending(folder: Path) -> str:
    """Which checkpoint a finished run ended with: a run that was trained anew has another."""
    return (folder / checkpoint.FINISHED).read_text(errors="replace").partition("\n")[2].strip()


def is_finished(folder: Path) -> bool:
    """Whether the run was trained to its end."""
    return (folder / checkpoint.FINISHED).exists()


def learn(
    system: System,
    batches: ReportingBatches,
    plan: loop.Loop,
    folder: Path,
    *,
    seed: int,
) -> Path:
    """Train to the end, or from where an earlier call was stopped, and mark the run finished.

    seed: where all randomness starts. Shows a progress bar.
    """
    memory.give_back()
    with meter(f"train {folder.name}", plan.steps, "steps") as bar:

        def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
            note = f"loss {metrics['loss']:.4f}  {metrics['images_per_second']:.1f} images/s"
            if "utilisation" in metrics:  # only of devices whose peak is known
                note += f"  {metrics['utilisation']:.0%} of peak"
            skipped = int(metrics.get("skipped", 0))
            bar.advance(done - bar.done, note + (f"  {skipped} bad steps" if skipped else ""))

        loop.fit(
            system,
            batches,
            plan,
            folder=folder,
            key=jax.random.key(seed),
            progress=progress,
            resumed=bar.start_at,
        )
    skipped = {
        id: why for one in parallel.from_each_host(batches.skipped) for id, why in one.items()
    }
    left_out.note(f"train {folder.name}", len(skipped))
    for reason, ids in _by_reason(skipped).items():
        named = first_few(ids)
        print(f"train {folder.name}: left out {named}: {reason}")
    if parallel.is_first():
        last = Checkpoints(folder / checkpoint.FOLDER).identity()
        write_atomic(folder / checkpoint.FINISHED, f"{plan.steps} steps\n{last}\n".encode())
    return folder


def record_of(folder: Path, how: str) -> Record:
    """The record of a finished run. BadFileError where there is none, with ``how`` to make it."""
    path = folder / _SETTINGS
    if not path.is_file() or not is_finished(folder):
        raise BadFileError(f"{folder}: no finished run; {how} into it first")
    return json_records.read(path, "settings")


def last_state(folder: Path, template: PyTree) -> PyTree:
    """The final state of a run.

    Raises BadFileError where its checkpoint is gone, CorruptCheckpointError where it is damaged:
    an older state is never taken for the final one.
    """
    try:
        found = Checkpoints(folder / checkpoint.FOLDER).last(template)
        other = checkpoint.ended(folder)
        if other is not None:
            raise CorruptCheckpointError(other)
    except CorruptCheckpointError as problem:
        raise CorruptCheckpointError(
            f"{problem}\n  train {folder.name} again by the same command: it resumes from what is "
            "intact"
        ) from problem
    if found is None:
        raise BadFileError(f"{folder}: finished, but without a checkpoint; train it again")
    return states.settled(found.state)


def versions() -> dict[str, str]:
    """Versions of what decides about results, for provenance."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "grain")
    found = {name: metadata.version(name) for name in names}
    found["wsss_jax"] = __version__
    return {"python": platform.python_version(), **found, "device": jax.devices()[0].device_kind}


def _by_reason(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for id, reason in sorted(skipped.items()):
        found.setdefault(reason, []).append(id)
    return found
