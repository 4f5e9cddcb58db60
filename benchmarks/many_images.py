"""Does everything stay flat when there are very many photographs?

Command: python benchmarks/many_images.py [--images 2000 8000] [--most 1000] [--stages explain …]
Small scenes are drawn, and repeated under new names until there are as many as wanted; they become
prepared records (the layout tfds). Then each stage runs in a process of its own, on all of them:
a part of an epoch of training, class maps, frozen features, an import, fusing by a rule, learning
to combine, fusing by what was learned, masks, and evaluation of maps and of masks. ``--most``:
records above which a store is packed here, so that the smallest set is packed too. ``--stages``:
only these; a stage needs what those before it wrote. Each process has one thread of computing, as
the workers of per-image stages have.

Prints of each stage and size: images per second of processor time, after a start on a few images;
the peak of resident memory, the most files that were open at once, what the stage left on the disk,
and the seconds that went by.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.data import stores
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import open_store
from wsss_jax.datasets import synthetic, tfds_builder
from wsss_jax.datasets.table import ALL, Source, open_dataset
from wsss_jax.run.executors import ONE_THREAD

BASE, SIDE = 120, 64
"""Scenes that are drawn, and their sides in pixels."""

FIRST = 48
"""Images that a stage starts with, before the clock runs: programs are compiled for them."""

STEPS, BATCH = 120, 32
"""Of training; the first 20 steps are not counted."""


def main() -> None:
    """Prepare each size, and measure every stage on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--stages", nargs="+", choices=[*STAGES], default=[*STAGES])
    parser.add_argument("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        stores.MANY = given.most
        stage, folder = given.child[0], Path(given.child[1])
        print("\n" + json.dumps(prepare(folder) if stage == "prepare" else run(stage, folder)))
        return
    with tempfile.TemporaryDirectory() as base:
        # Programs that were compiled for the first images are found again for all.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(base, "compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # Where other programs want the cores too, threads that wait for one another count as work.
        os.environ.update(ONE_THREAD)
        for count in given.images:
            print(f"\n{count} photographs\n")
            print("| | images/s | peak, MiB | open files | files | MiB | s |")
            print("|---|--:|--:|--:|--:|--:|--:|", flush=True)
            folder = Path(base, str(count))
            folder.mkdir()
            for stage in ("prepare", *given.stages):
                command = [sys.executable, __file__, "--most", str(given.most)]
                done = subprocess.run(
                    [*command, "--child", stage, str(folder)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                found = json.loads(done.stdout.splitlines()[-1])
                print(f"| {stage} | " + " | ".join(map(shown, found)) + " |", flush=True)


def shown(value: float | None) -> str:
    """A number of a table."""
    return "" if value is None else f"{value:,.{0 if value >= 10 else 1}f}"


def prepare(folder: Path) -> list[float | None]:
    """The records of as many photographs as the folder's name tells, and a trained network."""
    from flax import nnx

    from wsss_jax.batches.augment import Augmentation
    from wsss_jax.models.build import backbone
    from wsss_jax.run.training import Training
    from wsss_jax.stages.train import fit
    from wsss_jax.systems.classifier import Classifier
    from wsss_jax.train.optimizers import Optim
    from wsss_jax.weights.loading import save

    count, scenes = int(folder.name), folder.parent / "scenes"
    synthetic.write(scenes, BASE, 0, settings=synthetic.Scenes(size=SIDE))
    optim = Optim("adamw", learning_rate=4e-3)
    model = Classifier("tiny", None, 8, optim=optim)
    settings = Training(model, Augmentation(SIDE, (56, 76)), epochs=15)
    fit(open_dataset(scenes, split=ALL), settings, folder.parent / "run")
    save(backbone("tiny", rngs=nnx.Rngs(0), output_stride=8), folder.parent / "tiny.npz")
    with counted() as found, tempfile.TemporaryDirectory(dir=folder) as links:
        plain = linked(scenes, Path(links, "photographs"), count)
        tfds_builder.write(plain, folder / "records")
    rate = count / found["seconds"]
    return [rate, *found["peaks"], *on_disk(folder / "records"), found["passed"]]


def linked(old: Path, new: Path, count: int) -> Path:
    """``count`` photographs with masks, each a link to one of the scenes."""
    content = json.loads((old / "labels.json").read_text())
    of = sorted(content["image_labels"])
    ids = {f"n{n:07d}": of[n % BASE] for n in range(count)}
    for part in ("images", "masks"):
        (new / part).mkdir(parents=True)
        for id, one in ids.items():
            os.link(old / part / f"{one}.png", new / part / f"{id}.png")
    labels = {id: content["image_labels"][one] for id, one in ids.items()}
    write_atomic(new / "labels.json", json.dumps({**content, "image_labels": labels}).encode())
    return new


def run(stage: str, folder: Path) -> list[float | None]:
    """Run one stage on a few images, then on all with the clock running."""
    source = open_dataset(folder / "records", split=ALL)
    work, outputs = STAGES[stage]
    if stage != "train":
        with tempfile.TemporaryDirectory(dir=folder) as first:
            work(folder, source, Path(first), source.ids[:FIRST])
    with counted() as found:
        spent = work(folder, source, folder, source.ids)
    rate = spent or len(source.ids) / found["seconds"]
    left = [on_disk(folder / name) for name in outputs]
    sums: list[float | None] = [sum(column) for column in zip(*left, strict=True)]
    return [rate, *found["peaks"], *(sums or [None, None]), found["passed"]]


Work = Callable[[Path, Source, Path, tuple[str, ...]], float | None]
"""(folder with what was made before, photographs, where to write, ids) to images per second, or
None where the clock tells."""


def train(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> float:
    """A part of an epoch."""
    import jax

    from wsss_jax.batches.augment import Augmentation
    from wsss_jax.batches.batches import training_batches
    from wsss_jax.systems import classifier
    from wsss_jax.train.loop import Loop, fit

    batches = training_batches(source, Augmentation(SIDE, (56, 76)), seed=0, batch_size=BATCH)
    model = classifier.Classifier("tiny", None, 8)
    system = classifier.make(model, classes=len(source.classes), steps=STEPS)
    began: list[float] = []

    def progress(done: int, total: int, metrics: Any) -> None:
        if done >= 20:
            began.append(time.process_time())

    with tempfile.TemporaryDirectory() as run:
        plan = Loop(STEPS, save_every=STEPS)
        fit(system, batches, plan, folder=Path(run), key=jax.random.key(0), progress=progress)
    return (STEPS - 20) * BATCH / (began[-1] - began[0])


def explain(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """Class maps."""
    from wsss_jax.stages.explain import Explanation
    from wsss_jax.stages.explain import explain as stage

    settings = Explanation(scales=(1.0,), flip=False, batch_size=16)
    stage(folder.parent / "run", source, out / "cams", settings, ids=ids)


def features(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """Frozen features of the network that made the class maps."""
    from wsss_jax.stages.features import Features
    from wsss_jax.stages.features import features as stage

    weights = folder.parent / "tiny.npz"
    settings = Features(weights, backbone="tiny", taps=(1, 2), channels=32, batch_size=16)
    stage(source, out / "looks", settings, ids=ids)


def imported(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """The class maps, read as those of another tool."""
    from wsss_jax.stages.import_maps import Import, import_priors

    import_priors(Import(), folder / "cams", source, out / "other", ids=ids)


def combine(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """Two systems by their mean."""
    from wsss_jax.stages.combine import Fusion
    from wsss_jax.stages.combine import combine as stage

    stage(systems(folder), source, out / "mean", Fusion("mean"), ids=ids)


def learned(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """A combiner of two systems."""
    learn(inputs(folder, source), out / "combiner", Combining(cells=16), ids=ids)


def fused(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """Two systems by the combiner that was learned."""
    fuse(folder / "combiner", inputs(folder, source), out / "fused", ids=ids)


def masks(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """Masks of the mean."""
    from wsss_jax.stages.masks import Masking, decide

    decide(open_store(folder / "mean"), out / "masks", Masking(0.5), ids=ids)


def evaluate(folder: Path, source: Source, out: Path, ids: tuple[str, ...], *, store: str) -> None:
    """A store against the true masks, with its interval."""
    from wsss_jax.datasets.prepared import open_records
    from wsss_jax.stages.evaluate import Scoring
    from wsss_jax.stages.evaluate import evaluate as stage

    some = open_records(folder / "records", ALL, ids=ids)
    stage(open_store(folder / store), some, Scoring(), split=ALL).interval()


def missing(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """Which images a packed store lacks."""
    assert not open_store(folder / "cams").missing(ids)


def unpacked(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """A file for each record again."""
    if out == folder:
        open_store(folder / "cams").unpack()


def packed(folder: Path, source: Source, out: Path, ids: tuple[str, ...]) -> None:
    """And few large ones."""
    if out == folder:
        open_store(folder / "cams").pack()


def systems(folder: Path) -> tuple[stores.Store, ...]:
    """The two stores of class maps."""
    return open_store(folder / "cams"), open_store(folder / "other")


def inputs(folder: Path, source: Source) -> Inputs:
    """What a combiner is given."""
    return Inputs(source, systems(folder), features=(open_store(folder / "looks"),))


STAGES: dict[str, tuple[Work, tuple[str, ...]]] = {
    "train": (train, ()),
    "explain": (explain, ("cams",)),
    "features": (features, ("looks",)),
    "import": (imported, ("other",)),
    "combine": (combine, ("mean",)),
    "learn": (learned, ("combiner",)),
    "fuse": (fused, ("fused", "fused_trust", "fused_uncertainty")),
    "masks": (masks, ("masks",)),
    "evaluate maps": (partial(evaluate, store="mean"), ()),
    "evaluate masks": (partial(evaluate, store="masks"), ()),
    "missing": (missing, ()),
    "unpack": (unpacked, ("cams",)),
    "pack": (packed, ("cams",)),
}
"""What is measured, and the folders that it leaves."""


@contextmanager
def counted() -> Iterator[dict[str, Any]]:
    """Filled when the block ends: seconds of the processor, seconds that passed, and
    [peak of memory in MiB, most open files].
    """
    found: dict[str, Any] = {}
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], len(os.listdir("/proc/self/fd")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, spent = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        found["seconds"] = time.process_time() - spent
        found["passed"] = time.perf_counter() - began
        done.set()
        watcher.join()
        # Of this program alone: ru_maxrss is never below that of the process that started it.
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
        found["peaks"] = [peak, most[0]]


def on_disk(folder: Path) -> tuple[int, float]:
    """Files and MiB."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files) / 2**20


if __name__ == "__main__":
    main()
