"""A pool of worker processes that knows what each of them works on.

Every worker has a pipe of its own, so that a worker's death (out of memory, say) names the image
that it worked on, and costs nothing else. The standard library's pool fails all images in flight
and can hang for ever when a worker dies while another is being started (seen on Python 3.11, as
`OSError: handle is closed` and as a manager that waits for a worker nobody stops).

Not here: what is done with an image, and what happens to those that were lost (``executors``).
"""

import atexit
import multiprocessing
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

from wsss_jax import signals

IN_FLIGHT = 2
"""Items handed to each worker ahead of time, so that it need not wait for the next one."""

PATIENCE = 0.2
"""Seconds between two looks at whether to stop, while nothing comes."""

Attempt = Callable[[str], object]
"""What a worker does with an id; its result, which must be picklable, is what comes back."""


def run(
    attempt: Attempt,
    ids: deque[str],
    count: int,
    *,
    environment: Mapping[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Any, None, deque[str]]:
    """Results in any order; returns the ids on which a worker died.

    attempt travels to each worker once. environment: variables that workers start with. stopped:
    asked while waiting; where it is true the generator ends. Ending or closing it waits for what
    is being worked on and drops the rest; workers that are still starting are not waited for.

    Raises ChildProcessError when a worker dies before it could take any work.
    """
    lost: deque[str] = deque()
    workers = []
    try:
        for _ in range(min(count, len(ids))):
            workers.append(_Worker.start(attempt, environment))
        while (ids or any(worker.ids for worker in workers)) and not stopped():
            for worker in workers:
                worker.feed(ids)
            for ready in connection.wait([worker.pipe for worker in workers], PATIENCE):
                worker = next(one for one in workers if one.pipe is ready)
                try:
                    result = worker.receive()
                except (EOFError, OSError):
                    workers.remove(worker)
                    lost += worker.buried(ids)
                    if ids:
                        workers.append(_Worker.start(attempt, environment))
                    continue
                if result is not _READY:
                    yield result
        return lost
    finally:
        for worker in workers:
            worker.pipe.close()  # the end of its input is a worker's sign to go
            if not worker.ready:
                worker.process.kill()  # it has no work yet, and may take seconds to start
        for worker in workers:
            worker.process.join()


@dataclass
class _Worker:
    """One process, our end of its pipe, and the ids that it has and has not answered."""

    process: SpawnProcess
    pipe: connection.Connection
    ids: deque[str] = field(default_factory=deque)
    ready: bool = False

    @classmethod
    def start(cls, attempt: Attempt, environment: Mapping[str, str]) -> "_Worker":
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # it would let signals through in the middle of a start
        ours, theirs = context.Pipe()
        _pipes.add(ours)
        process = context.Process(target=_work, args=(theirs, attempt), daemon=True)
        with _environment(environment), signals.held_back():
            process.start()
        theirs.close()
        return cls(process, ours)

    def feed(self, ids: deque[str]) -> None:
        """Hand over work; a worker that has died shows so when it is read from."""
        while self.ready and ids and len(self.ids) < IN_FLIGHT:
            try:
                self.pipe.send(ids[0])
            except OSError:
                return
            self.ids.append(ids.popleft())

    def receive(self) -> Any:
        """Its next message. EOFError or OSError when it is dead."""
        result = self.pipe.recv()
        if not self.ready:
            self.ready = True
            return _READY
        self.ids.popleft()
        return result

    def buried(self, ids: deque[str]) -> deque[str]:
        """The id that a dead worker was working on, if any; the others go back into ``ids``."""
        self.pipe.close()
        self.process.join()
        if not self.ready:
            raise ChildProcessError(
                "worker processes cannot start; their message is above. A script that starts them "
                'needs `if __name__ == "__main__":` around its work; one worker needs no process'
            )
        killers = deque([self.ids.popleft()] if self.ids else [])
        ids.extendleft(reversed(self.ids))
        return killers


_READY = object()

_pipes: "weakref.WeakSet[connection.Connection]" = weakref.WeakSet()


@atexit.register
def _dismiss() -> None:
    """Let workers go whose generator was never closed; they heed no signal."""
    for pipe in list(_pipes):
        pipe.close()


def _work(pipe: connection.Connection, attempt: Attempt) -> None:
    """The life of a worker: say that it is there, then one id after another until input ends."""
    signals.ignore()  # they may reach the whole process group; the parent decides how to stop
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        pipe.send(None)
        while True:
            pipe.send(attempt(pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has stopped listening


def _die_with_parent() -> None:
    # A parent that is killed says no goodbye, and a worker may be in the middle of a long image.
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
