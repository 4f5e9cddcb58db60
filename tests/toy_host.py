"""One host of a training run, as a process of its own: a tiny network on drawn scenes.

    python toy_host.py DATA FOLDER [FOLDER] --rank 0 --hosts 2 --port 1234 --signal-at 3

Prints a JSON line for each run: the images seen at each step and what came out. In the last run
the second host is told to stop while it reads the batch of that number.
"""

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np

from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import training_batches
from wsss_jax.datasets.table import open_dataset
from wsss_jax.signals import Interrupted
from wsss_jax.systems import classifier
from wsss_jax.train import loop
from wsss_jax.train.optimizers import Optim

SETTINGS = classifier.Classifier("tiny", None, 8, optim=Optim("adamw", learning_rate=1e-3))
AUGMENTATION = Augmentation(crop=32, long_side=(32, 40))


class Watched:
    """Batches that note what they gave, and can raise a signal at a position."""

    def __init__(self, batches, signal_at):
        self.batches, self.signal_at, self.seen = batches, signal_at, []

    def __next__(self):
        batch = next(self.batches)
        self.seen.append(hashlib.sha256(np.ascontiguousarray(batch.images)).hexdigest()[:8])
        if len(self.seen) == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)


def trained(args, source, folder, signal_at):
    """What came of one run into a folder, or of what was left of it."""
    batches = training_batches(
        source, AUGMENTATION, seed=0, batch_size=8, shard=(args.rank, args.hosts)
    )
    watched = Watched(batches, signal_at)
    system = classifier.make(SETTINGS, classes=len(source.classes), steps=6)
    report = {"devices": jax.device_count(), "seen": watched.seen, "code": 0}
    settings = loop.Loop(6, save_every=2, log_every=2)
    try:
        state = loop.fit(system, watched, settings, folder=folder, key=jax.random.key(0))
    except Interrupted as stop:
        return report | {"code": stop.code}
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves))
    return report | {"step": int(state.step), "digest": digest.hexdigest()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    for name, value in (("rank", 0), ("hosts", 1), ("port", 0), ("signal-at", -1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    jax.distributed.initialize(f"127.0.0.1:{args.port}", args.hosts, args.rank)
    source = open_dataset(args.data, split="all")
    for folder in args.folders:
        told = folder == args.folders[-1] and args.rank == 1
        report = trained(args, source, folder, args.signal_at if told else -1)
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
