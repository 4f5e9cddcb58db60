"""Help of every verb and the names of its flags, written down in ``pages.json``.

The settings of most verbs lie beside what they set, and importing those takes two seconds of the
processor. What is written down answers ``--help`` and refuses mistyped flags at once; the verb
itself answers whatever else is typed. `python -m wsss_jax.cli.pages` writes the file anew from the
verbs; tests/test_cli.py compares the two.
"""

import contextlib
import difflib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
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


class Page(NamedTuple):
    """What ``--help`` prints of a command, and every flag that it has."""

    text: str
    flags: list[str]


def answered(command: str, args: Sequence[str]) -> bool:
    """Print the help of a command where it is asked for; whether it was.

    command: a key of ``table.commands()``; one that is not written down yet answers by itself.
    Raises Usage for an unknown flag, naming the nearest.
    """
    if command not in _written():
        return False
    page, flags = _written()[command]
    if {*HELP} & {*args}:
        print(page)
        return True
    known = {*flags, *HELP, *HELP_ALL}
    for flag in (arg.partition("=")[0] for arg in args if _TYPED.match(arg)):
        if flag.replace("_", "-") not in known and flag != "-inf":
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "there is none like it"
            raise Usage(
                f"wsss {command}: unknown flag {flag!r}; {hint} (wsss {command} --help-all lists "
                "all flags)"
            )
    return False


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
    """Help and flags of a command as its function has them now, for ``pages.json``."""
    page, whole = _printed(command, verb, everyday=True), _printed(command, verb, everyday=False)
    return Page(
        page, sorted({flag.replace("_", "-") for flag in _FLAG.findall(whole + hosts.FLAGS)})
    )


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
