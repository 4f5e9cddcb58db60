"""The folder of a training run, whatever is learned: settings.json, metrics.jsonl, checkpoint/.

A folder belongs to one setting of everything; the same command goes on with it, another one is
refused with the settings that differ.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_jax import config
from wsss_jax.data.batches import TrainingBatches
from wsss_jax.data.evidence_batches import EvidenceBatches
from wsss_jax.data.files import BadFileError, write_atomic
from wsss_jax.stages import fit
from wsss_jax.train import loop
from wsss_jax.train import state as states
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.types import System

_CHOSEN = "best"
"""Folder, within a run's, of the state that stands for it."""


@dataclass(frozen=True)
class Course:
    """How long a run is, where its randomness starts, and how often it is saved (in steps)."""

    steps: int
    seed: int
    save_every: int


def claim(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record into the folder, or find the same one there. ValueError for another."""
    path = folder / "settings.json"
    if path.exists():
        old = {k: v for k, v in json.loads(path.read_text()).items() if k != "versions"}
        changed = config.differences(old, config.as_json(record))
        if changed:
            raise ValueError(
                f"{folder} holds a run with other settings; choose another folder or delete it:\n  "
                + "\n  ".join(changed)
            )
        return
    content = {**config.as_json(record), "versions": fit.versions()}
    write_atomic(path, json.dumps(content, indent=1).encode())


def is_finished(folder: Path) -> bool:
    """Whether the run was trained to its end."""
    return (folder / "finished").exists()


def learn(
    system: System,
    batches: TrainingBatches | EvidenceBatches,
    course: Course,
    folder: Path,
    watch: Callable[[int, Any], bool] | None = None,
) -> None:
    """Train to the end, or from where an earlier call was stopped, and mark the run finished.

    watch: shown step and state after each regular save; True is the end.
    """
    plan = loop.Loop(course.steps, save_every=course.save_every)
    fit.learn(system, batches, plan, folder=folder, seed=course.seed, watch=watch)


def record_of(folder: Path, how: str) -> dict[str, Any]:
    """The record of a finished run. BadFileError where there is none, with ``how`` to make it."""
    path = folder / "settings.json"
    if not path.is_file() or not is_finished(folder):
        raise BadFileError(f"{folder}: no finished run; {how} into it first")
    return json.loads(path.read_text())


def choose(folder: Path, step: int, state: Any) -> None:
    """Keep a state that stands for the run in place of its last one (``chosen_state``)."""
    Checkpoints(folder / _CHOSEN / "checkpoint", keep=1).save(step, state, {})


def chosen_state(folder: Path, template: Any) -> Any:
    """The state that was chosen for a run, or its last one where none was."""
    chosen = folder / _CHOSEN
    return last_state(chosen if chosen.is_dir() else folder, template)


def last_state(folder: Path, template: Any) -> Any:
    """The final state of a run. BadFileError where its checkpoint is gone."""
    found = Checkpoints(folder / "checkpoint").restore(template)
    if found is None:
        raise BadFileError(f"{folder}: finished, but without a checkpoint; delete it, train again")
    return states.settled(found[1])
