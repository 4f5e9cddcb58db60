"""The command line: ``wsss <verb>``. It parses, calls one stage, and prints where the result is."""

import sys
from collections.abc import Sequence

from wsss_jax import signals


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script ``wsss``; raises SystemExit unless all was done."""
    alone = arguments is None
    if alone:
        signals.catch()
    # Imported here, because a signal that comes before ``catch`` ends in a traceback or no word.
    from wsss_jax.cli import command_line

    command_line.run(list(sys.argv[1:] if arguments is None else arguments), alone=alone)
