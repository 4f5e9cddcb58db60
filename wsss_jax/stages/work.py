"""What all per-image stages share: progress, interruption, and an honest tally of what failed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_jax.data.files import write_atomic
from wsss_jax.stages.executors import Workers, map_unordered
from wsss_jax.stages.progress import meter
from wsss_jax.train.loop import Interrupted, stop_signals

SHOWN = 5
"""Failures printed one by one; the others are in skipped.json."""


@dataclass(frozen=True)
class Tally:
    """How a stage went: images finished now, and reasons of those that were skipped, by id."""

    done: int
    skipped: Mapping[str, str]

    def report(self, stage: str) -> None:
        """Print what was skipped, so that nothing goes missing silently."""
        if not self.skipped:
            return
        print(f"{stage}: skipped {len(self.skipped)} image(s)")
        for id, reason in sorted(self.skipped.items())[:SHOWN]:
            print(f"  {id}: {reason}")
        if len(self.skipped) > SHOWN:
            print(f"  … and {len(self.skipped) - SHOWN} more, listed in skipped.json")


def each(
    title: str,
    function: Callable[[str], Any],
    ids: Sequence[str],
    *,
    workers: Workers,
    collect: Callable[[str, Any], None] = lambda id, value: None,
) -> Tally:
    """Run ``function`` on each of our share of the ids; ``collect`` receives what it returns.

    Raises Interrupted after SIGTERM or Ctrl-C; finished images stay finished.
    """
    share = workers.share(ids)
    skipped: dict[str, str] = {}
    done = 0
    if not share:
        return Tally(0, skipped)
    with stop_signals() as stop, meter(title, len(share)) as bar:
        for outcome in map_unordered(function, share, workers):
            if outcome.failure is None:
                collect(outcome.id, outcome.value)
                done += 1
            else:
                skipped[outcome.id] = outcome.failure
            bar.advance(1, f"({len(skipped)} skipped)" if skipped else "")
            if stop.is_set():
                raise Interrupted(128 + stop.number)
    return Tally(done, skipped)


def record_skipped(folder: Path, tally: Tally) -> None:
    """Write the skipped ids and reasons beside the store, or remove a list that no longer holds."""
    path = folder / "skipped.json"
    if tally.skipped:
        write_atomic(path, json.dumps(dict(tally.skipped), indent=1, sort_keys=True).encode())
    else:
        path.unlink(missing_ok=True)
