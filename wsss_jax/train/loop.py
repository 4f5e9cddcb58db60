"""The one training loop: batches in, steps run, metrics written, checkpoints kept.

It knows nothing of what is learned. A run that was stopped, by SIGTERM, Ctrl-C or kill -9, goes on
from its last checkpoint with the identical order of data and ends with the identical result. With
several hosts (``jax.distributed``) all stop at the same step when one of them is told to, and
more or fewer of them may go on.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from wsss_jax.config import lookup
from wsss_jax.data.files import naming, write_atomic
from wsss_jax.errors import DivergedError, UserError
from wsss_jax.signals import Interrupted, StopFlag, stop_signals
from wsss_jax.train import parallel
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.curves import Curves
from wsss_jax.train.utilisation import Utilisation
from wsss_jax.types import Batch, System

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with (done, total, latest metrics)."""


@runtime_checkable
class Batches(Protocol):
    """An iterator over batches that can say where it is and go back there."""

    def __next__(self) -> Batch:
        """This host's part of the next batch."""
        ...

    def get_state(self) -> Any:
        """The position, as JSON values that are the same on all hosts."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a position that ``get_state`` gave."""
        ...


@dataclass(frozen=True)
class Loop:
    """How long to train and how often to save.

    steps: batches. save_every, log_every: in steps. max_bad_steps: non-finite updates
    in a row (each is skipped) after which training stops with an error. compute: the type in which
    networks compute; parameters, their gradients, norms and losses are float32 all the same.
    engine: a name in ``parallel.ENGINES``. rate: the learning rate by step, for the metrics.
    """

    steps: int
    save_every: int = 100
    log_every: int = 5
    max_bad_steps: int = 10
    compute: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["mesh", "pmap"] = "mesh"
    rate: Callable[[int], float] | None = None


def fit(
    system: System,
    batches: Batches,
    loop: Loop,
    *,
    folder: Path,
    key: PRNGKeyArray,
    progress: Progress = lambda done, total, metrics: None,
    resumed: Callable[[int], None] = lambda done: None,
) -> PyTree:
    """Train until ``loop.steps`` and return the last state.

    folder: gets checkpoint/, metrics.jsonl and, where the extra ``tb`` is installed, the same
    curves for TensorBoard. key: all randomness of the steps and of the start.
    resumed: told the step from which an earlier run is continued.
    Raises DivergedError after too many non-finite steps in a row, Interrupted after a signal;
    the checkpoint is kept in both cases.
    """
    engine = lookup(parallel.ENGINES, loop.engine, "engine")(in_type(system.step, loop.compute))
    checkpoints = Checkpoints(folder / "checkpoint")
    start, state = _start(system, batches, checkpoints, key)
    state = engine.put(state)
    log = _Log(folder / "metrics.jsonl", start, loop)
    saved = start
    if start:
        resumed(start)

    def save(done: int) -> None:
        nonlocal saved
        if done > saved:
            checkpoints.save(done, engine.take(state), {"batches": batches.get_state()})
            saved = done

    with stop_signals() as stop, closing(log):
        latest: parallel.Metrics = {}
        step: parallel.Step | None = None
        for done in range(start, loop.steps):
            rows = next(batches)
            batch, step_key = engine.split(rows), jax.random.fold_in(key, done)
            log.count(len(rows.real), engine.step, state, batch, step_key)
            before = latest
            step = step or parallel.compiled(engine.step, state, batch, step_key)
            state, latest = step(state, batch, step_key)
            # One step stays in flight: un-bounded loops of collectives deadlock on small hosts.
            jax.block_until_ready(before)
            shown = log.write(done + 1, latest)
            if shown is not None:
                progress(done + 1, loop.steps, shown)
            if shown is not None and shown.get("bad_in_a_row", 0) >= loop.max_bad_steps:
                raise DivergedError(_advice(loop, done + 1, checkpoints.folder))
            due = (done + 1) % loop.save_every == 0 or done + 1 == loop.steps
            told = _told(stop, asked=due or shown is not None)
            if told or due:
                save(done + 1)
            if told:
                raise Interrupted(told)
    return engine.take(state)


def in_type(step: parallel.Step, compute: str) -> parallel.Step:
    """The step on images of this type, which is that in which networks compute.

    They turn their float32 parameters to it layer by layer, so gradients arrive in float32.
    """
    dtype = lookup(_TYPES, compute, "type to compute in")

    def typed(state: PyTree, batch: PyTree, key: PRNGKeyArray) -> tuple[PyTree, parallel.Metrics]:
        return step(state, replace(batch, images=jnp.asarray(batch.images, dtype)), key)

    return typed


_TYPES = MappingProxyType({"float32": jnp.float32, "bfloat16": jnp.bfloat16})


def _told(stop: StopFlag, *, asked: bool) -> int:
    """The signal that ends the run, 0 for none. One host looks at every step.

    Several agree at the steps where all of them ask: a host that stopped alone would leave the
    others waiting in the next step for ever.
    """
    if jax.process_count() == 1:
        return stop.number
    return parallel.highest(stop.number) if asked else 0


def _advice(loop: Loop, done: int, folder: Path) -> str:
    return (
        f"{loop.max_bad_steps} steps in a row are not finite, at step {done}; the last good state "
        f"is in {folder}. Lower the learning rate (optim.learning-rate) or clip gradients "
        "(optim.clip 5)"
    )


def _start(
    system: System, batches: Batches, checkpoints: Checkpoints, key: PRNGKeyArray
) -> tuple[int, PyTree]:
    state = system.init(key)
    found = checkpoints.newest_whole(state)
    done = 0 if found is None else found.step
    starts = parallel.from_each_host(done)
    if len(set(starts)) > 1:
        raise UserError(
            f"{checkpoints.folder}: the hosts find different steps in it ({starts}); they must "
            "share one folder, on a file system that all of them can read and write"
        )
    if found is None:
        return 0, state
    checkpoints.drop_after(done)  # damaged steps, which will be written again
    batches.set_state(found.extra["batches"])
    return done, found.state


class _Log:
    """Appends metrics as JSON lines; lines of steps that will run again are dropped first."""

    def __init__(self, path: Path, start: int, loop: Loop) -> None:
        self.path, self.loop = path, loop
        self.since, self.images, self.utilisation = time.perf_counter(), 0, Utilisation()
        self.writes = parallel.is_first()
        self.curves = Curves(path.parent, start)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.writes and path.exists():
            lines = path.read_text(errors="replace").splitlines()
            kept = [line + "\n" for line in lines if _step_of(line) <= start]
            write_atomic(path, "".join(kept).encode())

    def count(self, rows: int, step: parallel.Compiled, *arguments: PyTree) -> None:
        """Note a step on so many images of this host, before it is made."""
        self.images += rows * jax.process_count()
        if self.loop.engine == "mesh":
            self.utilisation.add(step, *arguments)

    def write(self, done: int, metrics: parallel.Metrics) -> dict[str, float] | None:
        """The metrics as numbers, and a line of them, where one is due."""
        if done % self.loop.log_every and done != self.loop.steps:
            return None
        shown = {name: float(value) for name, value in metrics.items()}
        if self.loop.rate is not None:
            shown["learning_rate"] = self.loop.rate(done - 1)
        now = time.perf_counter()
        shown["images_per_second"] = self.images / max(now - self.since, 1e-9)
        share = self.utilisation.share(now - self.since)
        if share is not None:
            shown["utilisation"] = share
        self.since, self.images = now, 0
        if self.writes:
            with naming(self.path), self.path.open("a") as file:
                file.write(json.dumps({"step": done, **shown}) + "\n")
            self.curves.add(done, shown)
        return shown

    def close(self) -> None:
        """Nothing follows."""
        self.curves.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut off by kill -9
