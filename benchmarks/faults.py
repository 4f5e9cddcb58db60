"""Signals, kills and full disks at random moments of a small recipe: is the result the same?

    python benchmarks/faults.py --kills 10 --terms 5 --ints 5 --pairs 2 --full 1 --flips 1500

A recipe in miniature (draw photographs, train, explain, walk with two workers, fuse, decide masks)
is run twice undisturbed. Then it is started in an empty folder, hit at a random moment, and given
again and hit again, up to four times, until a command is done before its hit comes; all records are
compared byte by byte with the undisturbed ones. kill -9 hits the process alone, SIGTERM and SIGINT
the process and its group by turns. Pairs are two commands in one folder, the second started at a
random moment of the first. Full disks are file systems in memory that fill up within each stage in
turn, which takes root. Flipped bits hit a mask and a record of score maps; each must be refused or
change nothing.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

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
from wsss_jax.stages.refine import refine
from wsss_jax.stages.walks import Walk
from wsss_jax.types import ScoreMaps

IMAGES, EPOCHS = 16, 2
MOST = 4  # hits of one recipe; more would all fall into its last stages
STAGES = ("data", "run", "maps", "walked", "fused", "masks")
"""Folders of the recipe, in the order in which they are made."""

PAGE = resource.getpagesize()
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
        pairs: two commands in one folder.
        full: disks that are too small, for each stage.
        flips: flipped bits of files.
        seed: of all moments, sizes and bits.
    """

    kills: int = 10
    terms: int = 5
    ints: int = 5
    pairs: int = 2
    full: int = 1
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


def start(folder: Path) -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(Path(__file__).parent), str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def ended(process: subprocess.Popen[str], begun: float) -> Ended:
    """Wait for a command and for all that it has started."""
    errors = process.communicate()[1].splitlines()
    seconds = time.monotonic() - begun
    end = time.monotonic() + 10
    while (left := group(process.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    return Ended(process.returncode, errors, seconds, len(left))


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


def stage(folder: Path) -> str:
    """The last stage that has begun to write."""
    begun = [name for name in STAGES if (folder / name).is_dir()]
    return begun[-1] if begun else "start"


class Hit(NamedTuple):
    """A signal, its moment in seconds, and whether it goes to the process's group."""

    name: str
    moment: float
    to_group: bool


def hits(options: Options, seconds: float) -> list[Hit]:
    """All hits, in random order."""
    rng = np.random.default_rng(options.seed)
    counts = {"SIGKILL": options.kills, "SIGTERM": options.terms, "SIGINT": options.ints}
    found = [
        Hit(name, float(rng.uniform(0, seconds)), name != "SIGKILL" and number % 2 == 1)
        for name, count in counts.items()
        for number in range(count)
    ]
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
            if waited(process, hit.moment):
                (os.killpg if hit.to_group else os.kill)(process.pid, number)
            end = ended(process, begun)
            if end.code == 0:  # done before it could be hit
                coming[-1] = hit._replace(moment=hit.moment / 2)
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
    if digest(folder) != wanted:
        problems.append("another result")
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


def full_disk(name: str, whole: Path, wanted: dict[str, str], share: float) -> list[str]:
    """The command on a disk that is full within a stage, then with room; what it found.

    whole: folders of a finished run, of which the stages before are taken. share: of the bytes that
    the stage needs, how many there are.
    """
    place = whole.parent / "disk"
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(place)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        for before in STAGES[: STAGES.index(name)]:
            shutil.copytree(whole / before, place / "out" / before)
        room = int(share * blocks(whole / name))
        resize(place, blocks(place) + room)
        first = run(place / "out")
        problems = []
        if first.code != 1 or len(first.errors) != 1 or str(place) not in first.errors[0]:
            problems.append(f"code {first.code}, {first.errors[-2:]}")
        resize(place, 1 << 30)
        problems += again(place / "out", wanted)
    finally:
        subprocess.run(["umount", str(place)], check=True)
    text = "; ".join(problems) or "same result"
    print(f"room for {room >> 10} KiB of {name}: {first.errors[-1:]}, {text}", flush=True)
    return problems


def blocks(folder: Path) -> int:
    """Bytes that the files of a folder take in memory, whole pages."""
    return sum(-(-path.lstat().st_size // PAGE) * PAGE + PAGE for path in folder.rglob("*"))


def resize(place: Path, size: int) -> None:
    """Give a file system in memory another size, in whole pages."""
    option = f"remount,size={-(-size // PAGE) * PAGE}"
    subprocess.run(["mount", "-o", option, str(place)], check=True, capture_output=True)


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
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # little runs, once each
        first = run(Path(place) / "first")
        whole = run(Path(place) / "whole")
        assert not first.code and not whole.code, (first, whole)
        wanted = digest(Path(place) / "whole")
        assert wanted == digest(Path(place) / "first"), "two undisturbed runs differ"
        print(f"undisturbed: {whole.seconds:.1f} s, {len(wanted)} files", flush=True)
        tried, survived = Counter[str](), Counter[str]()
        coming = hits(options, whole.seconds)
        while coming:
            disturbed(coming, wanted, tried, survived)
        trials = [
            ("pairs", partial(pair, float(rng.uniform(0, whole.seconds)), wanted))
            for _ in range(options.pairs)
        ]
        trials += [
            ("full disk", partial(full_disk, name, Path(place) / "whole", wanted, share))
            for name in STAGES
            for share in rng.uniform(0.2, 0.8, options.full)
        ]
        for name, trial in trials:
            tried[name] += 1
            survived[name] += not trial()
    for name, count in tried.items():
        print(f"{name}: {survived[name]} of {count} survived")
    raise SystemExit(survived != tried)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
