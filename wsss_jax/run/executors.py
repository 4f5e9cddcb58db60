"""Work on one image at a time: here, on all cores, on several machines, or on Ray.

``map_unordered(function, ids, workers)`` yields one outcome per id as it comes. A failing image
does not stop the others: it comes back as an Outcome with the reason. A worker that is
killed (out of memory, say) takes nothing with it but the image it worked on. Only a disk that
cannot be written stops the work at once, as every further image would fail the same way.

Every function here writes its own result under the image's name, whole or not at all, so runs may
be stopped, started again, and run twice at once: the worst is an image computed twice.

Processes compute on the CPU with one thread each (``ONE_THREAD``): as many as there are cores keep
the machine busy without fighting, and leave an accelerator to a run without processes.
"""

import errno
import importlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from wsss_jax.errors import UserError
from wsss_jax.run import processes

ONE_THREAD = MappingProxyType(
    {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "NPROC": "1",  # XLA sizes its thread pools by it
        "JAX_PLATFORMS": "cpu",  # each process would take most of an accelerator's memory
    }
)
"""Environment in which workers start; libraries read it when they are loaded."""

KILLED = "the worker was killed while it worked on this image alone (out of memory?)"

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# Photographs and records that cannot be read are BadFileErrors, so these come from writing.

Function = Callable[[str], object]


@dataclass(frozen=True)
class Workers:
    """How many processes share the images of a stage, and which share of them is ours.

    Attributes:
        count: processes on this machine, or tasks at once on Ray; 1 works in this process.
        shard: index (from 0) and count of this job when several machines work on the same
            folder; job arrays of SLURM and Kubernetes are recognised.
        engine: pool of processes on this machine, or ray (the cluster of RAY_ADDRESS, or one
            started here).
    """

    count: int = 1
    shard: tuple[int, int] | None = None
    engine: Literal["pool", "ray"] = "pool"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"{self.count} workers; give 1 or more, at most one per core")
        if self.shard is not None:
            _check_shard(*self.shard)

    def share(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Our share of the ids.

        It depends on each id alone, not on its place: another run may have finished some of them
        in the meantime, and still no image belongs to two shares, or to none.
        """
        index, count = self.share_number()
        return tuple(id for id in ids if zlib.crc32(id.encode()) % count == index)

    def share_number(self) -> tuple[int, int]:
        """(index, count) of our share, (0, 1) for all. ValueError when the environment is odd."""
        return self.shard or shard_of_environment(os.environ)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: the function's value, or the reason it failed."""

    id: str
    value: Any = None
    failure: str | None = None


def shard_of_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, count) from a SLURM job array or a Kubernetes indexed job; (0, 1) without one.

    Raises ValueError for an array whose numbers are no run of consecutive ones.
    """
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        index = int(environment["SLURM_ARRAY_TASK_ID"]) - first
        return _check_shard(index, int(environment.get("SLURM_ARRAY_TASK_COUNT", 1)))
    if "JOB_COMPLETION_INDEX" in environment:
        if "JOB_COMPLETIONS" not in environment:
            raise UserError(
                "JOB_COMPLETION_INDEX is set but JOB_COMPLETIONS is not; set it to the number of "
                "jobs, or give --workers.shard INDEX COUNT"
            )
        index, count = environment["JOB_COMPLETION_INDEX"], environment["JOB_COMPLETIONS"]
        return _check_shard(int(index), int(count))
    return 0, 1


def map_unordered(
    function: Function,
    ids: Iterable[str],
    workers: Workers,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Outcome, None, None]:
    """Call ``function`` once per id; yields an Outcome as each is finished, in any order.

    stopped: asked while waiting; where it is true the iterator ends early.

    With several workers the function must be picklable (a module-level function, or
    functools.partial of one); it travels once per worker, not once per image. Closing the iterator
    waits for the images being worked on and drops the others.

    Raises OSError when the disk is full or read-only, ChildProcessError when workers cannot even
    start, ValueError for Ray where it is not installed.
    """
    distinct = list(dict.fromkeys(ids))
    if workers.engine == "ray":
        yield from _on_ray(function, distinct, workers.count, stopped)
    elif workers.count == 1:
        for id in distinct:
            yield from _finished([_attempt(function, id)])
    else:
        yield from _in_processes(function, distinct, workers.count, stopped)


def _in_processes(
    function: Function, ids: Sequence[str], count: int, stopped: Callable[[], bool]
) -> Iterator[Outcome]:
    run = partial(processes.run, partial(_attempt, function), environment=ONE_THREAD)
    suspects = yield from _gathered(run(deque(ids), count, stopped=stopped))
    # Others may have taken the memory: whoever died gets a second chance, alone.
    killers = yield from _gathered(run(suspects, 1, stopped=stopped))
    if not stopped():
        yield from (Outcome(id, failure=KILLED) for id in killers)


def _gathered(
    results: Generator[Outcome | OSError, None, deque[str]],
) -> Generator[Outcome, None, deque[str]]:
    """The outcomes among the results, as they come; raises the first error among them."""
    try:
        while True:
            try:
                result = next(results)
            except StopIteration as end:
                return end.value
            yield from _finished([result])
    finally:
        results.close()


def _finished(results: Sequence[Outcome | OSError]) -> Iterator[Outcome]:
    """The outcomes among the results; then raises the error among them, if there is one."""
    yield from (result for result in results if isinstance(result, Outcome))
    for result in results:
        if isinstance(result, OSError):
            raise result


def _on_ray(
    function: Function, ids: Sequence[str], count: int, stopped: Callable[[], bool]
) -> Iterator[Outcome]:
    """Outcomes of tasks on Ray, ``count`` at once; Ray itself starts a killed task once more."""
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        local = {"address": "local", "num_cpus": count, "include_dashboard": False}
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))

    environment = {"env_vars": dict(ONE_THREAD)}
    task = ray.remote(_attempt).options(num_cpus=1, max_retries=1, runtime_env=environment)
    shared = ray.put(function)  # travels to each machine once, not with every image
    queue, running = deque(ids), {}
    try:
        while (queue or running) and not stopped():
            while queue and len(running) < count:
                id = queue.popleft()
                running[task.remote(shared, id)] = id
            for reference in ray.wait(list(running), timeout=processes.PATIENCE)[0]:
                id = running.pop(reference)
                try:
                    yield from _finished([ray.get(reference)])
                except ray.exceptions.RayError as problem:
                    yield Outcome(id, failure=f"{KILLED}: {type(problem).__name__}")
    finally:
        for reference in running:
            ray.cancel(reference)
        if ours:
            ray.shutdown()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as problem:
        raise UserError(
            "workers.engine is ray, but Ray is not installed: pip install 'wsss-jax[ray]', or "
            "choose the engine pool"
        ) from problem


def _attempt(function: Function, id: str) -> Outcome | OSError:
    """The outcome of one image, or the error that would meet every other image too."""
    try:
        return Outcome(id, function(id))
    except Exception as problem:  # one poison image must not stop the others
        if isinstance(problem, OSError) and problem.errno in _FATAL:
            return problem
        return Outcome(id, failure=f"{type(problem).__name__}: {problem}")


def _check_shard(index: int, count: int) -> tuple[int, int]:
    if not 0 <= index < count:
        raise UserError(
            f"shard {index} of {count}; the index counts from 0. Job arrays must be numbered "
            "without gaps, or give --workers.shard INDEX COUNT"
        )
    return index, count
