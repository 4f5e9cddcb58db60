"""How a command ends: exit codes, and which errors are told in one line.

An error that the user can put right (``errors.UserError``, and an error of the operating system
that names a file) is one line. Every other exception is a mistake of this program and keeps its
traceback, so that it can be reported and found; WSSS_DEBUG=1 shows it of user errors too.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from wsss_jax.errors import UserError
from wsss_jax.signals import Interrupted

DONE, FAILED, USAGE, LEFT_OUT = 0, 1, 2, 3
"""All is done; the user's data, files or settings stop it; the command is mistyped; all is done but
for images or maps that were left out and named."""

STOPPED = 128
"""Plus the number of the signal: the same command resumes a stopped one."""

DEBUG = "WSSS_DEBUG"

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Usage(Exception):
    """The command cannot be understood: exit code 2 and one line."""


@contextmanager
def as_exit_code() -> Iterator[None]:
    """Turn what the user can put right into one line and SystemExit; let all else pass."""
    try:
        yield
    except Usage as problem:
        _say(str(problem))
        raise SystemExit(USAGE) from problem
    except Interrupted as problem:
        _say(str(problem))
        raise
    except BrokenPipeError as problem:
        # Whoever read our output has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(STOPPED + signal.SIGPIPE) from problem
    except (UserError, OSError) as problem:
        line = one_line(problem)
        if line is None or os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        _say(f"error: {line}")
        raise SystemExit(FAILED) from problem


def one_line(problem: Exception) -> str | None:
    """What the user is told of an error; None of one that only its traceback explains."""
    if isinstance(problem, UserError):
        return str(problem)
    if not isinstance(problem, OSError):
        return None
    if problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return problem.strerror if problem.errno in _OF_DISKS else None


def code_of(result: object) -> int:
    """The exit code of a command that ended by itself: the number it returned, or that all is done.

    Commands return None, or LEFT_OUT where they left images out.
    """
    return result if isinstance(result, int) else DONE


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
