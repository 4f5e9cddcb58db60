"""Dense CRF per image: ours against pydensecrf, equal work, in one process.

    taskset -c 1 python benchmarks/crf.py --data <folder of photographs>

Both sides take a photograph of 375x500 and softmax probabilities as host arrays, each in the layout
it likes best, and give host marginals; pydensecrf is called directly, as the papers' code does, not
through our wrapper. The two alternate; each ratio is of one pair of runs (theirs / ours, above 1
means that ours is faster), and medians over all pairs are printed, in wall time and in process CPU
time. On a shared host quote the CPU time of a run that is pinned to one core.
``--workers 2 --images 64`` instead spreads the images over that many processes, one thread each,
and compares throughput.
"""

import importlib
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from wsss_jax.crf import dense as crf
from wsss_jax.crf.settings import Settings
from wsss_jax.run.executors import ONE_THREAD

SIZE = (375, 500)


@dataclass(frozen=True)
class Options:
    """What to measure. data: folder of photographs, searched for *.jpg."""

    data: Path
    images: int = 8
    repeats: int = 5
    presets: tuple[str, ...] = ("psa", "irn")
    labels: tuple[int, ...] = (4, 21)
    workers: int = 0


def scene(path: Path, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph at 375x500, and smooth random probabilities for it."""
    height, width = SIZE
    image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    coarse = np.random.default_rng(seed).normal(0, 2, (labels, 12, 16)).astype(np.float32)
    logits = np.stack(
        [np.asarray(Image.fromarray(c).resize((width, height))) for c in coarse], axis=-1
    )
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return np.array(image), odds / odds.sum(-1, keepdims=True)


def peer(image: np.ndarray, probability: np.ndarray, settings: Settings) -> np.ndarray:
    """What PSA's and IRN's code does with probabilities (k,H,W); marginals (k,H,W)."""
    densecrf = importlib.import_module("pydensecrf.densecrf")
    utils = importlib.import_module("pydensecrf.utils")
    labels, height, width = probability.shape
    model = densecrf.DenseCRF2D(width, height, labels)
    model.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(probability)))
    model.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=image,
        compat=settings.bilateral_compat,
    )
    return np.array(model.inference(settings.iterations)).reshape(labels, height, width)


def timed(function, *arguments) -> tuple[float, float, np.ndarray]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compare(paths: list[Path], preset: str, labels: int, repeats: int) -> str:
    settings = crf.PRESETS[preset]
    ours, theirs, far, other = [], [], 0.0, 0
    for number, path in enumerate(paths):
        image, probability = scene(path, labels, number)
        channels_first = probability.transpose(2, 0, 1).copy()
        crf.refine(image, probability, settings)  # compile and cache, as in any long run
        for _ in range(repeats):
            *their_time, wanted = timed(peer, image, channels_first, settings)
            *our_time, got = timed(crf.refine, image, probability, settings)
            ours.append(our_time)
            theirs.append(their_time)
        wanted = wanted.transpose(1, 2, 0)
        far = max(far, float(np.abs(wanted - got).mean()))
        other += int((wanted.argmax(-1) != got.argmax(-1)).sum())
    columns = []
    for clock in range(2):
        own, library = [t[clock] for t in ours], [t[clock] for t in theirs]
        ratios = [b / a for a, b in zip(own, library, strict=True)]
        median = statistics.median
        columns.append(
            f"{median(library) * 1e3:7.1f} {median(own) * 1e3:7.1f} {median(ratios):5.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )
    return (
        f"{preset:5} {labels:3} | {columns[0]} | {columns[1]} | {far:.1e} {other:3} "
        f"| {os.getloadavg()[0]:.1f}"
    )


def _one(job: tuple[Path, int], backend: str, preset: str, labels: int) -> float:
    image, probability = scene(job[0], labels, job[1])
    settings = crf.PRESETS[preset]
    if backend == "jax":
        return float(crf.refine(image, probability, settings)[0, 0, 0])
    return float(peer(image, probability.transpose(2, 0, 1).copy(), settings)[0, 0, 0])


def throughput(paths: list[Path], preset: str, labels: int, workers: int, repeats: int) -> str:
    jobs = [(path, number) for number, path in enumerate(paths)]
    seconds: dict[str, list[float]] = {"pydensecrf": [], "jax": []}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for turn, backend in product(range(repeats + 1), seconds):
            start = time.perf_counter()
            list(pool.map(partial(_one, backend=backend, preset=preset, labels=labels), jobs))
            if turn:  # the first turn compiles
                seconds[backend].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["jax"], seconds["pydensecrf"], strict=True)]
    rates = " ".join(f"{b} {len(jobs) / statistics.median(s):.1f}/s" for b, s in seconds.items())
    return (
        f"{preset:5} {labels:3} | {workers} workers, {len(jobs)} images: {rates} "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| load {os.getloadavg()[0]:.1f}"
    )


def main(options: Options) -> None:
    paths = sorted(options.data.rglob("*.jpg"))[: options.images]
    if not paths:
        raise FileNotFoundError(f"{options.data} holds no *.jpg; give a folder of photographs")
    print(f"{len(paths)} photographs at {SIZE}, load {os.getloadavg()}")
    if options.workers:
        os.environ.update(ONE_THREAD)
        run = partial(throughput, workers=options.workers)
    else:
        print("            | wall: pydensecrf, ours [ms], ratio | process CPU: the same")
        print("            | then mean |dQ| of the worst photo, pixels whose argmax differs, load")
        run = compare
    for preset, labels in product(options.presets, options.labels):
        print(run(paths, preset, labels, repeats=options.repeats), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
