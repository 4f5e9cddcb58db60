"""Is the memory of the combiner flat in the number of images?

Command: python benchmarks/many_images.py [--images 500 2000 10000]
A combiner is learned on a few images of the small world, with frozen features of 128 channels, then
sets of growing size are fused, each in a process of its own; the sets are links to the same files
under new names, so that making them costs nothing. Another process learns a combiner from the whole
set. Prints the peak of resident memory and the rate of each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

BASE = 40
CHANNELS = 128
"""Of the features, as many as recipes compute."""


def main() -> None:
    """Teach once, then measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000, 10000])
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=WORK, default="fuse", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measured(Path(given.child), given.images[0], given.work)))
        return
    with tempfile.TemporaryDirectory() as folder:
        taught(Path(folder), given.cells)
        print("| images | fusing: peak, MiB | images/s | learning: peak, MiB | images/s |")
        print("|--:|--:|--:|--:|--:|", flush=True)
        for count in given.images:
            linked(Path(folder), count)
            cells = []
            for work in WORK:
                command = [sys.executable, __file__, "--child", folder, "--images", str(count)]
                command += ["--work", work]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                cells += [f"{found['memory']:.0f}", f"{found['rate']:.0f}"]
            print(f"| {count} | {' | '.join(cells)} |", flush=True)


WORK = ("fuse", "learn")
"""What is measured."""


def taught(folder: Path, cells: int) -> None:
    """A world of a few images, and a combiner that has learned from them."""
    from wsss_jax.combiner.learn import learn
    from wsss_jax.combiner.settings import Combining
    from wsss_jax.study import fusion_world, world

    made = fusion_world.make(BASE, seed=5, size=cells)
    inputs = world.write(made, folder / "world")
    inputs = replace(inputs, features=(featured(made.images, folder / "world" / "features"),))
    learn(inputs, folder / "run", Combining(cells=cells), ids=inputs.source.ids)


def featured(images: np.ndarray, folder: Path) -> Any:
    """A store of frozen features as large as real ones: random directions of the colours."""
    from wsss_jax.data import stores
    from wsss_jax.types import ScoreMaps

    names = tuple(f"component_{i}" for i in range(CHANNELS))
    made = stores.create(folder, holds="scores", classes=names, kind="logit", made_by={})
    random = np.random.default_rng(0)
    basis = random.normal(size=(3, CHANNELS))
    for row, image in enumerate(images):
        seen = (image @ basis + random.normal(size=(*image.shape[:2], CHANNELS))).astype(np.float32)
        number, size = np.arange(CHANNELS, dtype=np.int32), (image.shape[0], image.shape[1])
        maps = ScoreMaps(seen, number, size, seen.max(axis=(0, 1)), "logit")
        made.put_scores(f"w{row:05d}", maps)
    return made


def linked(folder: Path, count: int) -> None:
    """``count`` images, each a link to one of the world's, with its records in every store."""
    old, new = folder / "world", folder / f"many{count}"
    labels = json.loads((old / "data" / "labels.json").read_text())
    ids = {f"n{n:06d}": f"w{n % BASE:05d}" for n in range(count)}
    (new / "data" / "images").mkdir(parents=True)
    for id, of in ids.items():
        os.link(old / "data" / "images" / f"{of}.png", new / "data" / "images" / f"{id}.png")
    given = {id: labels["image_labels"][of] for id, of in ids.items()}
    (new / "data" / "labels.json").write_text(json.dumps({**labels, "image_labels": given}))
    for store in (path for path in old.iterdir() if path.name != "data"):
        record = next(path for path in store.rglob("w00000.npz"))
        target = new / store.name / record.parent.relative_to(store)
        target.mkdir(parents=True)
        for path in store.glob("*.json"):
            os.link(path, new / store.name / path.name)
        for id, of in ids.items():
            os.link(record.with_name(f"{of}.npz"), target / f"{id}.npz")


def measured(folder: Path, count: int, work: str) -> dict[str, float]:
    """Fuse them all in this process, or learn from them."""
    from wsss_jax.combiner import record
    from wsss_jax.combiner.evidence import Inputs
    from wsss_jax.combiner.fuse import fuse
    from wsss_jax.combiner.learn import learn
    from wsss_jax.data.stores import open_store
    from wsss_jax.datasets.table import ALL, open_dataset
    from wsss_jax.study.fusion_world import SYSTEMS

    many = folder / f"many{count}"
    source = open_dataset(many / "data", split=ALL)
    systems = tuple(open_store(many / name) for name in SYSTEMS)
    saliency, frozen = (open_store(many / name) for name in ("saliency", "features"))
    inputs, run = Inputs(source, systems, saliency, (frozen,)), folder / "run"
    began = time.perf_counter()
    if work == "fuse":
        fuse(run, inputs, many / "combined", ids=source.ids)
    else:
        learn(inputs, many / "run", record.load(run, inputs)[0], ids=source.ids)
    return {"memory": peak_of_memory(), "rate": count / (time.perf_counter() - began)}


def peak_of_memory() -> float:
    """MiB, of this program alone: ru_maxrss is never below that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
