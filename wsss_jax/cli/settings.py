"""Flags of a verb: parsed by tyro from its function, and shown in two lengths.

``--help`` shows the settings that people use, ``--help-all`` shows every one. Both print the help
of a copy of the function: it has the same flags, texts and defaults, but those that are not shown
are suppressed, and texts that ask for a name of a table list its names. The function itself parses.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import tyro

NAMES: MappingProxyType[str, str] = MappingProxyType(
    {
        "ATTENTION_EXPLAINERS": "wsss_jax.explain",
        "BACKBONES": "wsss_jax.backbones",
        "BRANCHES": "wsss_jax.systems.affinity",
        "DATASETS": "wsss_jax.datasets.table",
        "EXPLAINERS": "wsss_jax.explain",
        "FUSIONS": "wsss_jax.ops.fuse",
        "HEADS": "wsss_jax.models.classifiers",
        "PRESETS": "wsss_jax.crf.settings",
        "READERS": "wsss_jax.priors.external",
        "SYSTEMS": "wsss_jax.systems",
    }
)
"""Tables whose names help texts list where they ask for ``one of FUSIONS``, by their modules."""

MOST_NAMES = 14
"""So many names of a table stand in the short help."""

_NOTHING = inspect.Parameter.empty
_POSITIONAL = get_args(tyro.conf.Positional[int])[1]
_TABLE = re.compile(r"\b(?:an? name|one|names?) (?:of|in) ([A-Z][A-Z_]+)\b")


def call(verb: str, command: Callable[..., Any], args: Sequence[str]) -> Any:
    """Parse the arguments and call the verb's function. SystemExit(2) for what it does not know."""
    return tyro.cli(command, prog=f"wsss {verb}", args=list(args))


def show(verb: str, command: Callable[..., Any], everyday: str | None, default: Any = None) -> int:
    """Print the help of a verb; returns the exit code.

    command: its function, or a class of settings whose values ``default`` flags change. everyday:
    flags to show, as in ``table.Verb``; None shows all.
    """
    copies = _Copies(None if everyday is None else tuple(everyday.split()))
    copy, start = copies.settings(command, default, "")
    given = {} if default is None else {"default": start}
    try:
        tyro.cli(copy, prog=f"wsss {verb}", args=["--help"], **given)
    except SystemExit as end:
        if copies.hidden:
            print(f"{copies.hidden} more settings: wsss {verb} --help-all")
        return int(end.code or 0)
    raise AssertionError("tyro exits after its help")


def with_names(text: str | None, *, most: int | None = None) -> str | None:
    """A help text that lists the names of every table it asks a name of.

    most: of a table that is longer than this, so many names and how many there are.
    """
    return text if text is None else _TABLE.sub(partial(_listed, most), text)


def _listed(most: int | None, found: re.Match[str]) -> str:
    name = found.group(1)
    if name not in NAMES:
        return found.group(0)
    table = getattr(importlib.import_module(NAMES[name]), name)
    if most is None or len(table) <= most:
        return f"one of {', '.join(table)}"
    return f"one of {', '.join([*table][:most])}, … ({len(table)} names: --help-all)"


class _Parameter(NamedTuple):
    name: str
    hint: Any
    default: Any


class _Copies:
    """Copies of settings for the help alone: what matches no pattern is suppressed and counted."""

    def __init__(self, patterns: tuple[str, ...] | None) -> None:
        self.patterns = patterns
        self.hidden = 0
        # A short help has no lines to spare for what each group of settings is about.
        self._untitled = () if patterns is None else (tyro.conf.arg(help=" "),)

    def settings(self, kind: Callable[..., Any], default: Any, flag: str) -> tuple[type, Any]:
        """A class like this function or class of settings, and its default if it has one.

        flag: what its parameters are called before the dot, "" for nothing.
        """
        fields, complete = [], True
        for one in _parameters(kind, default):
            path = ".".join(part for part in (flag, _called(one)) if part)
            hint, start = self.parameter(one, path)
            if start is _NOTHING:
                complete = False
                fields.append((one.name, hint))
            else:
                made = dataclasses.field(default_factory=partial(_given, start))
                fields.append((one.name, hint, made))
        above = kind.__mro__[1:] if isinstance(kind, type) else ()
        texts = [self._space(one) for one in above if dataclasses.is_dataclass(one)]
        bases = tuple(type(kind.__name__, (), text) for text in texts)
        copy = dataclasses.make_dataclass(
            kind.__name__, fields, bases=bases, namespace=self._space(kind), kw_only=True
        )
        return copy, copy() if complete else _NOTHING

    def _space(self, kind: Callable[..., Any]) -> dict[str, Any]:
        """What a copy has of its original besides the fields: its text, and where it lies."""
        text = with_names(kind.__doc__, most=None if self.patterns is None else MOST_NAMES)
        return {"__doc__": text, "__module__": kind.__module__}

    def parameter(self, one: _Parameter, flag: str) -> tuple[Any, Any]:
        """Type and default of the copy of one parameter. flag: its name on the command line."""
        bare, extras = _taken_apart(one.hint)
        kind = type(one.default) if dataclasses.is_dataclass(one.default) else bare
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            copy, start = self.settings(kind, one.default, flag)
            extras += self._untitled
            return Annotated[(copy, *extras)] if extras else copy, start
        if isinstance(one.default, Mapping) and one.default:
            parts = {
                name: self.parameter(_Parameter(name, type(part), part), f"{flag}.{name}")[1]
                for name, part in one.default.items()
            }
            return dict[str, Any], parts
        shown = one.default is _NOTHING or _POSITIONAL in extras or self._matches(flag)
        self.hidden += not shown
        return (one.hint if shown else tyro.conf.Suppress[one.hint]), one.default

    def _matches(self, flag: str) -> bool:
        if self.patterns is None:
            return True
        return any(fnmatchcase(flag.replace("_", "-"), one) for one in self.patterns)


def _parameters(kind: Callable[..., Any], default: Any) -> list[_Parameter]:
    """What a function or a class of settings is called with, and the defaults."""
    hints = get_type_hints(kind, include_extras=True)
    if not (dataclasses.is_dataclass(kind) and isinstance(kind, type)):
        found = inspect.signature(cast(Callable[..., Any], kind)).parameters.items()
        return [_Parameter(name, hints[name], one.default) for name, one in found]
    given = isinstance(default, kind)
    return [
        _Parameter(
            one.name, hints[one.name], getattr(default, one.name) if given else _default_of(one)
        )
        for one in dataclasses.fields(kind)
        if one.init
    ]


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return _NOTHING if field.default_factory is dataclasses.MISSING else field.default_factory()


def _given(value: Any) -> Any:
    return value


def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(hint) is not Annotated:
        return hint, ()
    bare, *extras = get_args(hint)
    return bare, tuple(extras)


def _called(one: _Parameter) -> str:
    """What a parameter is called on the command line; "" where its flags carry no prefix."""
    names = [getattr(extra, "name", None) for extra in _taken_apart(one.hint)[1]]
    return next((name for name in names if isinstance(name, str)), one.name)
