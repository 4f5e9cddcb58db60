"""Signals, kills and full disks at random moments of a small recipe: is the result the same?

    python benchmarks/faults.py --kills 10 --terms 5 --ints 5 --full 4 --flips 1500

A recipe in miniature (draw photographs, train, explain, walk with two workers, fuse, decide masks)
is run once undisturbed. Each trial then runs it in an empty folder, hits it at
a random moment, looks at how it ended, gives the same command again, and compares every record
byte by byte. kill -9 hits the process alone, SIGTERM and SIGINT the process and its group by turns.
Full disks are file systems in memory of random sizes, which takes root. Flipped bits hit a mask, a
record of score maps and an index in turn; each must be refused or change nothing.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import tyro

from wsss_jax import signals, xla
from wsss_jax.data import stores
from wsss_jax.datasets.table import open_dataset
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.recipes import demo
from wsss_jax.run import left_out
from wsss_jax.run.executors import Workers
from wsss_jax.stages import train
from wsss_jax.stages.combine import Fusion, combine
from wsss_jax.stages.explain import Explanation, explain
from wsss_jax.stages.masks import Masking, decide
from wsss_jax.stages.refine import Walk, refine
from wsss_jax.types import ScoreMaps

IMAGES, EPOCHS = 16, 2
COMMAND = """
import sys
from wsss_jax import signals
signals.catch()
sys.path.insert(0, sys.argv[1])
import faults
faults.work(sys.argv[2])
"""
"""What is hit: a console script that catches signals before it imports anything slow."""


@dataclass(frozen=True)
class Options:
    """How often to try what.

    Attributes:
        kills: kill -9 of the process.
        terms: SIGTERM, to the process and to its group by turns.
        ints: SIGINT, likewise.
        full: disks that are too small.
        flips: flipped bits of files.
        seed: of all moments, sizes and bits.
    """

    kills: int = 10
    terms: int = 5
    ints: int = 5
    full: int = 4
    flips: int = 1500
    seed: int = 0


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code, its lines on stderr, its seconds, and who was left."""

    code: int
    errors: list[str]
    seconds: float
    orphans: int = 0


def work(folder: str) -> None:
    """The recipe in miniature, into ``folder``; ends as the command line does."""
    xla.keep_compiled()
    try:
        with left_out.recorded() as record:
            make(Path(folder))
    except signals.Interrupted as stop:
        print(stop, file=sys.stderr)
        raise
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(1) from problem
    raise SystemExit(record.exit_code())


def make(out: Path) -> None:
    """The first system of the demonstration, smaller: every kind of stage once."""
    source = open_dataset(demo.prepare(out / "data", IMAGES), split="all")
    settings = demo.recipe(out / "data", epochs=EPOCHS).systems["coarse"]
    trained = train.fit(source, replace(settings, batch_size=4, save_every=2), out / "run")
    asked, ids = Explanation(scales=(1.0,), flip=False), source.ids
    maps = explain(trained, source, out / "maps", asked, ids=ids)
    walk = Walk(radius=2, steps=2)
    walked = refine(maps, source, out / "walked", walk, ids=ids, workers=Workers(2))
    fused = combine([maps, walked], source, out / "fused", Fusion(), ids=ids)
    decide(fused, out / "masks", Masking(0.3), ids=ids)


def run(folder: Path, hit: Callable[[subprocess.Popen[str]], None] | None = None) -> Ended:
    """Give the command, hit it, and wait for it and for all that it has started."""
    command = [sys.executable, "-c", COMMAND, str(Path(__file__).parent), str(folder)]
    begun = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        if hit is not None:
            hit(process)
        errors = process.communicate()[1].splitlines()
    seconds = time.monotonic() - begun
    end = time.monotonic() + 10
    while (left := group(process.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    return Ended(process.returncode, errors, seconds, len(left))


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
    """Of every record, index and mark of a finished run: what the result is."""
    kinds = ("scores/*.npz", "masks/*.png", "index.json", "finished", "settings.json")
    paths = sorted(path for kind in kinds for path in folder.glob(f"*/{kind}"))
    return {
        str(path.relative_to(folder)): blake2b(path.read_bytes(), digest_size=8).hexdigest()
        for path in paths
    }


def rests(folder: Path) -> list[str]:
    """Half-written files that are still there."""
    return [str(p) for kind in ("*.partial", "*tmp*") for p in folder.rglob(kind)]


def hits(options: Options, seconds: float) -> list[tuple[str, float, bool]]:
    """(signal, moment, whether to the group) of every trial."""
    rng = np.random.default_rng(options.seed)
    counts = {"SIGKILL": options.kills, "SIGTERM": options.terms, "SIGINT": options.ints}
    return [
        (name, float(rng.uniform(0, seconds)), name != "SIGKILL" and number % 2 == 1)
        for name, count in counts.items()
        for number in range(count)
    ]


def disturbed(name: str, moment: float, to_group: bool, wanted: dict[str, str]) -> list[str]:
    """One trial; the faults that it found."""
    number = signal.Signals[name]

    def hit(process: subprocess.Popen[str]) -> None:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            (os.killpg if to_group else os.kill)(process.pid, number)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        first = run(folder, hit)
        problems = judged(first, number)
        again = run(folder)
        if again.code:
            problems.append(f"again: code {again.code}, {again.errors[-1:]}")
        if digest(folder) != wanted:
            problems.append("another result")
        problems += [f"left behind: {path}" for path in rests(folder)]
    where = "group" if to_group else "process"
    text = "; ".join(problems) or "same result"
    print(f"{name} to the {where} at {moment:.1f} s: code {first.code}, {text}", flush=True)
    return problems


def judged(ended: Ended, number: signal.Signals) -> list[str]:
    """What is wrong with how a command ended that was hit."""
    problems = [f"{ended.orphans} orphans"] if ended.orphans else []
    if ended.code == 0:
        return problems  # it was done before
    killed = number == signal.SIGKILL
    if ended.code != (-number if killed else 128 + number):
        problems.append(f"code {ended.code}")
    if len(ended.errors) != (0 if killed else 1):
        problems.append(f"{len(ended.errors)} lines, {ended.errors[-1:]}")
    return problems


def full_disk(size: int, wanted: dict[str, str], place: Path) -> list[str]:
    """The command on a disk of ``size`` bytes, then with room; the faults that it found."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        first = run(place / "out")
        problems = []
        if first.code != 1 or len(first.errors) != 1 or str(place) not in first.errors[0]:
            problems.append(f"code {first.code}, {first.errors[-2:]}")
        subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
        again = run(place / "out")
        if again.code:
            problems.append(f"again: code {again.code}, {again.errors[-1:]}")
        if digest(place / "out") != wanted:
            problems.append("another result")
        problems += [f"left behind: {path}" for path in rests(place / "out")]
    finally:
        subprocess.run(["umount", str(place)], check=True)
    text = "; ".join(problems) or "same result"
    print(f"disk of {size >> 10} KiB: {first.errors[-1:]}, {text}", flush=True)
    return problems


def flips(count: int, rng: np.random.Generator) -> Counter[str]:
    """How many flipped bits of small records were refused, changed nothing, or passed."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        masks = stores.create(Path(place, "m"), holds="masks", classes=("a", "b"), made_by={})
        maps = stores.create(Path(place, "s"), holds="scores", classes=("a", "b"), made_by={})
        masks.put_mask("x", rng.integers(0, 3, (60, 80)).astype(np.uint8))
        scores = rng.random((15, 20, 2)).astype(np.float32)
        whole = ScoreMaps(scores, np.arange(2, dtype=np.int32), (60, 80), scores.max((0, 1)))
        maps.put_scores("x", whole)
        for store in (masks, maps):
            path, content = store.path("x"), store.path("x").read_bytes()
            before = read(store)
            for _ in range(count):
                changed = bytearray(content)
                bit = int(rng.integers(8 * len(content)))
                changed[bit // 8] ^= 1 << bit % 8
                path.write_bytes(changed)
                try:
                    same = all(map(np.array_equal, read(store), before))
                    outcome = "changed nothing" if same else "PASSED"
                except BadFileError:
                    outcome = "refused"
                found[f"{store.holds}: {outcome}"] += 1
    return found


def read(store: stores.Store) -> Sequence[np.ndarray]:
    """The record x as arrays."""
    if store.holds == "masks":
        return (store.get_mask("x"),)
    maps = store.get_scores("x")
    return maps.scores, maps.classes, maps.peak, np.asarray(maps.size)


def main(options: Options) -> None:
    """All trials, and what they found."""
    rng = np.random.default_rng(options.seed)
    print(dict(sorted(flips(options.flips, rng).items())), flush=True)
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # little runs, once each
        first = run(Path(place) / "first")
        whole = run(Path(place) / "whole")
        assert not first.code and not whole.code, (first, whole)
        wanted = digest(Path(place) / "whole")
        assert wanted == digest(Path(place) / "first"), "two undisturbed runs differ"
        print(f"undisturbed: {whole.seconds:.1f} s, {len(wanted)} files", flush=True)
        tried, survived = Counter[str](), Counter[str]()
        for name, moment, to_group in hits(options, whole.seconds):
            tried[name] += 1
            survived[name] += not disturbed(name, moment, to_group, wanted)
        used = sum(p.stat().st_size for p in Path(place, "whole").rglob("*") if p.is_file())
        Path(place, "disk").mkdir()
        for _ in range(options.full):
            tried["full disk"] += 1
            size = int(rng.uniform(0.1, 0.9) * used)
            survived["full disk"] += not full_disk(size, wanted, Path(place, "disk"))
    for name, count in tried.items():
        print(f"{name}: {survived[name]} of {count} survived")
    raise SystemExit(survived != tried)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
