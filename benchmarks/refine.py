"""Refinement and evaluation side by side with what the papers' code does: all tables in one run.

    python benchmarks/refine.py --photographs <folder of *.jpg>

Runs the walk's and the CRF's own benchmarks (``walk.py``, ``crf.py``: what is compared is said
there), each in a process of its own so that neither sees the other's threads or memory, and adds

* evaluation of 1,449 masks of 375 by 500 pixels: ``metrics.confusion`` against the bincount over
  masked pixels that nearly every repository copies (``fast_hist``), medians of ratios over pairs,
  wall and process-CPU time, peak extra memory of one image.

``--parts walk crf pool evaluation`` chooses; "pool" is the CRF over 64 photographs on all cores.
Figures of a shared host wander: quote the medians of ratios and, for one thread, the CPU time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsss_jax.ops import metrics
from wsss_jax.types import IGNORE

HERE = Path(__file__).parent
SIZE, IMAGES, CLASSES, DISTINCT = (375, 500), 1449, 20, 63
PARTS = ("walk", "crf", "pool", "evaluation")


def fast_hist(truth: np.ndarray, predicted: np.ndarray, size: int) -> np.ndarray:
    """Counts (size, size) by the idiom of FCN's score.py (Long, Shelhamer & Darrell 2015)."""
    known = (truth >= 0) & (truth < size)
    pairs = size * truth[known].astype(int) + predicted[known]
    return np.bincount(pairs, minlength=size**2).reshape(size, size)


def masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A truth of blocks with an ignored rim, and a prediction that errs along the edges."""
    generator = np.random.default_rng(seed)
    coarse = np.zeros((8, 10), np.uint8)
    coarse[2:6, 2:7] = generator.integers(1, CLASSES + 1)
    coarse[4:8, 5:9] = generator.integers(1, CLASSES + 1)
    truth = np.kron(coarse, np.ones((47, 50), np.uint8))[: SIZE[0], : SIZE[1]]
    predicted = np.roll(truth, generator.integers(-9, 10, 2), (0, 1))
    edge = truth != np.roll(truth, 5, (0, 1))
    return np.where(edge, np.uint8(IGNORE), truth), predicted


def seconds(function: Callable, pairs: list) -> tuple[float, float, np.ndarray]:
    """Wall and CPU seconds for all images, and the summed counts."""
    wall, cpu = time.perf_counter(), time.process_time()
    total = np.zeros((CLASSES + 1, CLASSES + 1), np.int64)
    for number in range(IMAGES):
        total += function(*pairs[number % len(pairs)])
    return time.perf_counter() - wall, time.process_time() - cpu, total


def peak_memory(function: Callable, pair: tuple) -> float:
    """Megabytes that one image needs beyond its masks."""
    tracemalloc.start()
    function(*pair)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def evaluation(repeats: int) -> None:
    """The table of 1,449 masks; the two must count the same."""
    pairs = [masks(seed) for seed in range(DISTINCT)]

    def ours(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return metrics.confusion(truth, predicted, CLASSES).counts

    def theirs(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return fast_hist(truth, predicted, CLASSES + 1)

    own, idiom = [], []
    for _ in range(repeats):
        *their_time, wanted = seconds(theirs, pairs)
        *our_time, got = seconds(ours, pairs)
        np.testing.assert_array_equal(got, wanted)
        own.append(our_time)
        idiom.append(their_time)
    print(f"evaluation of {IMAGES} masks of {SIZE}, {CLASSES} classes, equal counts")
    print(f"{'':>6}{'idiom s':>10}{'ours s':>10}   ratio (least-most)")
    for clock, name in enumerate(("wall", "cpu")):
        ratios = [b[clock] / a[clock] for a, b in zip(own, idiom, strict=True)]
        times = [statistics.median(t[clock] for t in side) for side in (idiom, own)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:>6}{times[0]:>10.2f}{times[1]:>10.2f}   {spread}")
    memory = [peak_memory(function, pairs[0]) for function in (theirs, ours)]
    print(f"peak extra memory of one image: idiom {memory[0]:.1f} MB, ours {memory[1]:.1f} MB")


def other(script: str, *arguments: str | int | Path) -> None:
    """Run a benchmark beside this one; its failure is shown and does not stop the others."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    print(f"\n$ {script} {' '.join(command[2:])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        print(f"{script} ended with exit code {code}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photographs", type=Path, help="folder searched for *.jpg, for the CRF")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs per ratio")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes of pool"
    )
    settings = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    if "evaluation" in settings.parts:
        evaluation(settings.repeats)
    if "walk" in settings.parts:
        other("walk.py", "--peers", "--threads", 1, "--repeats", settings.repeats)
    if settings.photographs is None:
        print("\nno --photographs FOLDER: the CRF's tables are left out")
        return
    images = ("--data", settings.photographs, "--repeats", settings.repeats)
    if "crf" in settings.parts:
        other("crf.py", *images)
    if "pool" in settings.parts:
        other("crf.py", *images, "--workers", settings.workers, "--images", 64)


if __name__ == "__main__":
    main()
