"""What all per-image stages share: one loop with progress, signals, and a tally of what failed."""

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wsss_jax import memory
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.run import left_out
from wsss_jax.run.executors import Workers, map_unordered
from wsss_jax.run.progress import meter
from wsss_jax.signals import StopFlag, stop_signals

T = TypeVar("T")
R = TypeVar("R")

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

    def report(self, stage: str, folder: Path | None = None) -> None:
        """Print what was skipped, and count it for the command's last line and exit code.

        folder: what the stage writes, where another folder may have its name.
        """
        total = self.done + len(self.skipped)
        left_out.note(stage, len(self.skipped), total, folder=folder)
        if not self.skipped:
            return
        print(f"{stage}: skipped {len(self.skipped)} image(s)")
        for id, reason in sorted(self.skipped.items())[:SHOWN]:
            print(f"  {id}: {reason}")
        if len(self.skipped) > SHOWN:
            print(f"  … and {len(self.skipped) - SHOWN} more, all in the list next to the results")


def each(
    title: str,
    function: Callable[[str], R],
    ids: Sequence[str],
    *,
    workers: Workers,
    collect: Callable[[str, R], None] = lambda id, value: None,
) -> Tally:
    """Run ``function`` on each of our share of the ids; ``collect`` receives what it returns.

    A share of less than all is announced, since job arrays are recognised without being named.
    Raises Interrupted after SIGTERM or Ctrl-C, once the images being worked on are finished, and
    OSError for a disk that is full or read-only; finished images stay finished in both cases.
    """
    share, shard = workers.share(ids), workers.share_number()
    skipped: dict[str, str] = {}
    if shard[1] > 1:
        print(f"{title}: share {shard[0]} of {shard[1]}, {len(share)} of {len(ids)} images")

    def finished(stop: StopFlag) -> Generator[int, None, None]:
        # Closed here and not when memory is reclaimed: no process outlives its stage.
        with closing(map_unordered(function, share, workers, stop.is_set)) as outcomes:
            for outcome in outcomes:
                if outcome.failure is None:
                    collect(outcome.id, outcome.value)
                    yield 1
                else:
                    skipped[outcome.id] = outcome.failure
                    yield 0

    return Tally(_counted(title, len(share), finished, skipped), skipped, shard)


def over_groups(
    title: str,
    groups: Iterable[T],
    total: int,
    function: Callable[[T], int],
    skipped: Mapping[str, str],
) -> Tally:
    """Call ``function`` on every group of images, with progress and with care for signals.

    groups: made one after the other (``batches.batches.inference_groups``). total: how many images
    they are of, skipped ones too. function: writes the results of a group and returns of how many
    images; what it raises ends the work. skipped: reasons by id, filled in by whoever makes the
    groups (``skip=skipped.__setitem__``). The tally is for ``settle``.

    Raises Interrupted after SIGTERM or Ctrl-C, once the group being worked on is finished.
    """

    def finished(stop: StopFlag) -> Generator[int, None, None]:
        for group in groups:
            yield function(group)

    return Tally(_counted(title, total, finished, skipped), skipped)


def _counted(
    title: str,
    total: int,
    finished: Callable[[StopFlag], Generator[int, None, None]],
    skipped: Mapping[str, str],
) -> int:
    """The one loop: how many images ``finished`` counted, shown as they come."""
    done = 0
    if not total:
        return done
    memory.give_back()
    with stop_signals() as stop, meter(title, total) as bar, closing(finished(stop)) as counts:
        for count in counts:
            done += count
            note = f"({len(skipped)} skipped)" if skipped else ""
            bar.advance(done + len(skipped) - bar.done, note)
            stop.check()
    return done


def settle(store: Store, tally: Tally) -> None:
    """Print and list what a stage skipped; gather the records of a large store in shards.

    Raises UserError when another command has meanwhile taken the store for other settings (nobody
    is locked out of a store, so that machines may share it), and BadFileError when images were
    tried and the store is still empty: that is no bad image but a bad setting, and the steps
    behind it would work on nothing.
    """
    if stores.open_store(store.folder) != store:
        raise UserError(
            f"{store.folder}: another command has written other settings there meanwhile; delete "
            "the folder and give one of the commands again"
        )
    if tally.done:
        store.gather()
    tally.report(store.folder.name, store.folder)
    record_skipped(store.folder, tally)
    if tally.skipped and not store.ids():
        id, reason = min(tally.skipped.items())
        raise BadFileError(
            f"{store.folder}: all {len(tally.skipped)} images failed, first {id}: {reason}"
        )


def list_name(what: str, shard: tuple[int, int]) -> str:
    """The file that lists what a share of the images lacks: skipped.json, skipped_1_of_4.json."""
    index, count = shard
    return f"{what}.json" if count == 1 else f"{what}_{index}_of_{count}.json"


def record_skipped(folder: Path, tally: Tally) -> None:
    """Write the skipped ids and reasons beside the store, or remove a list that no longer holds.

    Each share has a list of its own, skipped_1_of_4.json, so that none erases another's; who works
    on all images takes over the lists of shares.
    """
    if tally.shard[1] == 1:
        for one in folder.glob("skipped_*_of_*.json"):
            one.unlink(missing_ok=True)
    path = folder / list_name("skipped", tally.shard)
    if tally.skipped:
        write_atomic(path, json.dumps(dict(tally.skipped), indent=1, sort_keys=True).encode())
    else:
        path.unlink(missing_ok=True)
