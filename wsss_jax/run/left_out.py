"""What a command left out, so that it can say so last: exit code 3 in place of 0.

Stages note here how many images they skipped, and how many maps images go without; whoever runs a
whole command opens a record around it. Loads nothing, so that the command line may ask at no cost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

CODE = 3
"""Exit code of a command that is done, with images left out."""


@dataclass
class Record:
    """What was left out, by stage or, where two stages may have one name, by folder.

    stages: the stage's name, how many images, and of how many (0: not known). maps: the name, and
    how many maps of images that are there all the same.
    """

    stages: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    maps: dict[str, tuple[str, int]] = field(default_factory=dict)

    def exit_code(self, *, strict: bool = False) -> int:
        """0 where nothing was left out, else 3, or 1 where that counts as a failure."""
        if not self.stages and not self.maps:
            return 0
        return 1 if strict else CODE

    def line(self) -> str:
        """The last line of a command that left something out; "" where nothing was."""
        images = [
            f"{stage} {count} of {total}" if total else f"{stage} {count}"
            for stage, count, total in self.stages.values()
        ]
        maps = [f"{stage} {count}" for stage, count in self.maps.values()]
        kinds = (("image(s)", images), ("map(s)", maps))
        told = [f"{', '.join(parts)} {kind}" for kind, parts in kinds if parts]
        return f"left out: {', '.join(told)}; the reasons are above" if told else ""


_current: ContextVar[Record | None] = ContextVar("left_out", default=None)


@contextmanager
def recorded() -> Iterator[Record]:
    """Collect what all stages within the block leave out."""
    record = Record()
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


def note(stage: str, count: int, total: int = 0, *, folder: Path | None = None) -> None:
    """A stage left out so many of ``total`` images; 0 takes back what it said before.

    folder: what it writes, where another folder may have its name.
    """
    record = _current.get()
    if record is None:
        return
    key = stage if folder is None else str(folder)
    if count:
        record.stages[key] = (stage, count, total)
    else:
        record.stages.pop(key, None)


def note_maps(folder: Path, count: int) -> None:
    """So many maps of images that are in the folder were left out; 0 takes back what was said."""
    record = _current.get()
    if record is None:
        return
    if count:
        record.maps[str(folder)] = (folder.name, count)
    else:
        record.maps.pop(str(folder), None)
