"""A command from its arguments to its exit code, which is one of ``ending``.

Nothing but the table of verbs (``table``) and their help (``pages``) is read before a verb is known
to have work to do, so that help, whatever is mistyped and a check of a data set start at once.
"""

import os
import sys
from collections.abc import MutableMapping

from wsss_jax import __version__, memory, xla
from wsss_jax.cli import ending, hosts, pages
from wsss_jax.cli.pages import HELP, HELP_ALL
from wsss_jax.cli.table import chosen, first_page, page_of_parts
from wsss_jax.run import left_out

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR", "GLOG_minloglevel": "2"}
"""Of XLA's C++ code nothing belongs on a terminal but what ends the process: its "errors" are
alarms that something compiles slowly, and what fails is an exception of Python as well."""

STRICT = "--strict"
"""Images that are left out make a command fail (1) in place of ending with 3."""


def run(args: list[str], *, alone: bool) -> None:
    """Carry out a command; raises SystemExit unless all was done.

    alone: this process has nothing else to do.
    """
    strict = STRICT in args
    with ending.as_exit_code(), left_out.recorded() as record:
        code = _run([arg for arg in args if arg != STRICT], alone=alone)
        if code == ending.DONE and record.line():
            print(record.line(), flush=True)
            code = record.exit_code(strict=strict)
    if code:
        raise SystemExit(code)


def quiet(environment: MutableMapping[str, str]) -> None:
    """Keep XLA's warnings off the terminal, unless the user asked for a level."""
    for name, value in QUIET.items():
        environment.setdefault(name, value)


def _run(args: list[str], *, alone: bool) -> int:
    """The exit code of a command."""
    name, rest = (args[0], args[1:]) if args else ("", [])
    if name in (*HELP, *HELP_ALL):
        print(first_page())
        return ending.DONE
    if name == "--version":
        print(f"wsss_jax {__version__}")
        return ending.DONE
    verb = chosen(name)
    if verb.parts:
        part, *rest = rest or HELP
        if part in (*HELP, *HELP_ALL):
            print(page_of_parts(name))
            return ending.DONE
        verb, name = chosen(part, verb.parts, f"wsss {name}"), f"{name} {part}"
    of_file = verb.parses and bool(rest) and not rest[0].startswith("-")
    if not of_file and pages.answered(name, rest):
        return ending.DONE
    asked = {*HELP, *HELP_ALL} & set(rest)
    if alone and verb.trains and not asked:
        memory.restart_with_large_pages()
    quiet(os.environ)
    ours, rest = hosts.taken(rest, os.environ) if verb.several else (None, rest)
    command = verb.load()
    if ours is not None and not asked:
        hosts.start(ours)
    if alone and "jax" in sys.modules:
        xla.keep_compiled()
    if verb.parses:
        return ending.code_of(command(rest))
    from wsss_jax.cli import settings  # it imports tyro, which the pages above do without

    return ending.code_of(settings.call(name, command, rest))
