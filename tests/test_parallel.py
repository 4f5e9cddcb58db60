"""Training for real: eight devices, two hosts of which one is told to stop, and kill -9.

Each run is a process of its own, since devices and hosts are fixed when JAX starts. Compiled
programs are shared between them, so each is compiled once.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_learning import ToyBatches, linear_system

from wsss_jax.data import stores
from wsss_jax.datasets import synthetic
from wsss_jax.stages import train as stages_train
from wsss_jax.train import parallel
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.loop import Loop, fit

HERE = Path(__file__).parent
PATIENCE = 600
"""Seconds after which a process counts as stuck; an idle machine needs ten."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def started(*arguments, devices, cache):
    """A Python process with so many virtual devices, which compiles as this one does."""
    flags = re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=HERE.parent, **pipes)


def ended(process, code=0):
    """The JSON values it printed, a line each."""
    found, printed = code_of(process)
    assert found == code, printed[-3000:]
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_eight_devices_give_the_losses_of_one_and_bfloat16_comes_close(compiled):
    [found] = ended(started(HERE / "toy_devices.py", 6, devices=8, cache=compiled))
    assert found.pop("devices") == 8
    one = found["mesh_1_float32"]["losses"]
    assert one[-1] < one[0]
    # Sums in another order; measured: 2e-7 after six updates, 2e-3 in bfloat16.
    np.testing.assert_allclose(found["mesh_8_float32"]["losses"], one, rtol=1e-5)
    np.testing.assert_allclose(found["pmap_8_float32"]["losses"], one, rtol=1e-5)
    coarse = found["mesh_1_bfloat16"]["losses"]
    assert coarse != one
    np.testing.assert_allclose(coarse, one, rtol=0.01)
    assert all(run["types"] == ["float32"] and run["step"] == 6 for run in found.values())


EXPERIMENT = """
from wsss_jax.batches.augment import Augmentation
from wsss_jax.recipes.recipe import Recipe
from wsss_jax.stages.explain import Explanation
from wsss_jax.stages.train import Training
from wsss_jax.systems import Classifier
from wsss_jax.train.optimizers import Optim

def recipe(data, weights):
    net = Classifier("tiny", None, 8, optim=Optim("adamw", learning_rate=1e-3))
    view = Augmentation(crop=32, long_side=(32, 40))
    return Recipe(
        "toy", data, splits=("train",),
        systems={"tiny": Training(net, view, epochs=25, batch_size=8, save_every=1000)},
        explanation=Explanation("cam", (1.0,), flip=False),
    )
"""
"""Fifty steps, of which none is saved but the one at which the run is stopped, and the last."""


def typed(out, cache, *flags, devices):
    """Training and class maps of the experiment beside the folder ``out``, as a process."""
    data, experiment = out.parent / "data", out.parent / "experiment.py"
    arguments = ("-m", "wsss_jax.cli", "run", experiment, "--data", data, "--out", out)
    return started(*arguments, "--train-only", "tiny", *flags, devices=devices, cache=cache)


def hosts(out, cache):
    """Two hosts of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ("--hosts.address", address, "--hosts.count", 2, "--hosts.index")
    return [typed(out, cache, *flags, index, devices=2) for index in range(2)]


def code_of(process):
    """Its exit code, and what it printed."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out + err


def wait_for(path, process):
    """Until a file is there, or the process that writes it has ended."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_two_hosts_make_what_one_makes_and_stop_and_go_on_together(tmp_path, compiled):
    synthetic.write(tmp_path / "data", 24, 0)
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    alone, together = tmp_path / "alone", tmp_path / "together"
    whole = typed(alone, compiled, devices=4)
    first, second = hosts(together, compiled)
    wait_for(together / "run_tiny/metrics.jsonl", first)
    second.send_signal(signal.SIGTERM)
    stopped = code_of(first), code_of(second)
    assert [code for code, _ in stopped] == [128 + signal.SIGTERM] * 2, stopped
    [at] = Checkpoints(together / "run_tiny/checkpoint").steps()
    assert 5 <= at < 50
    first, second = map(code_of, hosts(together, compiled))
    assert first[0] == 0 and second[0] == 0, (first, second)
    assert "train run_tiny" in first[1] and "train run_tiny" not in second[1], "one host prints"
    assert code_of(whole)[0] == 0
    a, b = (np.array(losses_of(out / "run_tiny")) for out in (alone, together))
    np.testing.assert_allclose(b, a, rtol=1e-3)
    a, b = (stages_train.trained(out / "run_tiny")[2] for out in (alone, together))
    for one, other in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        # AdamW's steps are as long where rounding decides the sign of a gradient: means tell.
        assert np.abs(np.asarray(one) - np.asarray(other)).mean() < 2e-4
    a, b = (stores.open_store(out / "cam_tiny") for out in (alone, together))
    assert len(a.ids()) == 16 and a.ids() == b.ids()
    for id in a.ids():
        assert np.abs(b.get_scores(id).scores - a.get_scores(id).scores).mean() < 0.01


def test_killed_while_saving_a_run_loses_the_unsaved_steps_only(tmp_path, compiled):
    loop = Loop(6, save_every=2, log_every=1)
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = started(HERE / "toy_killed.py", run, 4, devices=2, cache=compiled)
    assert ended(process, -signal.SIGKILL) == [{"saved": 2}]
    assert Checkpoints(run / "checkpoint").steps() in ([2], [2, 4])
    key, resumed = jax.random.key(0), []
    state = fit(linear_system(), ToyBatches(), loop, folder=run, key=key, resumed=resumed.append)
    assert resumed in ([2], [4])
    wanted = fit(linear_system(), ToyBatches(), loop, folder=whole, key=key)
    jax.tree.map(np.testing.assert_array_equal, state.params, wanted.params)
    assert losses_of(run) == losses_of(whole)


@pytest.mark.parametrize("name", parallel.ENGINES)
def test_every_engine_trains_through_the_loop(tmp_path, name):
    loop = Loop(4, save_every=2, log_every=1, engine=name)
    state = fit(linear_system(4), ToyBatches(), loop, folder=tmp_path, key=jax.random.key(0))
    assert int(state.step) == 4 and state.axis is None
    template = jax.eval_shape(linear_system(4).init, jax.random.key(0))
    step, found, _ = Checkpoints(tmp_path / "checkpoint").last(template)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params)


def test_a_batch_that_does_not_divide_is_refused_by_every_engine():
    odd = jax.tree.map(lambda a: a[:3], next(ToyBatches()))
    for make in parallel.ENGINES.values():
        with pytest.raises(ValueError, match="3 images do not divide over 2 local devices"):
            make(linear_system().step).split(odd)
