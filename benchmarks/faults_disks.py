"""Every command on disks that are too small: one line that names the file, and nothing is lost.

    python benchmarks/faults_disks.py --tries 3

Each verb runs on what the recipe of ``faults_recipe`` has made and writes into a file system in
memory (which takes root) with room for a random part of what it writes; then there is room, and the
same command is given again. Survived: the first ends with code 1 and one line that names a file of
the disk, and what the second makes is what an undisturbed command makes, byte by byte.
"""

import argparse
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faults_recipe as recipe
import numpy as np
from faults import digest, rests
from flax import nnx

from wsss_jax.models import build
from wsss_jax.recipes import demo
from wsss_jax.weights import loading

LARGE = 1 << 30
PAGE = resource.getpagesize()
DATA = "--data {base}/data"
TRAINED = "--training.model.backbone tiny --training.epochs 2 --training.batch-size 4 "
TRAINED += "--training.save-every 2 --training.augmentation.crop 64"

COMMANDS = {
    "import": f"import {{base}}/data/saliency {DATA} --out {{disk}}/o --layout saliency_png",
    "train": f"train {DATA} --split train --out {{disk}}/o --model.backbone tiny --epochs 2 "
    "--batch-size 4 --save-every 2 --augmentation.crop 64",
    "explain": f"explain {{made}}/run_fine {DATA} --split train --out {{disk}}/o --scales 1.0",
    "explain a photograph": "explain {made}/run_fine --image {base}/data/images/{name} "
    "--out {disk}/o",
    "refine by walk": f"refine {{made}}/cam_fine {DATA} --split train --out {{disk}}/o "
    "--walk.radius 2 --walk.steps 2 --workers.count 2",
    "refine by CRF": f"refine {{made}}/cam_fine {DATA} --split train --out {{disk}}/o --method crf",
    "features": f"features {DATA} --weights {{base}}/tiny.npz --backbone tiny --taps 1 2 3 "
    "--channels 5 --out {disk}/o",
    "combine by a rule": f"combine {{made}}/cam_fine {{made}}/cam_coarse {DATA} --split train "
    "--out {disk}/o",
    "combine by what learns": f"combine {{made}}/cam_fine {{made}}/cam_coarse {DATA} --split train "
    "--run {disk}/run --learn-split train --features {base}/features --combining.cells 12 "
    "--out {disk}/o",
    "masks": "masks {made}/combined --out {disk}/o --threshold 0.3",
    "affinity": f"affinity {{made}}/cam_fine {DATA} --train-split train --split train "
    f"--no-with-crf --out {{disk}}/o {TRAINED} --walk.steps 2",
    "saliency": f"saliency {DATA} --train-split train --split train --no-with-network "
    f"--out {{disk}}/o {TRAINED}",
    "segment by a head": f"segment {{made}}/pseudo_masks {DATA} --split train --no-with-crf "
    "--features {base}/features --out {disk}/o --linear.cells 12",
    "evaluate": f"evaluate {{made}}/combined {DATA} --split train --out {{disk}}/o",
    "report": f"report {{made}}/combined {DATA} --split train --out {{disk}}/o/report.html",
    "suggest": f"suggest {{made}}/combined_uncertainty {DATA} --split train --out {{disk}}/o",
    **{
        f"export to {name}": f"export {{made}}/pseudo_masks {DATA} --split train --out {{disk}}/o "
        f"--format {name}"
        for name in ("png", "overlay", "coco", "yolo", "label-studio")
    },
    **{
        f"export to {name}": f"export {{made}}/combined {DATA} --split train --out {{disk}}/o "
        f"--format {name}"
        for name in ("irn", "psa", "npz")
    },
    "export to onnx": "export {made}/segment/run --out {disk}/o.onnx --format onnx --size 64 64",
    "predict": "predict {made}/segment/run {base}/data/images --out {disk}/o",
    "store pack": "store pack {disk}/packed",
    "store unpack": "store unpack {disk}/shards",
    "weights convert": "weights convert {base}/tiny.npz --to {disk}/o.npz --backbone tiny",
}  # fmt: skip
"""What is typed; ``{disk}`` is the file system in memory."""

GIVEN = {"store pack": ("made/combined", "packed"), "store unpack": ("shards", "shards")}
"""What lies on the disk before, below ``base`` and below the disk."""


def copied(path: Path, to: Path) -> None:
    """Copy a file or a folder."""
    to.parent.mkdir(parents=True, exist_ok=True)
    _ = shutil.copytree(path, to) if path.is_dir() else shutil.copy2(path, to)


def blocks(place: Path) -> int:
    """Bytes that a file, or the files of a folder, take in memory: whole pages."""
    files = [path for path in (place, *place.rglob("*")) if path.is_file()]
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)


def resize(place: Path, size: int) -> None:
    """Give a file system in memory another size, in whole pages."""
    option = f"remount,size={-(-size // PAGE) * PAGE}"
    subprocess.run(["mount", "-o", option, str(place)], check=True, capture_output=True)


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A file system in memory of LARGE bytes."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", str(place)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def typed(command: str) -> tuple[int, list[str]]:
    """Code and lines on stderr of a command."""
    program = [sys.executable, "-m", "wsss_jax.cli", *shlex.split(command)]
    done = subprocess.run(program, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines()


def give(name: str, base: Path, place: Path) -> None:
    """Put onto the disk what a command works on there."""
    if name in GIVEN:
        source, target = GIVEN[name]
        copied(base / source, place / target)


def tried(name: str, command: str, base: Path, share: float, wanted: dict[str, str], size: int):
    """What is wrong with a command on a disk with room for a share of ``size`` bytes."""
    with disk(base / "disk") as place:
        give(name, base, place)
        resize(place, blocks(place) + int(share * size))
        code, errors = typed(command)
        last = errors[-1:] or [""]
        found = []
        if code != 1 or len(errors) != 1 or str(place) not in last[0]:
            found.append(f"code {code}, {len(errors)} lines: {last[0]}")
        resize(place, LARGE)
        code, errors = typed(command)
        if code:
            found.append(f"again: code {code}, {errors[-1:]}")
        made = digest(place)
        changed = [path for path in {**wanted, **made} if made.get(path) != wanted.get(path)]
        if changed:
            found.append(f"another result: {len(changed)} files, {sorted(changed)[:4]}")
        found += [f"left behind: {path}" for path in rests(place)]
    print(f"{name}, room for {share:.0%} of {size >> 10} KiB: {last[0][-150:]}", flush=True)
    for line in found:
        print(f"    {line}", flush=True)
    return found


def prepare(base: Path) -> dict[str, str]:
    """What the commands work on; the places that they name."""
    data, made = demo.prepare(base / "data", recipe.IMAGES), base / "made"
    loading.save(build.backbone("tiny", rngs=nnx.Rngs(0), output_stride=16), base / "tiny.npz")
    names = {"base": str(base), "made": str(made), "disk": str(base / "disk")}
    names["name"] = min(data.glob("images/*")).name
    before = [
        f"run {recipe.__file__} --data {data} --out {made}",
        COMMANDS["features"].replace("{disk}/o", "{base}/features").format(**names),
    ]
    for command in before:
        code, errors = typed(command)
        assert code == 0, errors
    copied(made / "combined", base / "shards")
    code, errors = typed(f"store pack {base / 'shards'}")
    assert code == 0, errors
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=2, help="disks for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=(), help="commands; all if none is given")
    settings = parser.parse_args()
    rng = np.random.default_rng(settings.seed)
    total = bad = 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(base / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        names = prepare(base)
        for name, command in COMMANDS.items():
            shares = rng.uniform(0, 0.95, settings.tries)
            if settings.only and name not in settings.only:
                continue
            command = command.format(**names)
            with disk(base / "disk") as place:
                give(name, base, place)
                before = 0 if name in GIVEN else blocks(place)
                code, errors = typed(command)
                if code == 1 and "pip install" in errors[-1]:
                    print(f"{name}: not tried, {errors[-1]}", flush=True)
                    continue
                assert code in (0, 3), (name, errors)
                wanted, size = digest(place), blocks(place) - before
            for share in shares:
                total += 1
                bad += bool(tried(name, command, base, share, wanted, size))
    print(f"{total - bad} of {total} survived")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
