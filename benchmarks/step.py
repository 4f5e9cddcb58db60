"""Training step of a classifier with and without large memory pages: processor seconds, ratio.

Command: python benchmarks/step.py [--backbone mobilenet_v2] [--batch 16] [--crop 288] [--steps 3]
Each row is a process of its own on random weights and images; system time is shown apart, because
the kernel zeroing freshly mapped memory is what large pages save.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from wsss_jax import memory


def measure(backbone: str, batch: int, crop: int, steps: int) -> list[dict[str, float]]:
    """Wall, processor and system seconds of each step after the one that compiles."""
    import jax
    import numpy as np

    from wsss_jax.systems import classifier
    from wsss_jax.types import Batch

    settings = classifier.Classifier(backbone)
    system = classifier.make(settings, classes=20, steps=steps)
    rng = np.random.default_rng(0)
    images = rng.random((batch, crop, crop, 3), np.float32)
    inside = np.ones((batch, crop, crop), bool)
    arrays = (images, rng.random((batch, 20)) > 0.9, inside, np.ones(batch, bool))
    fed = Batch(*(jax.numpy.asarray(array) for array in arrays))
    step = jax.jit(system.step, donate_argnums=0)
    state, metrics = step(system.init(jax.random.key(0)), fed, jax.random.key(0))
    jax.block_until_ready(metrics)
    found = []
    for number in range(steps):
        wall, before = time.perf_counter(), os.times()
        state, metrics = step(state, fed, jax.random.key(number))
        jax.block_until_ready(metrics)
        after = os.times()
        spent = after.user + after.system - before.user - before.system
        wall = time.perf_counter() - wall
        found.append({"wall": wall, "cpu": spent, "system": after.system - before.system})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=288)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help="one process's own measurement")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.backbone, given.batch, given.crop, given.steps)))
        return
    plain = {k: v for k, v in os.environ.items() if k != memory.VARIABLE}
    rows = {}
    for name, environment in (("small pages", plain), ("large pages", memory.environment(plain))):
        command = [sys.executable, *sys.argv, "--measure"]
        printed = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        runs = json.loads(printed.splitlines()[-1])
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        rows[name] = best
        print(
            f"{name}: wall {best['wall']:.2f} s, processor {best['cpu']:.2f} s, of which system "
            f"{best['system']:.2f} s (least of {len(runs)} steps, load {os.getloadavg()[0]:.1f})"
        )
    ratio = rows["small pages"]["cpu"] / rows["large pages"]["cpu"]
    print(f"processor time, small over large pages: {ratio:.2f}")


if __name__ == "__main__":
    main()
