"""Peak memory of every verb on photographs of 4000×3000 pixels.

    python benchmarks/large_photograph.py efficientnet_lite0 --out large

Two such photographs with true masks, labels and score maps are drawn, and every verb runs in a
process of its own, on those or on what verbs before it wrote. Printed are wall seconds and the
largest resident memory of the process, in GiB; the aim is 3. The weights are as behind
``--weights``.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.photographs import working_size
from wsss_jax.types import ScoreMaps

SIZE = (3000, 4000)
GIB = 2**20
"""KiB, in which the system counts."""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        weights: pretrained weights of a convolutional network.
        backbone: that network.
        out: a new folder.
        only: verbs to run, all by default; those before must have run.
        size: (height, width) of the photographs.
    """

    weights: tyro.conf.Positional[str]
    backbone: str = "efficientnet_lite0"
    out: Path = Path("large")
    only: tuple[str, ...] = ()
    size: tuple[int, int] = SIZE


def main(options: Options) -> None:
    data = options.out / "data"
    if not data.is_dir():
        draw(data, options.size)
        draw_scores(options.out / "drawn", options.size)
    for name, arguments in verbs(options.out, data, options.weights, options.backbone).items():
        if not options.only or name in options.only:
            code, seconds, peak = measured(arguments, options.out / f"{name}.log")
            state = "" if code == 0 else f"  exit code {code}, see {name}.log"
            print(f"{name:18} {seconds:7.1f} s {peak:6.2f} GiB{state}", flush=True)


def draw(data: Path, size: tuple[int, int]) -> None:
    """Two photographs of a shape on a ground, with texture, and their masks and labels."""
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    height, width = size
    random = np.random.default_rng(0)
    for number, colour in enumerate(((190, 60, 40), (50, 70, 190))):
        pixels = random.integers(60, 120, (height, width, 3), np.uint8)
        mask = np.zeros(size, np.uint8)
        place = np.s_[height // 4 : height // 2, width // 4 : width // 2 + number * width // 8]
        pixels[place] = pixels[place] // 4 + np.array(colour, np.uint8)
        mask[place] = number + 1
        Image.fromarray(pixels).save(data / f"images/im{number}.jpg", quality=90)
        Image.fromarray(mask).save(data / f"masks/im{number}.png")
    (data / "labels.csv").write_text("im0.jpg,cat\nim1.jpg,dog\n")


def draw_scores(folder: Path, size: tuple[int, int]) -> None:
    """Score maps of the two shapes at a quarter of the working size, and a little of the ground."""
    made = stores.create(
        folder, holds="scores", classes=("cat", "dog"), made_by={"stage": "drawn"}, parents=()
    )
    height, width = (side // 4 for side in working_size(size))
    for number in range(2):
        scores = np.full((height, width, 1), 0.1, np.float32)
        right = width // 2 + number * width // 8
        scores[height // 4 : height // 2, width // 4 : right] = 0.9
        peak = np.full(1, 0.9, np.float32)
        made.put_scores(f"im{number}", ScoreMaps(scores, np.array([number], np.int32), size, peak))


def verbs(out: Path, data: Path, weights: str, network: str) -> dict[str, list[str]]:
    """Arguments of ``wsss`` by name, in an order in which each finds what it needs."""
    on = ["--data", str(data), "--split", "all"]
    names = ("run", "cam", "features", "crf", "walk", "mean", "masks", "segmenter", "png", "new")
    at = {name: str(out / name) for name in names}
    few = ["--epochs", "1", "--batch-size", "2", "--model.backbone", network]
    segmenting = ["--train-split", "all", "--training.epochs", "1", "--training.batch-size", "2"]
    segmenting += ["--training.model.backbone", network, "--training.model.weights", weights]
    drawn = str(out / "drawn")
    return {
        "check": ["check", str(data)],
        "masks": ["masks", drawn, "--out", at["masks"]],
        "evaluate scores": ["evaluate", drawn, *on],
        "evaluate masks": ["evaluate", at["masks"], *on],
        "export": ["export", at["masks"], "--data", str(data), "--out", at["png"]],
        "refine crf": ["refine", drawn, *on, "--method", "crf", "--out", at["crf"]],
        "refine walk": ["refine", drawn, *on, "--method", "walk", "--out", at["walk"]],
        "combine": ["combine", drawn, at["walk"], *on, "--out", at["mean"]],
        "features": ["features", *on, "--weights", weights, "--out", at["features"]],
        "train": ["train", *on, "--out", at["run"], "--model.weights", weights, *few],
        "explain": ["explain", at["run"], *on, "--out", at["cam"]],
        "segment": ["segment", at["masks"], *on, "--out", at["segmenter"], *segmenting],
        "predict": ["predict", at["segmenter"], str(data / "images"), "--out", at["new"]],
    }


def measured(arguments: list[str], log: Path) -> tuple[int, float, float]:
    """Exit code, wall seconds and largest resident memory in GiB of one command."""
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "wsss_jax.cli", *arguments], stdout=file, stderr=file
        )
        _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - start, usage.ru_maxrss / GIB


if __name__ == "__main__":
    main(tyro.cli(Options))
