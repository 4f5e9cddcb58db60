"""How long ``wsss check`` takes for 10,000 photographs with a table of labels.

    python benchmarks/check_many.py --out many

Half are JPEG of 500×375 pixels, half PNG of 320×240, with texture, as a camera's. Every hundredth
is cut off, every fiftieth shows no class. Printed are the report, wall and processor
seconds, and the largest resident memory.
"""

import io
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from wsss_jax.datasets.check import survey
from wsss_jax.stages.check import lines


@dataclass(frozen=True)
class Options:
    """What is read.

    Attributes:
        out: folder of the photographs; they are drawn where it is not there.
        count: of them.
    """

    out: Path = Path("many")
    count: int = 10_000


def main(options: Options) -> None:
    if not options.out.is_dir():
        draw(options.out, options.count)
    start, before = time.monotonic(), _processor()
    findings = survey(options.out)
    wall, spent = time.monotonic() - start, _processor() - before
    print("\n".join(lines(findings)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{wall:.0f} s, {spent:.0f} s of processors, {peak:.2f} GiB")


def draw(root: Path, count: int) -> None:
    """Photographs in ``images`` and labels.csv."""
    (root / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    kinds = [("jpg", "JPEG", (375, 500)), ("png", "PNG", (240, 320))]
    drawn = [[_encoded(random, form, size) for _ in range(8)] for _, form, size in kinds]
    rows = ["file,label"]
    for number in range(count):
        kind = number % 2
        content = drawn[kind][number // 2 % 8]
        name = f"IMG {number:05}.{kinds[kind][0]}"
        (root / "images" / name).write_bytes(content[: -2000 if number % 100 == 99 else None])
        rows.append(f"{name},{'' if number % 50 == 7 else ('cat', 'dog')[number % 3 % 2]}")
    (root / "labels.csv").write_text("\n".join([*rows, ""]))


def _encoded(random: np.random.Generator, form: str, size: tuple[int, int]) -> bytes:
    coarse = random.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, np.int16) + random.integers(-9, 10, (*size, 3), np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, form)
    return buffer.getvalue()


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(tyro.cli(Options))
