"""SIGINT and SIGTERM at any moment: 128 + signal, one line, no traceback, no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_workers as toy

from wsss_jax.run.images import over_groups
from wsss_jax.signals import Interrupted, stop_signals

BOTH = [signal.SIGINT, signal.SIGTERM]
PATHS = f"import sys; sys.path[:0] = {[str(Path(toy.__file__).parent), *sys.path]!r}\n"
LINE = "stopped by {}; the same command goes on from what is finished\n"


def started(script: str, tmp_path: Path) -> subprocess.Popen[str]:
    path = tmp_path / "command.py"
    path.write_text(PATHS + script)
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout and process.stdout.readline() == f"{word}\n"


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """One line, the right code, and nobody of its group is left."""
    _, errors = process.communicate(timeout=60)
    assert errors == LINE.format(number.name)
    assert process.returncode == 128 + number
    toy.wait_until(lambda: not group(process.pid))


def group(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", BOTH)
def test_before_and_between_stages_a_command_leaves_at_once(tmp_path, number):
    # In a callback, where an exception would be printed and swallowed.
    script = """
from wsss_jax import signals
signals.catch()
import time, weakref
class Thing: ...
thing = Thing()
def wait(_):
    print("here", flush=True)
    time.sleep(60)
weakref.finalize(thing, wait, 0)
del thing
"""
    with started(script, tmp_path) as process:
        said(process, "here")
        process.send_signal(number)
        stopped(process, number)


@pytest.mark.parametrize("number", BOTH)
def test_a_program_that_starts_itself_again_loses_no_signal(tmp_path, number):
    script = """
import os, signal, sys
from wsss_jax import signals
if "AGAIN" not in os.environ:
    signals.hold()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # nobody would let them through
    signals.catch()
    signals.hold()
    os.kill(os.getpid(), int(sys.argv[1]) if sys.argv[1:] else NUMBER)
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "AGAIN": ""})
signals.catch()
print("not reached")
"""
    with started(script.replace("NUMBER", str(int(number))), tmp_path) as process:
        stopped(process, number)


WORKERS = """
import sys, time
from functools import partial
from pathlib import Path
import toy_workers
from wsss_jax import signals
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each
if __name__ == "__main__":
    signals.catch()
    print("ready", flush=True)
    try:
        function = partial(toy_workers.FUNCTION, folder=Path(FOLDER))
        each("toy", function, "abcdef", workers=Workers(2))
    except signals.Interrupted as stop:
        print(stop, file=sys.stderr)
        raise
elif SLOW:
    time.sleep(60)  # a worker that imports for a long time
"""


def workers(function: str, folder: Path, *, slow: bool = False) -> str:
    script = WORKERS.replace("FUNCTION", function).replace("FOLDER", repr(str(folder)))
    return script.replace("SLOW", str(slow))


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_to_the_group_while_workers_start_is_one_line(tmp_path, number):
    with started(workers("write", tmp_path, slow=True), tmp_path) as process:
        said(process, "ready")
        toy.wait_until(lambda: len(group(process.pid)) == 4)  # two workers and Python's tracker
        os.killpg(process.pid, number)
        stopped(process, number)


@pytest.mark.parametrize("number", BOTH)
def test_a_second_signal_does_not_wait_for_the_images(tmp_path, number):
    with started(workers("mark_and_sleep", tmp_path), tmp_path) as process:
        said(process, "ready")
        toy.wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        os.killpg(process.pid, number)
        time.sleep(0.5)
        assert process.poll() is None
        os.killpg(process.pid, number)
        stopped(process, number)


def test_a_killed_parent_leaves_no_worker_that_is_still_starting(tmp_path):
    script = workers("write", tmp_path).replace("time.sleep(60)", "time.sleep(2)")
    with started(script.replace("elif False", "elif True"), tmp_path) as process:
        said(process, "ready")
        toy.wait_until(lambda: len(group(process.pid)) == 4)
        left = [pid for pid in group(process.pid) if pid != process.pid]
        process.kill()
        toy.wait_until(lambda: not any(toy.is_alive(pid) for pid in left))
        # Python's own word where the kill came while it handed a worker its task.
        told = process.communicate()[1].strip()
        assert not told or told.splitlines()[-1] == "EOFError: Ran out of input"


def test_a_signal_that_nobody_looked_at_is_not_swallowed():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    assert caught.value.code == 128 + signal.SIGTERM
    assert str(caught.value) == LINE.format("SIGTERM").strip()
    assert signal.getsignal(signal.SIGTERM) is before


def test_groups_are_counted_and_a_signal_stops_between_two():
    skipped, seen = {}, []

    def groups():
        yield ("a", "b")
        skipped["c"] = "damaged"
        yield ("d",)

    def use(group):
        seen.extend(group)
        return len(group)

    tally = over_groups("toy", groups(), 4, use, skipped)
    assert (tally.done, dict(tally.skipped), seen) == (3, {"c": "damaged"}, ["a", "b", "d"])
    seen.clear()

    def told(group):
        os.kill(os.getpid(), signal.SIGINT)
        return use(group)

    with pytest.raises(Interrupted) as caught:
        over_groups("toy", groups(), 4, told, skipped)
    assert caught.value.code == 128 + signal.SIGINT and seen == ["a", "b"]
