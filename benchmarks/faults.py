"""Signals and kills at random moments of a whole recipe: is the result the same?

    python benchmarks/faults.py --kills 50 --terms 10 --ints 10 --pairs 2
    python benchmarks/faults.py --photographs --kills 10 --terms 3 --ints 3 --pairs 0

A whole path in miniature (``faults_recipe``: train, explain, fuse, combine, decide, judge, report,
segment, export) is run twice undisturbed by `wsss run`. Then it is started in an empty folder, hit,
and given again and hit again, up to four times, until a command is done before its hit comes; every
file but checkpoints, their log and locks is compared byte by byte with the undisturbed run. Hits
come by turns at a random moment of the whole (of its processor time, whatever else runs), within
the first second, and within a second after worker processes were started. kill -9 hits the process
alone, SIGTERM and SIGINT the process and its group by turns. Pairs are two commands in one folder,
the second started at a random moment of the first. With --photographs, `wsss run --data PHOTOS
--quick` on twelve drawn photographs is hit in place of the recipe; it starts no workers. Not here:
full disks (``faults_disks``) and flipped bits (``faults_flips``).
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import faults_recipe as recipe
import numpy as np
import tyro
from flax import nnx

from wsss_jax.datasets import synthetic
from wsss_jax.models import build
from wsss_jax.recipes import demo
from wsss_jax.weights import loading

ARGUMENTS = "FAULTS_ARGUMENTS"
"""Variable with the arguments of `wsss`, as JSON; the folder is added."""

PHOTOGRAPHS = 12

MOST = 4  # hits of one recipe; more would all fall into its last steps
PLACES = ("whole", "start", "workers")
"""Where a hit comes: anywhere; within a second after the process has begun to catch signals, which
is the first thing that it does; within a second after a worker process was started."""
UNLIKE = ("checkpoint", "metrics.jsonl", ".lock")
"""Files and folders of a run that hold random names, times, and the number of a process."""

SHARD = re.compile(r"-[0-9a-f]{8}(?=\.array_record$)")
"""The random part of a shard's name."""


@dataclass(frozen=True)
class Options:
    """How often to try what.

    Attributes:
        kills: kill -9 of the process.
        terms: SIGTERM, to the process and to its group by turns.
        ints: SIGINT, likewise.
        pairs: two commands in one folder.
        seed: of all moments.
        photographs: whether a run on photographs is disturbed instead of the recipe.
    """

    kills: int = 10
    terms: int = 5
    ints: int = 5
    pairs: int = 2
    seed: int = 0
    photographs: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code, its lines on stderr, its seconds, and who was left.

    processor: seconds of it and of all that it started.
    """

    code: int
    errors: list[str]
    seconds: float
    processor: float
    orphans: int = 0


def start(folder: Path) -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    folder.parent.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "wsss_jax.cli", *json.loads(os.environ[ARGUMENTS]),
         "--out", folder.name],
        cwd=folder.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], begun: float) -> Ended:
    """Wait for a command and for all that it has started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    errors = process.communicate()[1].splitlines()
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    end = time.monotonic() + 10
    while (left := group(process.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    return Ended(process.returncode, errors, seconds, processor, len(left))


def run(folder: Path) -> Ended:
    """Give the command and wait for its end."""
    return ended(start(folder), time.monotonic())


def waited(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether a command still runs after so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def worked(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait until a command, and those it waited for, took so many processor seconds."""
    while waited(process, 0.02):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        if sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") >= seconds:
            return True
    return False


def group(leader: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def digest(folder: Path) -> dict[str, str]:
    """Of every file that must be the same: what the result is."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder) for path in paths}
    return {
        SHARD.sub("", str(name)): blake2b(path.read_bytes(), digest_size=8).hexdigest()
        for path, name in names.items()
        if not {*UNLIKE} & set(name.parts)
    }


def rests(folder: Path) -> list[str]:
    """Half-written files that are still there."""
    return [str(p) for kind in ("*.partial", "*tmp*") for p in folder.rglob(kind)]


def stage(folder: Path) -> str:
    """What was begun last."""
    begun = [path for path in folder.glob("*") if path.name != "report.html"]
    return max(begun, key=lambda path: path.stat().st_mtime).name if begun else "start"


class Hit(NamedTuple):
    """A signal and when it comes.

    place: one of PLACES. after: processor seconds until workers are looked for. moment: seconds
    from the place on, of the whole in processor time. to_group: whether the process's group gets
    it.
    """

    name: str
    place: str
    after: float
    moment: float
    to_group: bool

    def wait(self, process: subprocess.Popen[str]) -> bool:
        """Wait until it is time; whether the command still runs then."""
        if self.place == "whole":
            return worked(process, self.moment)
        if self.place == "start":
            while waited(process, 0.002) and not catches(process.pid):
                pass
        if self.place == "workers":
            worked(process, self.after)
            known = {*group(process.pid)}
            while waited(process, 0.02) and {*group(process.pid)} <= known:
                pass
        return waited(process, self.moment)


def catches(pid: int) -> bool:
    """Whether a process has begun to catch SIGTERM: before, no line of ours has run."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def hits(options: Options, seconds: float) -> list[Hit]:
    """All hits, in random order."""
    rng = np.random.default_rng(options.seed)
    counts = {"SIGKILL": options.kills, "SIGTERM": options.terms, "SIGINT": options.ints}
    found = []
    for name, count in counts.items():
        for number in range(count):
            place, to_group = PLACES[number % 3], name != "SIGKILL" and number % 2 == 1
            if options.photographs and place == "workers":
                place = "whole"
            moment = float(rng.uniform(0, seconds if place == "whole" else 1))
            found.append(Hit(name, place, float(rng.uniform(0, seconds)), moment, to_group))
    return [found[n] for n in rng.permutation(len(found))]


def disturbed(
    coming: list[Hit], wanted: dict[str, str], tried: Counter[str], survived: Counter[str]
) -> None:
    """One recipe, hit until it is done; takes the hits that it used from ``coming``."""
    used: list[tuple[Hit, list[str]]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        while coming and len(used) < MOST:
            begun = time.monotonic()
            process = start(folder)
            hit = coming[-1]
            number = signal.Signals[hit.name]
            if hit.wait(process):
                (os.killpg if hit.to_group else os.kill)(process.pid, number)
            end = ended(process, begun)
            if end.code == 0:  # done before it could be hit
                coming[-1] = hit._replace(moment=hit.moment / 2, after=hit.after / 2)
                break
            used.append((coming.pop(), judged(end, number)))
            text = "; ".join(used[-1][1]) or "as it should"
            print(f"  {hit}, {stage(folder)}: {end.code}, {text}", flush=True)
        problems = again(folder, wanted)
    print(f"done after {len(used)} hits: {'; '.join(problems) or 'same result'}", flush=True)
    for hit, found in used:
        tried[hit.name] += 1
        survived[hit.name] += not found and not problems


def again(folder: Path, wanted: dict[str, str]) -> list[str]:
    """Give the command once more in a folder; what is wrong then."""
    second = run(folder)
    problems = [f"again: code {second.code}, {second.errors[-1:]}"] if second.code else []
    found = digest(folder)
    changed = sorted(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
    if changed:
        problems.append(f"another result: {len(changed)} files, {changed[:3]}")
    return problems + [f"left behind: {path}" for path in rests(folder)]


def pair(moment: float, wanted: dict[str, str]) -> list[str]:
    """Two commands in one folder: each ends well or with one line, and the result is the same."""
    with tempfile.TemporaryDirectory() as place:
        folder, begun = Path(place) / "out", time.monotonic()
        first = start(folder)
        waited(first, moment)
        second = start(folder)
        both = [ended(first, begun), ended(second, begun)]
        where = stage(folder)
        problems = [] if 0 in [one.code for one in both] else ["neither is done"]
        problems += [
            f"code {one.code}, {len(one.errors)} lines, {one.errors[-1:]}"
            for one in both
            if one.code and (one.code != 1 or len(one.errors) != 1)
        ]
        problems += again(folder, wanted)
    codes = ", ".join(str(one.code) for one in both)
    text = "; ".join(problems) or "same result"
    print(f"a second command after {moment:.1f} s, {where}: {codes}, {text}", flush=True)
    return problems


def judged(ended: Ended, number: signal.Signals) -> list[str]:
    """What is wrong with how a command ended that was hit."""
    problems = [f"{ended.orphans} orphans"] if ended.orphans else []
    killed = number == signal.SIGKILL
    if ended.code != (-number if killed else 128 + number):
        problems.append(f"code {ended.code}")
    if len(ended.errors) != (0 if killed else 1):
        problems.append(f"{len(ended.errors)} lines, {ended.errors[-1:]}")
    return problems


def of_recipe(place: Path) -> list[str | Path]:
    """The recipe on scenes that are drawn into ``place``."""
    data = demo.prepare(place / "data", recipe.IMAGES)
    return ["run", recipe.__file__, "--data", data]


def of_photographs(place: Path) -> list[str | Path]:
    """A run on photographs that are drawn into ``place``, with weights of a small network."""
    data, weights = place / "data", place / "tiny.npz"
    synthetic.write(data, PHOTOGRAPHS, 0)
    loading.save(build.backbone("tiny", rngs=nnx.Rngs(0), output_stride=8), weights)
    return ["run", "--data", data, "--quick", "--weights", weights]


def main(options: Options) -> None:
    """All trials, and what they found."""
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as place:
        arguments = of_photographs if options.photographs else of_recipe
        os.environ[ARGUMENTS] = json.dumps([*map(str, arguments(Path(place)))])
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # little runs, once each
        first, folder = run(Path(place, "first") / "out"), Path(place, "whole", "out")
        whole = run(folder)
        assert not first.code and not whole.code, (first, whole)
        wanted = digest(folder)
        assert wanted == digest(Path(place, "first") / "out"), "two undisturbed runs differ"
        used = f"{whole.seconds:.1f} s, of processors {whole.processor:.1f} s"
        print(f"undisturbed: {used}, {len(wanted)} files", flush=True)
        tried, survived = Counter[str](), Counter[str]()
        coming = hits(options, whole.processor)
        while coming:
            disturbed(coming, wanted, tried, survived)
        for _ in range(options.pairs):
            tried["pairs"] += 1
            survived["pairs"] += not pair(float(rng.uniform(0, whole.seconds)), wanted)
    for name, count in tried.items():
        print(f"{name}: {survived[name]} of {count} survived")
    raise SystemExit(survived != tried)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
