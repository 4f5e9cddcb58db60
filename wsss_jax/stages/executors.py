"""Work on one image at a time, here or on all cores: one small interface for every such stage.

``map_unordered(function, ids, workers)`` yields one outcome per id as it comes. A failing image
does not stop the others: it comes back as a Failure with its id and reason. A worker that is
killed (out of memory, say) takes nothing with it but the image it worked on.
"""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

IN_FLIGHT = 4
"""Items handed to each worker ahead of time: keeps workers busy and memory flat."""


@dataclass(frozen=True)
class Workers:
    """How many processes share the images of a stage, and which share of them is ours.

    count: processes on this machine, 1 works in this one. shard: (index, count) of this job when
    several machines work on the same folder; job arrays of SLURM and Kubernetes are recognised.
    """

    count: int = 1
    shard: tuple[int, int] | None = None

    def share(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Our share of the ids: every count-th one, starting at our index."""
        index, count = self.shard or shard_of_environment(os.environ)
        if not 0 <= index < count:
            raise ValueError(f"shard {index} of {count}; the index counts from 0")
        return tuple(ids[index::count])


@dataclass(frozen=True)
class Outcome:
    """What became of one image: the function's value, or the reason it failed."""

    id: str
    value: Any = None
    failure: str | None = None


def shard_of_environment(environment: Any) -> tuple[int, int]:
    """(index, count) from a SLURM job array or a Kubernetes indexed job; (0, 1) without one."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        index = int(environment["SLURM_ARRAY_TASK_ID"]) - first
        return index, int(environment.get("SLURM_ARRAY_TASK_COUNT", 1))
    if "JOB_COMPLETION_INDEX" in environment:
        if "JOB_COMPLETIONS" not in environment:
            raise ValueError(
                "JOB_COMPLETION_INDEX is set but JOB_COMPLETIONS is not; set it to the number of "
                "jobs, or give --workers.shard INDEX COUNT"
            )
        return int(environment["JOB_COMPLETION_INDEX"]), int(environment["JOB_COMPLETIONS"])
    return 0, 1


def map_unordered(
    function: Callable[[str], Any], ids: Sequence[str], workers: Workers
) -> Iterator[Outcome]:
    """Call ``function`` on each id; yields an Outcome as each is finished, in any order.

    With several workers the function must be picklable (a module-level function, or
    functools.partial of one). Raises OSError when the disk is full: what was written stays.
    """
    if workers.count == 1:
        yield from (_outcome(function, id) for id in ids)
        return
    left = list(dict.fromkeys(ids))
    for _ in range(2):
        for outcome in _pool(function, tuple(left), workers.count):
            left.remove(outcome.id)
            yield outcome
        if not left:
            return
    # Twice a worker died: one image at a time shows which one kills it.
    for id in left:
        found = list(_pool(function, [id], 1))
        yield found[0] if found else Outcome(id, failure="the worker was killed (out of memory?)")


def _pool(function: Callable[[str], Any], ids: Sequence[str], count: int) -> Iterator[Outcome]:
    """Outcomes until all are done or a worker dies; what is then unfinished is simply absent."""
    context = multiprocessing.get_context("spawn")
    queue = iter(ids)
    running: set[Future] = set()
    with ProcessPoolExecutor(count, context, initializer=_enter_worker) as pool:
        try:
            while True:
                while len(running) < IN_FLIGHT * count and (id := next(queue, None)) is not None:
                    running.add(pool.submit(_outcome, function, id))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from [future.result() for future in finished]
        except BrokenProcessPool:
            return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _outcome(function: Callable[[str], Any], id: str) -> Outcome:
    try:
        return Outcome(id, function(id))
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return Outcome(id, failure=f"{type(problem).__name__}: {problem}")
    except Exception as problem:  # one poison image must not stop the others
        return Outcome(id, failure=f"{type(problem).__name__}: {problem}")


def _enter_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides how to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
