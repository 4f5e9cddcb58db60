"""``wsss weights list | get | convert | show``: pretrained weights, and what is known of them."""

import difflib

from wsss_jax.cli import settings
from wsss_jax.cli.ending import Usage
from wsss_jax.stages.weights import COMMANDS

HELP = ("-h", "--help", "-H", "--help-all")


def command(arguments: list[str]) -> int | None:
    """Call one of COMMANDS. Raises Usage for another name."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in HELP:
        print("usage: wsss weights " + " | ".join(COMMANDS))
        for known, function in COMMANDS.items():
            print(f"  {known:9}{(function.__doc__ or '').splitlines()[0]}")
        return None
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise Usage(f"wsss weights: unknown {name!r}; {hint}there are: {', '.join(COMMANDS)}")
    if {*HELP} & set(rest):
        return settings.show(f"weights {name}", COMMANDS[name], None)
    settings.call(f"weights {name}", COMMANDS[name], rest)
    return None
