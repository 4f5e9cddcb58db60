"""The same run of a tiny network on one and on eight devices, and in bfloat16, in one process.

Prints the losses of each run as one JSON line.
"""

import json
import sys

import jax
import numpy as np

from wsss_jax.systems import classifier
from wsss_jax.train import loop, parallel
from wsss_jax.train.optimizers import Optim
from wsss_jax.types import Batch

RUNS = (
    ("mesh", 1, "float32"),
    ("mesh", 8, "float32"),
    ("pmap", 8, "float32"),
    ("mesh", 1, "bfloat16"),
)


def batches(steps):
    """The same sixteen small images each step, labelled by how red and how green they are."""
    draw = np.random.default_rng(0)
    images = draw.random((16, 24, 24, 3), np.float32) * draw.random((16, 1, 1, 3), np.float32)
    labels = images.mean(axis=(1, 2))[:, :2] > 0.25
    for _ in range(steps):
        yield Batch(images, labels, np.ones((16, 24, 24), bool), np.ones(16, bool))


def main(steps):
    optim = Optim(learning_rate=0.05, momentum=0.9)
    system = classifier.make(
        classifier.Classifier("tiny", None, 8, optim=optim), classes=2, steps=steps
    )
    start = system.init(jax.random.key(0))
    found = {"devices": jax.device_count()}
    for name, count, compute in RUNS:
        step = loop.in_type(system.step, compute)
        engine = parallel.ENGINES[name](step, jax.devices()[:count])
        state, losses = engine.put(jax.tree.map(np.asarray, start)), []
        for batch in batches(steps):
            state, metrics = engine.step(state, engine.split(batch), jax.random.key(1))
            losses.append(float(metrics["loss"]))
        state = engine.take(state)
        types = sorted({leaf.dtype.name for leaf in jax.tree.leaves(state.params)})
        found[f"{name}_{count}_{compute}"] = {
            "losses": losses, "step": int(state.step), "types": types
        }  # fmt: skip
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
