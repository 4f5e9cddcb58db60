"""A run that kills itself, as kill -9 does, as soon as it has begun to write a step.

python toy_killed.py FOLDER STEP
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
from toy_learning import ToyBatches, linear_system

from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.loop import Loop, fit


def watch(folder, step):
    while not any(folder.glob(f"{step}.*")):  # what orbax calls an unfinished step
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder, step):
    def progress(done, total, metrics):
        if done == step:
            saved = Checkpoints(folder / "checkpoint").steps()
            print(json.dumps({"saved": saved[-1]}), flush=True)
            arguments = (folder / "checkpoint", step)
            threading.Thread(target=watch, args=arguments, daemon=True).start()

    loop = Loop(6, save_every=2, log_every=1)
    fit(
        linear_system(), ToyBatches(), loop, folder=folder, key=jax.random.key(0),
        progress=progress,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
