"""Pickles stepped through by hand: numbers, texts and containers, and nothing that runs.

A pickle is a little program. Here its operations are carried out one by one on a stack of plain
values; what it may call is a table of the caller. Whatever else it names or makes becomes an
``Opaque``: it stands in its place, is never imported or called, and is an error only where a
caller needs its value. Names of modules that act (``os``, ``subprocess``, most of ``builtins``) are
refused at once, because no file of numbers has them. Not here: what the values mean.

Source: the operations as ``pickletools`` of the standard library documents them; protocols 0 to 5.
"""

import io
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from wsss_jax.errors import UserError
from wsss_jax.formats.bounded import Views

MAX_STEPS = 10_000_000
"""More operations than this are refused, where no other limit is named."""

MAX_LITERAL = 2**28
"""Longer texts and byte strings (in bytes) are refused before they are read."""

MAX_MEMO = 2**24
"""Largest number that a memo may have; each is used once, so no file comes near it."""

Constructor = Callable[..., Any]
Names = Mapping[str, Constructor | None]
"""``"module member"`` to the function that stands for it; None: may be named, but not called."""

_CONSTANTS = MappingProxyType({"NONE": None, "NEWTRUE": True, "NEWFALSE": False})
_LITERALS = frozenset({
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_SHORT_TUPLES = MappingProxyType({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MARK = object()
_BUILTINS = frozenset({"builtins", "__builtin__"})
_TYPES = frozenset({
    "list", "dict", "int", "float", "bool", "str", "unicode", "bytes", "bytearray", "complex",
    "set", "frozenset", "tuple", "object", "range", "slice", "long", "type",
})  # fmt: skip
_ACTING = frozenset({
    "os", "posix", "nt", "ntpath", "posixpath", "sys", "subprocess", "importlib", "runpy", "shutil",
    "pty", "socket", "ctypes", "code", "codeop", "commands", "platform", "pickle", "_pickle",
    "cPickle", "marshal", "types", "webbrowser", "timeit", "pdb", "bdb", "cProfile",
    "multiprocessing", "operator", "_operator", "functools", "asyncio", "signal", "threading",
    "_thread", "tempfile",
    "urllib", "http", "requests", "pip", "pydoc", "builtins", "__builtin__",
})  # fmt: skip


class Name(NamedTuple):
    """A module's member that the pickle names."""

    text: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """Something that the pickle describes and that is not made; ``kind`` tells what it is."""

    kind: str


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
    but an Unfinished is dropped. Raises the errors of ``bounded.DAMAGE`` for anything damaged or
    too large.
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
            _remember(memo, len(memo) if name == "MEMOIZE" else argument, stack[-1])
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_named(argument if name == "GLOBAL" else _joined(stack), names))
        elif name == "REDUCE":
            _reduce(stack, names)
        elif name == "BINPERSID" and persistent is not None:
            stack.append(persistent(stack.pop()))
        elif name in _CONTAINERS:
            _CONTAINERS[name](stack)
        else:
            raise UserError(f"the pickle uses {name}, which no file of arrays needs")
    raise EOFError("the pickle is cut off")


def call(function: Any, arguments: Any, names: Names) -> Any:
    """What the table makes of a named function and its arguments; Opaque where it has none."""
    text = function.text if isinstance(function, Name) else ""
    make = names.get(text)
    if make is None or not isinstance(arguments, tuple):
        return Opaque(f"made by {text.replace(' ', '.') or type(function).__name__}")
    return make(*arguments)


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
    limited: Any = file if isinstance(file, (io.BytesIO, Views)) else _Limited(file)
    for n, (operation, argument, _) in enumerate(pickletools.genops(limited)):
        if n > most:
            raise UserError(f"the pickle has more than {most:,} operations")
        yield operation.name, argument


def _remember(memo: dict[int, Any], number: int, value: Any) -> None:
    if not 0 <= number < MAX_MEMO:
        raise UserError(f"the pickle numbers a value {number}")
    memo[number] = value


def _joined(stack: list) -> str:
    member, module = stack.pop(), stack.pop()
    if not isinstance(member, str) or not isinstance(module, str):
        raise UserError("names what is no text")
    return f"{module} {member}"


def _named(name: str, names: Names) -> Name:
    module, _, member = name.partition(" ")
    root = module.split(".")[0]
    harmless = root in _BUILTINS and member in _TYPES
    if name not in names and root in _ACTING and not harmless:
        raise UserError(f"names {name.replace(' ', '.')[:80]}, which holds no numbers")
    return Name(name)


def _reduce(stack: list, names: Names) -> None:
    arguments, function = stack.pop(), stack.pop()
    stack.append(call(function, arguments, names))


def _to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set_items(stack: list, items: list) -> None:
    target = stack[-1]
    if isinstance(target, Opaque):
        return
    if not isinstance(target, dict):
        raise UserError("sets items of what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # The hash of a tuple in a tuple in a tuple … is not bounded: it overflows the C stack.
        plain = key is None or isinstance(key, (str, int, float))
        target[key if plain else Opaque(f"a key of type {type(key).__name__}")] = value


def _extend(stack: list, items: list) -> None:
    target = stack[-1]
    if isinstance(target, Opaque):
        return
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


def _object(kind: Any) -> Opaque:
    text = kind.text.replace(" ", ".") if isinstance(kind, Name) else type(kind).__name__
    return Opaque(f"a {text}")


def _new_object(stack: list) -> None:
    _, kind = stack.pop(), stack.pop()
    stack.append(_object(kind))


def _new_object_with_names(stack: list) -> None:
    _, _, kind = stack.pop(), stack.pop(), stack.pop()
    stack.append(_object(kind))


def _add_to_set(stack: list) -> None:
    _to_mark(stack)
    if not isinstance(stack[-1], Opaque):
        raise UserError("adds to what is no set")


_CONTAINERS: Mapping[str, Callable[[list], Any]] = MappingProxyType({
    "MARK": lambda stack: stack.append(_MARK),
    "POP": lambda stack: stack.pop(),
    "POP_MARK": lambda stack: _to_mark(stack) and None,
    "DUP": lambda stack: stack.append(stack[-1]),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "EMPTY_SET": lambda stack: stack.append(Opaque("a set")),
    "ADDITEMS": _add_to_set,
    "FROZENSET": lambda stack: stack.append(Opaque(f"a set of {len(_to_mark(stack))}")),
    "TUPLE": lambda stack: stack.append(tuple(_to_mark(stack))),
    "LIST": lambda stack: stack.append(_to_mark(stack)),
    "DICT": lambda stack: stack.append(mapping(_pairs(_to_mark(stack)))),
    **{name: _short_tuple(count) for name, count in _SHORT_TUPLES.items()},
    "SETITEMS": lambda stack: _set_items(stack, _to_mark(stack)),
    "SETITEM": lambda stack: _set_items(stack, [stack.pop(-2), stack.pop()]),
    "APPENDS": lambda stack: _extend(stack, _to_mark(stack)),
    "APPEND": lambda stack: _extend(stack, [stack.pop()]),
    "BUILD": _build,
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_with_names,
})  # fmt: skip


def _pairs(items: list) -> Iterator[tuple]:
    return zip(items[::2], items[1::2], strict=True)
