"""Progress of long work: a bar with rate and time left, plain lines where no terminal is."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class Meter:
    """Counts finished items and shows how many come per second and how long the rest will take."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._bar = bar
        self._task = bar.add_task(title, total=total, note="") if bar else None
        self._since = self._said = time.monotonic()
        self._first = 0

    def start_at(self, done: int) -> None:
        """Items that were finished before, by an earlier run; they do not count for the rate."""
        self.done = self._first = done
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done)

    def reach(self, done: int, total: int) -> None:
        """So many of so many items are finished."""
        self.total = total
        if self._bar and self._task is not None:
            self._bar.update(self._task, total=total)
        self.advance(done - self.done)

    def advance(self, items: int = 1, note: str = "") -> None:
        """So many more items are finished; ``note`` is shown behind the rate."""
        self.done += items
        now = time.monotonic()
        elapsed = max(now - self._since, 1e-9)
        rate = (self.done - self._first) / elapsed
        text = f"{rate:.1f} {self.unit}/s {note}".rstrip()
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=text)
        elif now - self._said > PLAIN_EVERY or self.done >= self.total:
            self._said = now
            left = (self.total - self.done) / rate if rate else float("inf")
            share = f"{self.done}/{self.total}"
            print(f"{self.title}: {share}  {text}  {_clock(left)} left", flush=True)


@contextmanager
def meter(title: str, total: int, unit: str = "images") -> Iterator[Meter]:
    """Show the progress of ``total`` items of work while the block runs."""
    console = Console(stderr=False)
    if not (console.is_terminal and sys.stdout.isatty()):
        yield Meter(title, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield Meter(title, total, unit, bar)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
