"""How fast stores of VOC's size are fused, decided and judged: images per second of one core.

    taskset -c 1 python benchmarks/per_image.py [--images 200] [--profile judge]

Three stores of two classes on 94 by 125 cells (stride 4) of photographs of 375 by 500 pixels, with
true masks. Each stage runs in this process; images per second of processor time, which other work
on the machine hardly changes. --profile prints where the time of one stage goes.
"""

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.classes import VOC, ClassList, palette
from wsss_jax.data.files import decode_mask, mask_png
from wsss_jax.data.stores import Store
from wsss_jax.stages.combine import Fusion, combine
from wsss_jax.stages.evaluate import Scoring, evaluate
from wsss_jax.stages.masks import Masking, decide
from wsss_jax.types import ScoreMaps, Size

SIZE: Size = (375, 500)
GRID: Size = (94, 125)
CLASSES = np.array([11, 14], np.int32)
DISTINCT = 8


@dataclass(frozen=True)
class Judged:
    """A source with labels and true masks, whose photographs are never opened."""

    ids: tuple[str, ...]
    truth: tuple[bytes, ...] = ()
    name: str = "benchmark"
    classes: ClassList = VOC
    has_background: bool = True

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """The same two classes for every image."""
        return np.isin(np.arange(len(VOC)), CLASSES)

    def size(self, id: str) -> Size:
        """Of every photograph."""
        return SIZE

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """Black."""
        return np.zeros((*SIZE, 3), np.uint8)

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Decoded from a palette PNG, as of a data set on disk."""
        return decode_mask(self.truth[int(id[1:]) % DISTINCT], id)

    def encoded(self, id: str) -> bytes:
        """Nothing."""
        return b""


def maps(seed: int) -> ScoreMaps:
    """Two smooth maps with maximum 1, as networks make them."""
    coarse = np.random.default_rng(seed).random((2, 6, 8)).astype(np.float32)
    size = (GRID[1], GRID[0])
    planes = [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in coarse]
    scores = np.stack([np.clip(np.asarray(plane), 0, None) for plane in planes], axis=-1)
    scores /= scores.max(axis=(0, 1))
    return ScoreMaps(scores, CLASSES, SIZE, np.ones(2, np.float32))


def world(folder: Path, count: int) -> tuple[Judged, list[Store]]:
    """The source and three stores."""
    ids = tuple(f"i{number}" for number in range(count))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    truth = [(np.hypot(rows - 180, columns - 40 * n) < 100) * np.uint8(12) for n in range(DISTINCT)]
    made = [
        stores.create(folder / f"system{n}", holds="scores", classes=VOC.names, made_by={"n": n})
        for n in range(3)
    ]
    for number, id in enumerate(ids):
        for seed, store in enumerate(made):
            store.put_scores(id, maps(seed * DISTINCT + number % DISTINCT))
    return Judged(ids, tuple(mask_png(one.astype(np.uint8), palette()) for one in truth)), made


def main() -> None:
    """Measure every stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--profile", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        source, made = world(folder, given.images)
        ids, scoring = source.ids, Scoring()
        masked = folder / "masks"
        stages: dict[str, Callable[[], object]] = {
            rule: lambda rule=rule: combine(
                made, source, folder / rule, Fusion(rule), ids=ids, workers=None
            )
            for rule in ("mean", "log_opinion_pool", "majority_vote")
        }
        stages["decide"] = lambda: decide(made[0], masked, Masking(0.3), ids=ids)
        stages["judge"] = lambda: evaluate(made[0], source, scoring, split="maps")
        stages["judge masks"] = lambda: evaluate(
            stores.open_store(masked), source, scoring, split="masks"
        )
        found = {
            name: rate(stage, given.images, name == given.profile) for name, stage in stages.items()
        }
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    for name, value in found.items():
        print(f"{name:20}{value:>8.0f} images/s of processor time")


def rate(stage: Callable[[], object], images: int, profiled: bool) -> float:
    """Images per second of processor time."""
    watch = cProfile.Profile()
    start = time.process_time()
    if profiled:
        watch.runcall(stage)
        pstats.Stats(watch).sort_stats("tottime").print_stats(18)
    else:
        stage()
    return images / (time.process_time() - start)


if __name__ == "__main__":
    main()
