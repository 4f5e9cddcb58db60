"""What all per-image stages share: progress, interruption, and an honest tally of what failed."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError
from wsss_jax.run.executors import Workers, map_unordered
from wsss_jax.run.progress import meter
from wsss_jax.train.loop import Interrupted, stop_signals

SHOWN = 5
"""Failures printed one by one; the list beside the store has all of them."""


@dataclass(frozen=True)
class Tally:
    """How a stage went: images finished now, and reasons of those that were skipped, by id.

    shard: (index, count) of the share that was worked on, (0, 1) for all images.
    """

    done: int
    skipped: Mapping[str, str]
    shard: tuple[int, int] = (0, 1)

    def report(self, stage: str) -> None:
        """Print what was skipped, so that nothing goes missing silently."""
        if not self.skipped:
            return
        print(f"{stage}: skipped {len(self.skipped)} image(s)")
        for id, reason in sorted(self.skipped.items())[:SHOWN]:
            print(f"  {id}: {reason}")
        if len(self.skipped) > SHOWN:
            print(f"  … and {len(self.skipped) - SHOWN} more, all listed beside the results")


def each(
    title: str,
    function: Callable[[str], Any],
    ids: Sequence[str],
    *,
    workers: Workers,
    collect: Callable[[str, Any], None] = lambda id, value: None,
) -> Tally:
    """Run ``function`` on each of our share of the ids; ``collect`` receives what it returns.

    A share of less than all is announced, since job arrays are recognised without being named.
    Raises Interrupted after SIGTERM or Ctrl-C, once the images being worked on are finished, and
    OSError for a disk that is full or read-only; finished images stay finished in both cases.
    """
    share, shard = workers.share(ids), workers.share_number()
    skipped: dict[str, str] = {}
    done = 0
    if shard[1] > 1:
        print(f"{title}: share {shard[0]} of {shard[1]}, {len(share)} of {len(ids)} images")
    if not share:
        return Tally(0, skipped, shard)
    # Closed here and not when memory is reclaimed: no process outlives its stage.
    with (
        stop_signals() as stop,
        meter(title, len(share)) as bar,
        closing(map_unordered(function, share, workers)) as outcomes,
    ):
        for outcome in outcomes:
            if outcome.failure is None:
                collect(outcome.id, outcome.value)
                done += 1
            else:
                skipped[outcome.id] = outcome.failure
            bar.advance(1, f"({len(skipped)} skipped)" if skipped else "")
            if stop.is_set():
                raise Interrupted(128 + stop.number)
    return Tally(done, skipped, shard)


def settle(store: Store, tally: Tally) -> None:
    """Print and list what a stage skipped.

    Raises BadFileError when images were tried and the store is still empty: that is no bad image
    but a bad setting, and the steps behind it would work on nothing.
    """
    tally.report(store.folder.name)
    record_skipped(store.folder, tally)
    if tally.skipped and not store.ids():
        id, reason = min(tally.skipped.items())
        raise BadFileError(
            f"{store.folder}: all {len(tally.skipped)} images failed, first {id}: {reason}"
        )


def record_skipped(folder: Path, tally: Tally) -> None:
    """Write the skipped ids and reasons beside the store, or remove a list that no longer holds.

    Each share has a list of its own, skipped_1_of_4.json, so that none erases another's.
    """
    index, count = tally.shard
    path = folder / ("skipped.json" if count == 1 else f"skipped_{index}_of_{count}.json")
    if tally.skipped:
        write_atomic(path, json.dumps(dict(tally.skipped), indent=1, sort_keys=True).encode())
    else:
        path.unlink(missing_ok=True)
