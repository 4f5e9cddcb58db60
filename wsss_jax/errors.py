"""Errors that a user can put right: the command line prints each as one line.

Every other exception is a mistake of ours and keeps its traceback (``cli``).
"""

from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user gave cannot be used; the message names it and what to do.

    >>> import wsss_jax as wj
    >>> try:
    ...     wj.network("resnet5O")
    ... except wj.UserError as problem:
    ...     print(str(problem)[:55])
    unknown backbone 'resnet5O'; did you mean 'resnet50'? (
    """


class BadFileError(UserError):
    """A file cannot be trusted; the message names it and what was wanted."""


class MissingFileError(BadFileError):
    """A file that is needed is not there."""


class DivergedError(UserError):
    """Training produced numbers that are not finite, again and again."""


class CorruptCheckpointError(UserError):
    """A checkpoint's content differs from what was written."""


def first_few(names: Iterable[object], most: int = 3) -> str:
    """The first names for a message, and how many more there are: "a, b, c and 7 more".

    "none" where there are none; of a very long name, only the beginning.
    """
    told = [str(name)[:80] for name in names]
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return (", ".join(told[:most]) or "none") + more
