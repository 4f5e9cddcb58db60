"""Training for real: eight devices, two hosts of which one is told to stop, and kill -9.

Each run is a process of its own, since devices and hosts are fixed when JAX starts. Compiled
programs are shared between them, so each is compiled once.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_learning import ToyBatches, linear_system

from wsss_jax.datasets import synthetic
from wsss_jax.train import parallel
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.loop import Loop, fit

HERE = Path(__file__).parent
PATIENCE = 600
"""Seconds after which a process counts as stuck; an idle machine needs ten."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def started(script, *arguments, devices, cache):
    """A Python process with so many virtual devices, which compiles as this one does."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process, code=0):
    """The JSON values it printed, a line each."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == code, err[-3000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def test_eight_devices_give_the_losses_of_one_and_bfloat16_comes_close(compiled):
    [found] = ended(started("toy_devices.py", 6, devices=8, cache=compiled))
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


def hosts(*arguments, cache, code=0):
    """What two hosts of two devices each print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ("--hosts", 2, "--port", port)
    both = [
        started("toy_host.py", *arguments, *several, "--rank", n, devices=2, cache=cache)
        for n in range(2)
    ]
    return [ended(process, code) for process in both]


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_two_hosts_stop_together_and_go_on_as_if_nothing_had_been(tmp_path, compiled):
    data = synthetic.write(tmp_path / "data", 24, 0)
    whole, part = tmp_path / "whole", tmp_path / "part"
    first = hosts(data, whole, part, "--signal-at", 3, cache=compiled)
    for done, stopped in first:
        assert done["devices"] == 4 and done["code"] == 0 and done["step"] == 6
        # The second host was told in its third step; both saw it when they next asked.
        assert stopped["code"] == 128 + signal.SIGTERM and len(stopped["seen"]) == 4
    assert Checkpoints(part / "checkpoint").steps()[-1] == 4
    second = hosts(data, part, cache=compiled)
    for (done, stopped), [rest] in zip(first, second, strict=True):
        assert stopped["seen"] + rest["seen"] == done["seen"]
        assert rest["step"] == 6 and rest["digest"] == done["digest"]
    assert first[0][0]["digest"] == first[1][0]["digest"]
    assert first[0][0]["seen"] != first[1][0]["seen"]
    assert losses_of(part) == losses_of(whole)


def test_killed_while_saving_a_run_loses_the_unsaved_steps_only(tmp_path, compiled):
    loop = Loop(6, save_every=2, log_every=1)
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = started("toy_killed.py", run, 4, devices=2, cache=compiled)
    assert ended(process, -signal.SIGKILL) == [{"saved": 2}]
    assert Checkpoints(run / "checkpoint").steps() in ([2], [2, 4])
    key, resumed = jax.random.key(0), []
    state = fit(linear_system(), ToyBatches(), loop, folder=run, key=key, resumed=resumed.append)
    assert resumed in ([2], [4])
    wanted = fit(linear_system(), ToyBatches(), loop, folder=whole, key=key)
    jax.tree.map(np.testing.assert_array_equal, state.params, wanted.params)
    assert losses_of(run) == losses_of(whole)


def test_a_run_of_other_hosts_is_refused(tmp_path):
    loop = Loop(2, save_every=1)
    state = linear_system().init(jax.random.key(0))
    Checkpoints(tmp_path / "checkpoint").save(1, state, {"batches": [{"position": 1}] * 2})
    with pytest.raises(ValueError, match="written by 2 hosts, here are 1"):
        fit(linear_system(), ToyBatches(), loop, folder=tmp_path, key=jax.random.key(0))


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
