"""Whose work a result rests on: pretrained weights, other tools' maps, and true masks.

Stores record it in ``made_by`` and runs in settings.json, and what is made of them records it in
turn, however many stages lie between. It follows from the other settings, so settings that differ
in it alone are the same (``config.differences``).
"""

from collections.abc import Mapping
from typing import Any

from wsss_jax.config import SOURCES
from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError
from wsss_jax.types import Provenance

NOT_STATED = "not stated"
"""What is said of other tools' maps where the user does not tell."""


def recorded(*sources: Provenance) -> dict[str, Any]:
    """What a store or a run writes down of its own sources."""
    return {SOURCES: [source._asdict() for source in dict.fromkeys(sources)]}


def inherited(*made: object) -> dict[str, Any]:
    """What a store or a run writes down of all that it is made of; {} where there is nothing.

    made: stores, and records of runs. ``labelled`` holds the ids of images whose true masks were
    read, ``sources`` the weights and maps of others.
    """
    labelled: set[str] = set()
    sources: dict[Provenance, None] = {}

    def look(value: object) -> None:
        if isinstance(value, Store):
            look(value.made_by)
        elif isinstance(value, Mapping):
            for name, part in value.items():
                if name == "labelled" and isinstance(part, (list, tuple)):
                    labelled.update(part)
                elif name == SOURCES and isinstance(part, (list, tuple)):
                    sources.update(dict.fromkeys(map(_read, part)))
                else:
                    look(part)

    for each in made:
        look(each)
    return {
        **({"labelled": sorted(labelled)} if labelled else {}),
        **(recorded(*sources) if sources else {}),
    }


def sources_of(store: Store) -> tuple[Provenance, ...]:
    """The weights and maps of others that a store rests on, as far as they are recorded."""
    return tuple(map(_read, inherited(store).get(SOURCES, ())))


def _read(one: object) -> Provenance:
    """A source as it is written down. BadFileError where it is damaged."""
    if not isinstance(one, Mapping) or set(one) != set(Provenance._fields):
        raise BadFileError(
            f"a record of sources is damaged: {one!r}; delete its folder, make it again"
        )
    return Provenance(**{name: str(text) for name, text in one.items()})
