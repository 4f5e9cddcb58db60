"""The one training loop: batches in, steps run, metrics written, checkpoints kept.

It knows nothing of what is learned. A run that was stopped, by SIGTERM, Ctrl-C or kill -9, goes on
from its last checkpoint with the identical order of data and ends with the identical result.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from wsss_jax.train import parallel
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.types import Batch, System

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with (done, total, latest metrics)."""


@runtime_checkable
class Batches(Protocol):
    """An iterator over batches that can say where it is and go back there."""

    def __next__(self) -> Batch:
        """The next batch of this host."""
        ...

    def get_state(self) -> Any:
        """The position, as JSON values."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a position that ``get_state`` gave."""
        ...


class DivergedError(RuntimeError):
    """Too many steps in a row were not finite."""


class Interrupted(SystemExit):
    """The run was asked to stop and has saved; the exit code is 128 + signal."""


@dataclass(frozen=True)
class Loop:
    """How long to train and how often to save.

    steps: optimizer updates. save_every, log_every: in steps. max_bad_steps: non-finite updates
    in a row (each is skipped) after which training stops with an error.
    """

    steps: int
    save_every: int = 100
    log_every: int = 5
    max_bad_steps: int = 10


def fit(
    system: System,
    batches: Batches,
    loop: Loop,
    *,
    folder: Path,
    key: Any,
    progress: Progress = lambda done, total, metrics: None,
    resumed: Callable[[int], None] = lambda done: None,
) -> Any:
    """Train until ``loop.steps`` and return the last state.

    folder: gets checkpoint/ and metrics.jsonl. key: all randomness of the steps and of the start.
    resumed: told the step from which an earlier run is continued.
    Raises DivergedError after too many non-finite steps in a row, Interrupted after a signal;
    the checkpoint is kept in both cases.
    """
    mesh = parallel.data_mesh()
    checkpoints = Checkpoints(folder / "checkpoint")
    start, state = _start(system, batches, checkpoints, key)
    state = parallel.replicate(state, mesh)
    step = jax.jit(system.step, donate_argnums=0)
    log = _Log(folder / "metrics.jsonl", start, loop)
    saved = start
    if start:
        resumed(start)

    def save(done: int) -> None:
        nonlocal saved
        if done > saved:
            checkpoints.save(done, state, {"batches": batches.get_state()})
            saved = done

    with stop_signals() as stop:
        latest: dict[str, Any] = {}
        for done in range(start, loop.steps):
            batch = parallel.split_rows(next(batches), mesh)
            before = latest
            state, latest = step(state, batch, jax.random.fold_in(key, done))
            # One step stays in flight: un-bounded loops of collectives deadlock on small hosts.
            jax.block_until_ready(before)
            shown = log.write(done + 1, latest, batch.images.shape[0])
            if shown is not None:
                progress(done + 1, loop.steps, shown)
            if shown is not None and shown.get("bad_in_a_row", 0) >= loop.max_bad_steps:
                raise DivergedError(
                    f"{loop.max_bad_steps} steps in a row are not finite, at step {done + 1}; "
                    f"the last good state is in {checkpoints.folder}. Lower the learning rate "
                    "(optim.learning-rate) or clip gradients (optim.clip 5)"
                )
            if stop.is_set() or (done + 1) % loop.save_every == 0 or done + 1 == loop.steps:
                save(done + 1)
            if stop.is_set():
                raise Interrupted(128 + stop.number)
    return state


def _start(system: System, batches: Batches, checkpoints: Checkpoints, key: Any) -> tuple[int, Any]:
    state = system.init(key)
    found = checkpoints.restore(state)
    if found is None:
        return 0, state
    done, state, extra = found
    batches.set_state(extra["batches"])
    return done, state


class _Log:
    """Appends metrics as JSON lines; lines of steps that will run again are dropped first."""

    def __init__(self, path: Path, start: int, loop: Loop) -> None:
        self.path, self.loop = path, loop
        self.since, self.images = time.perf_counter(), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.exists():
            kept = [ln for ln in path.read_text().splitlines() if _step_of(ln) <= start]
        path.write_text("".join(line + "\n" for line in kept))

    def write(self, done: int, metrics: dict[str, Any], rows: int) -> dict[str, float] | None:
        self.images += rows
        if done % self.loop.log_every and done != self.loop.steps:
            return None
        shown = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        shown["images_per_second"] = self.images / max(now - self.since, 1e-9)
        self.since, self.images = now, 0
        with self.path.open("a") as file:
            file.write(json.dumps({"step": done, **shown}) + "\n")
        return shown


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut off by kill -9


class StopFlag(threading.Event):
    """Set by the first SIGTERM or Ctrl-C; the second one stops at once."""

    number: int = 0


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Turn SIGTERM and Ctrl-C into a flag that long work looks at between two items.

    Outside the main thread signals cannot be caught and the flag never rises.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    watched = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in watched}

    def rise(number: int, frame: Any) -> None:
        flag.number = number
        if flag.is_set():
            raise Interrupted(128 + number)
        flag.set()

    for number in watched:
        signal.signal(number, rise)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
