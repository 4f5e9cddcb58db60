"""The training engine on a toy problem: a linear classifier of one-pixel images."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_learning import STEPS, ToyBatches, linear_system

from wsss_jax.errors import CorruptCheckpointError, DivergedError
from wsss_jax.signals import Interrupted
from wsss_jax.train import parallel
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.loop import Loop, fit
from wsss_jax.train.optimizers import Optim, optimizer, schedule

KEY = jax.random.key(0)
LOOP = Loop(steps=STEPS, save_every=2, log_every=1, max_bad_steps=2)


def parameters(state):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])


def test_the_loss_falls_and_is_logged(tmp_path):
    fit(linear_system(), ToyBatches(), LOOP, folder=tmp_path, key=KEY)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_stopped_run_goes_on_to_the_identical_result(tmp_path):
    whole = fit(linear_system(), ToyBatches(), LOOP, folder=tmp_path / "a", key=KEY)
    with pytest.raises(Interrupted) as stop:
        fit(linear_system(), ToyBatches(signal_at=2), LOOP, folder=tmp_path / "b", key=KEY)
    assert stop.value.code == 128 + signal.SIGTERM
    assert Checkpoints(tmp_path / "b/checkpoint").steps() == [2, 3]
    again = fit(linear_system(), ToyBatches(), LOOP, folder=tmp_path / "b", key=KEY)
    np.testing.assert_array_equal(parameters(whole), parameters(again))
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in "ab"]
    losses_of = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses_of[0] == losses_of[1]


def test_a_non_finite_step_is_skipped_and_counted(tmp_path):
    state = fit(linear_system(), ToyBatches(poison=(1,)), LOOP, folder=tmp_path, key=KEY)
    assert int(state.skipped) == 1 and int(state.step) == LOOP.steps
    assert np.isfinite(parameters(state)).all()


def test_too_many_bad_steps_stop_training_and_say_what_to_do(tmp_path):
    with pytest.raises(DivergedError, match="learning rate"):
        fit(linear_system(), ToyBatches(poison=(2, 3)), LOOP, folder=tmp_path, key=KEY)
    assert Checkpoints(tmp_path / "checkpoint").steps() == [2]


def flip_a_bit_of_the_arrays(folder):
    chunks = [p for p in folder.rglob("*") if p.is_file() and "/d/" in str(p)]
    path = max(chunks, key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_noticed_and_reading_deletes_nothing(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path, warn=said.append)
    # Values without structure, so that no compression can hide the flipped bit.
    good = {"w": jax.random.normal(KEY, (4096,)), "n": jnp.zeros((), jnp.int32)}
    checkpoints.save(1, good, {"at": 1})
    checkpoints.save(2, {**good, "w": good["w"] + 1}, {"at": 2})
    assert checkpoints.damage() is None
    flip_a_bit_of_the_arrays(tmp_path / "2")
    assert "checksum" in (checkpoints.damage() or "")
    with pytest.raises(CorruptCheckpointError, match="2 is damaged"):
        checkpoints.last(good)
    step, state, extra = checkpoints.newest_whole(good)
    assert (step, extra) == (1, {"at": 1}) and len(said) == 1
    np.testing.assert_array_equal(state["w"], good["w"])
    assert checkpoints.steps() == [1, 2]
    flip_a_bit_of_the_arrays(tmp_path / "1")
    with pytest.raises(CorruptCheckpointError, match="no checkpoint is whole"):
        checkpoints.newest_whole(good)
    assert checkpoints.steps() == [1, 2]


def test_a_run_goes_on_from_an_older_step_where_the_last_one_is_damaged(tmp_path):
    whole = fit(linear_system(), ToyBatches(), LOOP, folder=tmp_path / "a", key=KEY)
    fit(linear_system(), ToyBatches(), LOOP, folder=tmp_path / "b", key=KEY)
    manifest = tmp_path / "b/checkpoint" / str(STEPS) / "manifest/metadata"
    manifest.write_text("{}")
    again = fit(linear_system(), ToyBatches(), LOOP, folder=tmp_path / "b", key=KEY)
    np.testing.assert_array_equal(parameters(whole), parameters(again))
    assert Checkpoints(tmp_path / "b/checkpoint").damage() is None


def test_a_checkpoint_of_another_type_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.ones(4, jnp.float32)}, {})
    with pytest.raises(CorruptCheckpointError):
        checkpoints.last({"w": jnp.ones(4, jnp.bfloat16)})


ON_ONE_DEVICE = """
import sys, jax, numpy as np
from pathlib import Path
from wsss_jax.train.checkpoint import Checkpoints
template = {"w": jax.ShapeDtypeStruct((4,), np.float32)}
print(jax.device_count(), Checkpoints(Path(sys.argv[1])).last(template).state["w"].tolist())
"""


def test_a_checkpoint_of_two_devices_is_read_on_one(tmp_path):
    assert jax.device_count() == 2
    state = parallel.replicate({"w": jnp.arange(4.0)}, parallel.data_mesh())
    Checkpoints(tmp_path).save(1, state, {})
    found = Checkpoints(tmp_path).last(state)
    assert found.state["w"].tolist() == [0, 1, 2, 3]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", ON_ONE_DEVICE, str(tmp_path)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert told.stdout == "1 [0.0, 1.0, 2.0, 3.0]\n", told.stderr[-2000:]


def test_two_devices_give_the_step_of_one(tmp_path):
    system, batch = linear_system(), next(ToyBatches())
    results = []
    for count in (1, 2):
        mesh = parallel.data_mesh(jax.devices()[:count])
        state = parallel.replicate(system.init(KEY), mesh)
        state, _ = jax.jit(system.step)(state, parallel.split_rows(batch, mesh), KEY)
        results.append(parameters(state))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_a_batch_that_does_not_divide_is_refused():
    rows = replace(next(ToyBatches()), masks=None)
    odd = jax.tree.map(lambda a: a[:3], rows)
    with pytest.raises(ValueError, match="choose a batch size"):
        parallel.split_rows(odd, parallel.data_mesh())


def test_schedules_hit_their_known_values():
    poly = schedule(Optim(learning_rate=0.1), 100)
    np.testing.assert_allclose([poly(0), poly(50), poly(100)], [0.1, 0.1 * 0.5**0.9, 0], atol=1e-7)
    risen = schedule(Optim(learning_rate=0.1, warm_up=10, schedule="cosine"), 110)
    np.testing.assert_allclose([risen(0), risen(5), risen(10), risen(60)], [0, 0.05, 0.1, 0.05])


def test_new_layers_and_biases_learn_at_their_own_rates():
    optim = Optim(learning_rate=0.01, momentum=0.0, weight_decay=0.0, schedule="constant")
    update = optimizer(optim, 10, lambda name: name.startswith("head"))
    params = {part: {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)} for part in ("body", "head")}
    steps, _ = update.update(jax.tree.map(jnp.ones_like, params), update.init(params), params)
    rates = {f"{a}.{b}": -float(v.ravel()[0]) for a, x in steps.items() for b, v in x.items()}
    expected = {"body.kernel": 0.01, "body.bias": 0.02, "head.kernel": 0.1, "head.bias": 0.2}
    assert rates == pytest.approx(expected)


def test_adamw_decays_weights_but_not_biases():
    update = optimizer(Optim(name="adamw", weight_decay=0.1), 10, lambda name: False)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        steps, _ = update.update(zero, update.init(params), params)
    new = optax.apply_updates(params, steps)
    assert (new["kernel"] < 1).all() and (new["bias"] == 1).all()
