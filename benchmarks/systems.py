"""Training step of every system beside the plain classifier's: seconds, ratio, memory.

Command: python benchmarks/systems.py [--backbone NAME] [--batch 16] [--crop 288] [--steps 3]
Each row is a process of its own on random weights and images. "passes" is what the number of
forward passes over a whole image would predict (tiles of an image are one pass; SEAM's small image
0.09 of one); "program" is what the compiled step reserves beside its arguments, "peak" the most
that the process held, compiling included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PASSES = {"vanilla": 1.0, "puzzle": 2.0, "occse": 2.0, "poc": 3.0, "pnoc": 4.0, "seam": 1.09}


def measure(name: str, backbone: str, batch: int, crop: int, steps: int) -> dict[str, float]:
    """Least processor and wall seconds of the steps after the first, and bytes."""
    import jax
    import numpy as np

    from wsss_jax import systems
    from wsss_jax.types import Batch

    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(name, backbone, Path(folder))
        system = systems.SYSTEMS[name].make(settings, classes=20, steps=100)
        state = system.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.random((batch, crop, crop, 3), np.float32)
    labels = rng.random((batch, 20)) > 0.9
    arrays = (images, labels, np.ones(images.shape[:3], bool), np.ones(batch, bool))
    fed = Batch(*(jax.numpy.asarray(array) for array in arrays))
    key = jax.random.key(0)
    step = jax.jit(system.step, donate_argnums=0).lower(state, fed, key).compile()
    memory = step.memory_analysis()
    found = {"program": getattr(memory, "temp_size_in_bytes", 0), "wall": 1e9, "cpu": 1e9}
    for number in range(steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = step(state, fed, key)
        jax.block_until_ready(metrics)
        if number:
            found["wall"] = min(found["wall"], time.perf_counter() - wall)
            found["cpu"] = min(found["cpu"], time.process_time() - cpu)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def _settings(name: str, backbone: str, folder: Path) -> object:
    """Settings of a system; an ordinary classifier is written where one is wanted."""
    import jax

    from wsss_jax import config
    from wsss_jax.systems import OcCse, PNoc, POc, PuzzleCam, Seam, classifier
    from wsss_jax.systems.terms import Erasing
    from wsss_jax.train.checkpoint import Checkpoints

    own = classifier.Classifier(backbone, output_stride=8 if backbone == "tiny" else 16)
    if name in ("occse", "poc", "pnoc"):
        state = classifier.make(own, classes=20, steps=1).init(jax.random.key(1))
        Checkpoints(folder / "checkpoint").save(1, state, {})
        names = [str(number) for number in range(20)]
        model = config.as_json(own)
        record = {"system": "vanilla", "settings": {"model": model}, "classes": names}
        (folder / "settings.json").write_text(json.dumps(record))
        (folder / "finished").write_text("1 steps\n")
    judged = {"occse": OcCse, "poc": POc, "pnoc": PNoc}
    if name in judged:
        return judged[name](own, Erasing(folder))
    return {"vanilla": lambda: own, "puzzle": lambda: PuzzleCam(own), "seam": lambda: Seam(own)}[
        name
    ]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=288)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=tuple(PASSES), help="one process's own measurement")
    given = parser.parse_args()
    if given.only:
        one = measure(given.only, given.backbone, given.batch, given.crop, given.steps)
        print(json.dumps(one))
        return
    first = None
    print("system    wall s   cpu s   ratio  passes  program GiB  peak GiB")
    for name, passes in PASSES.items():
        command = [sys.executable, *sys.argv, "--only", name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(printed.splitlines()[-1])
        first = first or row
        print(
            f"{name:8} {row['wall']:7.2f} {row['cpu']:7.2f} {row['cpu'] / first['cpu']:7.2f} "
            f"{passes:7.2f} {row['program'] / 2**30:12.2f} {row['peak'] / 2**30:9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
