"""SIGINT and SIGTERM: one line, exit code 128 + signal, and work that can be gone on with.

Everything that is written is written whole or not at all, so a process may leave at any moment.
Long work leaves between two items (``stop_signals``); everything before, after and between leaves
at once (``catch``): an exception out of a signal handler could be swallowed by whatever code it
lands in, or end as a traceback out of half an import. Loads nothing but the standard library, so
that it can be called before everything else.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

WATCHED = (signal.SIGTERM, signal.SIGINT)

_SHOW_CURSOR = b"\r\x1b[?25h"
"""A progress bar hides the cursor; a process that leaves at once gives it back."""


class Interrupted(SystemExit):
    """The work was asked to stop and is saved; ``code`` is 128 + signal, the text is one line."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return _line(self.number)


class StopFlag:
    """Raised by the first SIGTERM or SIGINT. number: the signal, 0 before."""

    def __init__(self) -> None:
        self.number = 0

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.number:
            raise Interrupted(self.number)


def catch() -> None:
    """From now on SIGINT and SIGTERM end this process with one line and 128 + signal, at once.

    The first thing that the command line does, before slow imports. Signals that ``hold`` kept
    back for a program that replaced itself arrive now.
    """
    for number in WATCHED:
        signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def hold() -> None:
    """Keep SIGINT and SIGTERM waiting across ``os.exec``, until the new program calls ``catch``.

    Only where this program did: whoever never lets them through must not hold them.
    """
    if signal.getsignal(signal.SIGTERM) is _leave:
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)


@contextmanager
def held_back() -> Iterator[None]:
    """Processes that are started meanwhile begin with SIGINT and SIGTERM waiting.

    They reach none of their imports that way; it is theirs to ``ignore`` them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Leave stopping to the parent process, also of signals that are waiting."""
    for number in WATCHED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Turn SIGTERM and SIGINT into a flag that long work looks at between two items.

    A second signal ends the process at once. Raises Interrupted at the end of the block where a
    signal came and the block did not look. Outside the main thread signals cannot be caught and
    the flag never rises.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in WATCHED}

    def rise(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            _leave(number, frame)
        flag.number = number

    for number in WATCHED:
        signal.signal(number, rise)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    flag.check()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process here: nothing that it does now is needed for what is on disk."""
    for other in WATCHED:
        signal.signal(other, signal.SIG_IGN)
    if sys.stderr is not None and os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    # It may be closed, or this may have come in the middle of a print.
    with suppress(OSError, RuntimeError, ValueError, AttributeError):
        sys.stdout.flush()
    os.write(2, f"{_line(number)}\n".encode())
    os._exit(128 + number)


def _line(number: int) -> str:
    name = signal.Signals(number).name
    return f"stopped by {name}; the same command goes on from what is finished"
