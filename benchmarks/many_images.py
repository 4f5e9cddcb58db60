"""Is the memory of the combiner flat in the number of images?

Command: python benchmarks/many_images.py [--images 500 2000 10000]
A combiner is taught on a few images of the small world, then sets of growing size are combined,
each in a process of its own; the sets are links to the same files under new names, so that making
them costs nothing. Prints the peak of resident memory and the rate of each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASE = 40


def main() -> None:
    """Teach once, then measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000, 10000])
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(fused(Path(given.child), given.images[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        taught(Path(folder), given.cells)
        print("| images | peak memory, MiB | images/s |")
        print("|--:|--:|--:|", flush=True)
        for count in given.images:
            linked(Path(folder), count)
            command = [sys.executable, __file__, "--child", folder, "--images", str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {count} | {found['memory']:.0f} | {found['rate']:.0f} |", flush=True)


def taught(folder: Path, cells: int) -> None:
    """A world of a few images, and a combiner that has seen them once."""
    from wsss_jax.data import fusion_world
    from wsss_jax.stages import learn_combiner, world
    from wsss_jax.stages.combiner_run import Combining

    inputs = world.write(fusion_world.make(BASE, seed=5, size=cells), folder / "world")
    settings = Combining(epochs=1, distil_epochs=1, cells=cells)
    learn_combiner.learn(inputs, folder / "run", settings, ids=inputs.source.ids)


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


def fused(folder: Path, count: int) -> dict[str, float]:
    """Combine them all in this process."""
    from wsss_jax.data.datasets import ALL, open_dataset
    from wsss_jax.data.evidence import Inputs
    from wsss_jax.data.fusion_world import SYSTEMS
    from wsss_jax.data.stores import open_store
    from wsss_jax.stages import combiner_run, learn_combiner

    many = folder / f"many{count}"
    source = open_dataset(many / "data", split=ALL)
    systems = tuple(open_store(many / name) for name in SYSTEMS)
    inputs = Inputs(source, systems, open_store(many / "saliency"), open_store(many / "edges"))
    inputs = combiner_run.seen_by(folder / "run", inputs)
    began = time.perf_counter()
    learn_combiner.fuse(folder / "run", inputs, many / "combined", ids=source.ids)
    spent = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"memory": peak, "rate": count / spent}


if __name__ == "__main__":
    main()
