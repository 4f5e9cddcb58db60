"""Help of every verb, written down in ``pages.json``.

The settings of most verbs lie beside what they set, and importing those takes two seconds of the
processor. What is written down answers ``--help`` and ``--help-all`` and refuses at once what is
mistyped: unknown flags, missing ones, values that are no number or no name of a list. The verb
itself answers whatever else is typed. `python -m wsss_jax.cli.pages` writes the file anew from the
verbs; tests/test_cli.py compares the two.
"""

import contextlib
import difflib
import io
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from wsss_jax.cli import hosts
from wsss_jax.cli.ending import Usage
from wsss_jax.cli.table import Verb, commands

FILE = Path(__file__).with_suffix(".json")

HELP, HELP_ALL = ("-h", "--help"), ("-H", "--help-all")

_TERMINAL = {"COLUMNS": "80", "NO_COLOR": "1"}
_FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*\w")
_TYPED = re.compile(r"--?[A-Za-z]")
_ENTRY = re.compile(r"^  (--[\w.-]+)(?: (\S+))?(?=  |$)(.*?)(?=^ {0,2}\S|\Z)", re.M | re.S)
_NAMES = re.compile(r"\bone of (\w+(?:, \w+)+)")
_NUMBERS = {"INT": (int, "a whole number"), "FLOAT": (float, "a number")}


class Page(NamedTuple):
    """What ``--help`` and ``--help-all`` print of a command."""

    text: str
    whole: str

    def entries(self) -> list[tuple[str, str, str]]:
        """Flags that take one value, what kind of value, and their text in one line."""
        found = _ENTRY.findall(self.whole)
        return [(flag, kind, " ".join(text.split())) for flag, kind, text in found]


def answered(command: str, args: Sequence[str]) -> bool:
    """Print the help of a command where it is asked for; whether it was.

    command: a key of ``table.commands()``; one that is not written down yet answers by itself.
    Raises Usage for an unknown flag, a missing one, or a wrong value, naming the nearest.
    """
    if command not in _written():
        return False
    page = _written()[command]
    if {*HELP} & {*args}:
        print(page.text)
        return True
    given = [(arg, *arg.partition("=")[::2]) for arg in args]
    known = {*_FLAG.findall(page.whole + hosts.FLAGS), *HELP, *HELP_ALL}
    for arg, flag, _ in given:
        if _TYPED.match(arg) and flag.replace("_", "-") not in known and flag != "-inf":
            raise _wrong(command, f"unknown flag {flag!r}; {_nearest(flag, known)}")
    if {*HELP_ALL} & {*args}:
        print(page.whole)
        return True
    values = {
        flag.replace("_", "-"): value if "=" in arg else following
        for (arg, flag, value), following in zip_longest(given, args[1:], fillvalue="")
    }
    for flag, kind, text in page.entries():
        if flag in values:
            check(command, flag, values[flag], kind, text)
    missing = [flag for flag, _, text in page.entries() if "(required)" in text]
    missing = [flag for flag in missing if flag not in values]
    if missing:
        raise _wrong(command, f"give {' and '.join(missing)}")
    return False


def check(command: str, flag: str, value: str, kind: str, text: str) -> None:
    """Raise Usage for a value of a flag that its page rules out. kind, text: as in ``entries``."""
    if kind in _NUMBERS:
        read, wanted = _NUMBERS[kind]
        try:
            read(value)
        except ValueError:
            raise _wrong(command, f"{flag} is {value!r}, wanted {wanted}") from None
        return
    names = kind[1:-1].split(",") if re.fullmatch(r"\{[\w,]+\}", kind) else []
    if kind == "STR" and (listed := _NAMES.search(text)):
        names = [*listed.group(1).split(", "), *re.findall(r'"(\w+)"', text)]
    if names and value not in names:
        raise _wrong(command, f"{flag} is {value!r}; {_nearest(value, names)}")


def _nearest(typed: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(typed, known, n=1)
    few = f"there are: {', '.join(known)}" if len(known) <= 12 else "there is none like it"
    return f"did you mean {near[0]!r}?" if near else few


def _wrong(command: str, what: str) -> Usage:
    return Usage(f"wsss {command}: {what} (wsss {command} --help-all lists all flags)")


def shown(command: str, verb: Verb, *, everyday: bool) -> int:
    """Print the help of a command as its function has it now; returns the exit code.

    everyday: the settings that people use, else all.
    """
    from wsss_jax.cli import settings  # it imports tyro, which ``answered`` does without

    function = verb.load()
    if verb.parses:
        return function([HELP[1] if everyday else HELP_ALL[1]])
    if verb.several and not everyday:
        print(f"several machines train together by {hosts.FLAGS}")
    return settings.show(command, function, verb.everyday if everyday else None)


def made(command: str, verb: Verb) -> Page:
    """The help of a command as its function has it now, for ``pages.json``."""
    return Page(_printed(command, verb, everyday=True), _printed(command, verb, everyday=False))


def _printed(command: str, verb: Verb, *, everyday: bool) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        shown(command, verb, everyday=everyday)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip()


@cache
def _written() -> Mapping[str, Page]:
    return {name: Page(*one) for name, one in json.loads(FILE.read_text("utf-8")).items()}


if __name__ == "__main__":
    os.environ.update(_TERMINAL)
    content = {command: made(command, verb) for command, verb in commands().items()}
    FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
