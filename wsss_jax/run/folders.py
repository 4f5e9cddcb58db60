"""The folder of a training run, whatever is learned: settings.json, metrics.jsonl, checkpoint/.

A folder belongs to one setting of everything; the same command goes on with it, another one is
refused with the settings that differ.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

from wsss_jax import __version__, config
from wsss_jax.data.files import write_atomic
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.run.progress import meter
from wsss_jax.train import loop
from wsss_jax.train import state as states
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.types import System

_CHOSEN = "best"
"""Folder, within a run's, of the state that stands for it."""


@dataclass(frozen=True)
class Course:
    """How long a run is, where its randomness starts, and how often it is saved (in steps).

    compute: the type in which networks compute. engine: mesh (one step over all devices) or pmap.
    """

    steps: int
    seed: int
    save_every: int
    compute: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["mesh", "pmap"] = "mesh"


def claim(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record into the folder, or find the same one there. ValueError for another."""
    path = folder / "settings.json"
    if path.exists():
        old = {k: v for k, v in json.loads(path.read_text()).items() if k != "versions"}
        changed = config.differences(old, config.as_json(record))
        if changed:
            raise UserError(
                f"{folder} holds a run with other settings; choose another folder or delete it:\n  "
                + "\n  ".join(changed)
            )
        return
    content = {**config.as_json(record), "versions": versions()}
    write_atomic(path, json.dumps(content, indent=1).encode())


def is_finished(folder: Path) -> bool:
    """Whether the run was trained to its end."""
    return (folder / "finished").exists()


def learn(
    system: System,
    batches: Any,
    course: Course,
    folder: Path,
    watch: Callable[[int, Any], bool] | None = None,
) -> Path:
    """Train to the end, or from where an earlier call was stopped, and mark the run finished.

    Shows a progress bar. watch: shown step and state after each regular save; True is the end.
    """
    plan = loop.Loop(
        course.steps, save_every=course.save_every, compute=course.compute, engine=course.engine
    )
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
            key=jax.random.key(course.seed),
            progress=progress,
            resumed=bar.start_at,
            watch=watch,
        )
    for reason, ids in _by_reason(batches.skipped).items():
        named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        print(f"train {folder.name}: left out {named}: {reason}")
    write_atomic(folder / "finished", f"{plan.steps} steps\n".encode())
    return folder


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
