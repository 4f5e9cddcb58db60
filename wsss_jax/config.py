"""Settings: how they are looked up, written down, and compared. Each stage defines its own."""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from wsss_jax.errors import UserError

T = TypeVar("T")

SOURCES = "sources"
"""Name of what follows from settings and is written beside them: see ``data.provenance``."""

Record: TypeAlias = Mapping[str, Any]
"""A JSON object of this program's own: settings, provenance, notes. Whoever wrote it reads it."""


def lookup(table: Mapping[str, T], name: Any, what: str) -> T:
    """The entry of an immutable table, or one error that names the nearest entry and all others.

    Raises ValueError when the name is unknown, or no text.
    """
    known = isinstance(name, str)
    if known and name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1) if known else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {what} {name!r}{hint} (known: {', '.join(sorted(table))})")


def check_numbers(settings: object, *names: str, least: float | int = 1) -> None:
    """UserError unless these settings are finite numbers, or tuples of them, from ``least`` on."""
    for name in names:
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if not least <= one < math.inf:
                raise UserError(f"{name} is {one}; wanted {least:g} or more")


def as_json(settings: object) -> Any:
    """Settings as plain JSON values: dataclasses to objects, paths to strings, tuples to lists."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: as_json(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(key): as_json(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple, set, frozenset)):
        return [as_json(value) for value in settings]
    if isinstance(settings, Path):
        return str(settings)
    if isinstance(settings, Enum):
        return settings.value
    if settings is None or isinstance(settings, (bool, int, float, str)):
        return settings
    if callable(settings) and hasattr(settings, "__qualname__"):
        return f"{settings.__module__}.{settings.__qualname__}"
    raise TypeError(
        f"{type(settings).__name__} cannot be written down; use a dataclass or a number"
    )


def fingerprint(settings: object) -> str:
    """Twelve hexadecimal digits that change whenever any setting changes."""
    text = json.dumps(as_json(settings), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def differences(old: object, new: object, prefix: str = "") -> list[str]:
    """Every setting in which two settings differ, as ``name: old -> new`` lines; not SOURCES."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new} - {SOURCES}):
            lines += differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return lines
    return [] if old == new else [f"{prefix.rstrip('.')}: {old!r} -> {new!r}"]


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of ``as_json``: plain JSON values back to settings of the annotated type.

    Raises ValueError for a field that the settings class does not have.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        for name in value:
            lookup(hints, name, f"setting of {kind.__name__}")
        return kind(**{name: from_json(hints[name], part) for name, part in value.items()})
    if origin in (Union, UnionType):
        inner = next(part for part in parts if part is not NoneType)
        return None if value is None else from_json(inner, value)
    if origin is tuple:
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(from_json(k, v) for k, v in zip(each, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: from_json(parts[1], part) for key, part in value.items()}
    if kind is Path:
        return Path(value)
    if kind is float:
        return float(value)
    return value
