"""How fast files of other tools become a store: images per second of one process, by layout.

    taskset -c 1 python benchmarks/importing.py

Writes images of 375 by 500 pixels with two classes in each layout (pickled dictionaries, masks and
saliency; PyTorch's tensors are left out, whose maps at stride 4 are only copied), imports them at
the default stride with one worker, and prints images per second in wall and in processor time. That
is reading, checking, reducing, writing and flushing to disk; masks stay at stride 1.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from per_image import CLASSES, DISTINCT, SIZE, Judged
from PIL import Image

from wsss_jax.data.classes import VOC
from wsss_jax.stages.import_maps import Import, import_priors

NUMBERS = CLASSES.astype(int)


def maps(seed: int) -> np.ndarray:
    """Two smooth maps (2,H,W) with maximum near 1, as networks make them."""
    coarse = np.random.default_rng(seed).random((2, 24, 32)).astype(np.float32)
    fine = [
        np.asarray(Image.fromarray(m).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC))
        for m in coarse
    ]
    clipped = np.maximum(np.stack(fine), 0)
    return clipped / (clipped.max((1, 2), keepdims=True) + np.float32(1e-5))


def png(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path.with_suffix(".png"))


def dictionary(content: Callable[[np.ndarray], dict]) -> Callable[[np.ndarray, Path], None]:
    def write(scores: np.ndarray, path: Path) -> None:
        np.save(path, np.asarray(content(scores), object))

    return write


def planes(scores: np.ndarray) -> np.ndarray:
    """Logits of background and all classes (21,H,W), at stride 4 as ToCo and WeCLIP save them."""
    whole = np.full((len(VOC) + 1, 94, 125), -9, np.float32)
    whole[NUMBERS + 1] = 4 * scores[:, ::4, ::4]
    whole[0] = 1
    return whole


SHIFTED = np.array([0, *(NUMBERS + 1)])
WRITERS: dict[str, tuple[str, Callable[[np.ndarray, Path], None]]] = {
    "irn, high_res": (
        "irn",
        dictionary(lambda s: {"keys": NUMBERS, "cam": s[:, ::4, ::4], "high_res": s}),
    ),
    "puzzle, hr_cam": (
        "puzzle",
        dictionary(lambda s: {"keys": SHIFTED, "cam": s[:, ::4, ::4], "hr_cam": s}),
    ),
    "psa_cam": ("psa_cam", dictionary(lambda s: dict(zip(NUMBERS.tolist(), s, strict=True)))),
    "clipes": (
        "clipes",
        dictionary(lambda s: {"keys": NUMBERS, "attn_highres": s.astype(np.float16)}),
    ),
    "puzzle_rw": ("puzzle_rw", dictionary(lambda s: {"keys": SHIFTED, "rw": s})),
    "mask_png": ("mask_png", lambda s, path: png(SHIFTED[(s > 0.6).argmax(0) + 1], path)),
    "saliency_png": ("saliency_png", lambda s, path: png(s[0] * 255, path)),
    "msc_seg": ("msc_seg", dictionary(lambda s: {"msc_seg": planes(s)[None]})),
    "array": ("array", lambda s, path: np.save(path, planes(s))),
}


def rates(
    layout: str, folder: Path, ids: tuple[str, ...], repeats: int
) -> list[tuple[float, float]]:
    """Images per second, wall and processor."""
    found = []
    for number in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        import_priors(Import(layout), folder, Judged(ids), folder / f"out{number}", ids=ids)
        elapsed = time.perf_counter() - wall, time.process_time() - cpu
        found.append((len(ids) / elapsed[0], len(ids) / elapsed[1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    ids = tuple(f"i{n}" for n in range(settings.images))
    rows = []
    for name, (layout, write) in WRITERS.items():
        with tempfile.TemporaryDirectory() as there:
            folder = Path(there)
            for n, id in enumerate(ids):
                write(maps(n % DISTINCT), folder / id)
            rows.append((name, rates(layout, folder, ids, settings.repeats)))
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, Python {sys.version.split()[0]}")
    print(
        f"{settings.images} images of {SIZE}, {len(CLASSES)} classes, default stride, one process"
    )
    print(f"{'layout':<26}{'images/s wall':>14}{'images/s cpu':>14}")
    for name, found in rows:
        wall, cpu = (statistics.median(rate) for rate in zip(*found, strict=True))
        print(f"{name:<26}{wall:>14.0f}{cpu:>14.0f}")


if __name__ == "__main__":
    main()
