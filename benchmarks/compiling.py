"""How long the training steps of large networks take to compile, cold and from the cache on disk.

Command: python benchmarks/compiling.py [--only resnet38d] [--batch 16]
Shapes only: nothing is allocated or computed, so networks that do not fit this machine are measured
too. Each line is a process of its own with an empty cache folder, then one that finds it filled.
Times are wall times; "memory" is what XLA plans for intermediate values of one step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

NETWORKS = {"resnet38d": (8, 448), "resnest101": (16, 512), "vit_base": (16, 448)}
"""Backbone to output stride and pixels."""


def main() -> None:
    """Measure each network with and without rematerialisation, cold and again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=NETWORKS, default=None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(step(*json.loads(given.child), batch=given.batch)))
        return
    print("| training step | trace, s | compile, s | from the cache, s | memory, GiB |")
    print("|---|--:|--:|--:|--:|", flush=True)
    for name in NETWORKS if given.only is None else (given.only,):
        for remat in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                cold, again = (child(name, remat, given.batch, folder) for _ in range(2))
            title = f"{name}, {given.batch} × {NETWORKS[name][1]}" + (", remat" if remat else "")
            print(
                f"| {title} | {cold['trace']:.1f} | {cold['compile']:.1f} | "
                f"{again['compile']:.1f} | {cold['memory']:.1f} |",
                flush=True,
            )


def child(name: str, remat: bool, batch: int, folder: str) -> dict:
    """One measurement in a fresh process."""
    command = [
        sys.executable,
        __file__,
        "--batch",
        str(batch),
        "--child",
        json.dumps([name, remat]),
    ]
    keep_all = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **keep_all}
    )
    return json.loads(done.stdout.splitlines()[-1])


def step(name: str, remat: bool, *, batch: int) -> dict:
    """Trace and compile the step of the vanilla system."""
    import jax
    import jax.numpy as jnp

    from wsss_jax.systems import classifier
    from wsss_jax.systems.classifier import Classifier
    from wsss_jax.types import Batch

    stride, pixels = NETWORKS[name]
    settings = Classifier(name, output_stride=stride, remat=remat)
    system = classifier.make(settings, classes=20, steps=100)

    def shaped(shape: tuple, dtype: object) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    images = shaped((batch, pixels, pixels, 3), jnp.float32)
    data = Batch(
        images=images,
        inside=shaped((batch, pixels, pixels), bool),
        labels=shaped((batch, 20), bool),
        real=shaped((batch,), bool),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    began = time.perf_counter()
    lowered = jax.jit(system.step).lower(classifier.template(settings, 20), data, key)
    traced = time.perf_counter()
    compiled = lowered.compile()
    ended = time.perf_counter()
    planned = compiled.memory_analysis()
    memory = planned.temp_size_in_bytes / 2**30 if planned else float("nan")
    return {"trace": traced - began, "compile": ended - traced, "memory": memory}


if __name__ == "__main__":
    main()
