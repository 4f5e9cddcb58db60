"""A command as it is typed, inside the process of the test."""

from wsss_jax import cli


def typed(capsys, *arguments):
    """Exit code, output and errors of one command."""
    code = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err
