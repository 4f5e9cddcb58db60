"""Pickles stepped through by hand: numbers, texts and containers, and nothing that runs.

A pickle is a little program. Here its operations are carried out one by one on a stack of plain
values; what it may name is a table of the caller, and anything else is refused by its name. Nothing
is imported and nothing called but the functions of that table. Not here: what the values mean.

Source: the operations as ``pickletools`` of the standard library documents them.
"""

import io
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from wsss_jax.errors import UserError

MAX_STEPS = 10_000_000
"""More operations than this are refused, where no other limit is named."""

MAX_LITERAL = 2**28
"""Longer texts and byte strings (in bytes) are refused before they are read."""

Constructor = Callable[..., Any]
Names = Mapping[str, Constructor | None]
"""``"module member"`` to the function that stands for it; None: may be named, but not called."""

_CONSTANTS = MappingProxyType({"NONE": None, "NEWTRUE": True, "NEWFALSE": False})
_LITERALS = frozenset({
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
})  # fmt: skip
_SHORT_TUPLES = MappingProxyType({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MARK = object()


class Name(NamedTuple):
    """A module's member that the pickle names and the table allows."""

    text: str


class Unfinished(ABC):
    """What a constructor returns when the pickle describes the rest of it afterwards."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take in the rest. Raises ValueError for what does not belong to it."""


def run(
    file: Any,
    names: Names,
    persistent: Constructor | None = None,
    *,
    steps: int = MAX_STEPS,
) -> Any:
    """What one pickle describes, read from ``file`` up to its end mark.

    persistent: makes something of what the pickle only refers to. steps: operations that are
    carried out before the file is refused. State that is given to anything
    but an Unfinished is dropped. Keys of dictionaries are texts and numbers. Raises the errors of
    PROBLEMS for anything damaged, unknown or too large.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for name, argument in _steps(file, steps):
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUTS or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_allowed(argument if name == "GLOBAL" else _joined(stack), names))
        elif name == "REDUCE":
            _reduce(stack, names)
        elif name == "BINPERSID" and persistent is not None:
            stack.append(persistent(stack.pop()))
        elif name in _CONTAINERS:
            _CONTAINERS[name](stack)
        else:
            raise UserError(f"the pickle uses {name}, which no file of arrays needs")
    raise EOFError("the pickle is cut off")


PROBLEMS = (KeyError, IndexError, TypeError, ValueError, EOFError, OverflowError, RecursionError)
"""What ``run`` raises for a pickle that is not what it should be."""


def mapping(pairs: Any = ()) -> dict:
    """An ordered dictionary's constructor: pairs of key and value."""
    made: dict = {}
    for key, value in pairs:
        _set_items([made], [key, value])
    return made


class _Limited:
    """A file that refuses to allocate what a damaged length asks for."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if count > MAX_LITERAL:
            raise UserError(f"the pickle holds a text of {count:,} bytes")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(MAX_LITERAL)


def _steps(file: Any, most: int) -> Iterator[tuple[str, Any]]:
    """Operations of a pickle and their arguments, up to a number that a file of arrays needs."""
    # What lies in memory gives what it has, whatever length is asked for.
    limited: Any = file if isinstance(file, io.BytesIO) else _Limited(file)
    for n, (operation, argument, _) in enumerate(pickletools.genops(limited)):
        if n > most:
            raise UserError(f"the pickle has more than {most:,} operations")
        yield operation.name, argument


def _joined(stack: list) -> str:
    member, module = stack.pop(), stack.pop()
    return f"{module} {member}"


def _allowed(name: str, names: Names) -> Name:
    if name not in names:
        raise UserError(f"names {name.replace(' ', '.')}, which holds no numbers and is not read")
    return Name(name)


def _reduce(stack: list, names: Names) -> None:
    arguments, function = stack.pop(), stack.pop()
    name = function.text if isinstance(function, Name) else ""
    make = names[name] if name else None
    if make is None or not isinstance(arguments, tuple):
        raise UserError(f"calls {name.replace(' ', '.') or type(function).__name__}")
    stack.append(make(*arguments))


def _to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set_items(stack: list, items: list) -> None:
    target = stack[-1]
    if not isinstance(target, dict):
        raise UserError("sets items of what is no dictionary")
    # The hash of a tuple in a tuple in a tuple … is not bounded: it overflows the C stack.
    if not all(isinstance(key, (str, int, float)) for key in items[::2]):
        raise UserError("a key of a dictionary that is neither text nor number")
    target.update(zip(items[::2], items[1::2], strict=True))


def _extend(stack: list, items: list) -> None:
    target = stack[-1]
    if not isinstance(target, list):
        raise UserError("appends to what is no list")
    target.extend(items)


def _short_tuple(count: int) -> Callable[[list], None]:
    def make(stack: list) -> None:
        if len(stack) < count:
            raise IndexError("the stack is too short for a tuple")
        stack[-count:] = [tuple(stack[-count:])]

    return make


def _build(stack: list) -> None:
    # Of other objects only the version notes of a state_dict come here, which say nothing.
    state, target = stack.pop(), stack[-1]
    if isinstance(target, Unfinished):
        target.build(state)


_CONTAINERS: Mapping[str, Callable[[list], Any]] = MappingProxyType({
    "MARK": lambda stack: stack.append(_MARK),
    "POP": lambda stack: stack.pop(),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "TUPLE": lambda stack: stack.append(tuple(_to_mark(stack))),
    "LIST": lambda stack: stack.append(_to_mark(stack)),
    "DICT": lambda stack: stack.append(mapping(_pairs(_to_mark(stack)))),
    **{name: _short_tuple(count) for name, count in _SHORT_TUPLES.items()},
    "SETITEMS": lambda stack: _set_items(stack, _to_mark(stack)),
    "SETITEM": lambda stack: _set_items(stack, [stack.pop(-2), stack.pop()]),
    "APPENDS": lambda stack: _extend(stack, _to_mark(stack)),
    "APPEND": lambda stack: _extend(stack, [stack.pop()]),
    "BUILD": _build,
})  # fmt: skip


def _pairs(items: list) -> Iterator[tuple]:
    return zip(items[::2], items[1::2], strict=True)
