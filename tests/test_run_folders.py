"""Folders of training runs: one owner, whole checkpoints, and an end that is the end."""

import errno
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy_learning import STEPS, ToyBatches, linear_system

from wsss_jax.errors import CorruptCheckpointError, UserError
from wsss_jax.run import folders, left_out
from wsss_jax.train.checkpoint import Checkpoints
from wsss_jax.train.loop import Loop

RECORD = {"seed": 1, "rate": 0.5}


def test_a_full_disk_while_a_checkpoint_is_written_names_its_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*checkpoint/4") as caught:
        Checkpoints(tmp_path / "checkpoint").save(4, {"w": np.ones(3)}, {})
    assert caught.value.errno == errno.ENOSPC


def test_a_checkpoint_for_which_there_is_no_room_is_not_begun(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"No space left on device: .*checkpoint/4"):
        Checkpoints(tmp_path / "checkpoint").save(4, {"w": np.ones(3)}, {})
    assert not list((tmp_path / "checkpoint").iterdir())


def test_a_second_run_in_one_folder_is_refused_at_once_and_a_dead_one_leaves_no_lock(tmp_path):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    wait = "f.write('process 7 on x'); f.flush(); print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold + wait, str(tmp_path / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout and other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="process 7 on x is at work in it"):
            folders.claim(tmp_path, RECORD)
        other.kill()
    with folders.claim(tmp_path, RECORD) as run:
        assert not run.finished
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is at work"):
            folders.claim(tmp_path, RECORD)
    with folders.claim(tmp_path, RECORD):
        pass


def test_a_failed_start_leaves_no_claim_and_settings_alone_are_no_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), folders.claim(folder, RECORD):
        raise ZeroDivisionError
    assert not folder.exists()
    with folders.claim(folder, RECORD):
        pass
    with folders.claim(folder, {**RECORD, "rate": 0.1}):
        (folder / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"rate: 0\.1 -> 0\.5"):
        folders.claim(folder, RECORD)
    with pytest.raises(ZeroDivisionError), folders.claim(folder, {**RECORD, "rate": 0.1}):
        raise ZeroDivisionError
    assert (folder / "settings.json").is_file()  # of a run that began earlier


def trained(folder):
    system, plan = linear_system(), Loop(STEPS, save_every=2)
    with folders.claim(folder, RECORD) as run:
        if not run.finished:
            batches = ToyBatches()
            batches.skipped = {"a": "damaged"}  # type: ignore[attr-defined]
            folders.learn(system, batches, plan, folder, seed=0)
    template = jax.eval_shape(system.init, jax.random.key(0))
    return jax.tree.leaves(folders.last_state(folder, template).params), template, run.finished


def test_a_finished_run_with_a_damaged_last_checkpoint_is_refused_then_trained_on(tmp_path, capsys):
    with left_out.recorded() as record:
        whole, template, _ = trained(tmp_path)
    assert record.line().startswith(f"left out: train {tmp_path.name} 1 image(s)")
    assert trained(tmp_path)[2]
    manifest = tmp_path / "checkpoint" / str(STEPS) / "manifest/metadata"
    manifest.write_text(manifest.read_text().replace("blake2", "blake3"))
    with pytest.raises(CorruptCheckpointError, match="by the same command"):
        folders.last_state(tmp_path, template)
    assert len(Checkpoints(tmp_path / "checkpoint").steps()) == 2
    again, _, finished = trained(tmp_path)
    assert not finished and f"training {tmp_path.name} again" in capsys.readouterr().out
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_finished_run_ends_with_its_own_last_checkpoint_or_not_at_all(tmp_path, capsys):
    run, steps = tmp_path / "run", tmp_path / "run/checkpoint"
    whole, template, _ = trained(run)
    damages = {
        "ends at step 0, the run ended at 6": lambda: shutil.rmtree(steps),
        "it is step 4 under another name": lambda: (
            shutil.rmtree(steps / str(STEPS)),
            shutil.copytree(steps / "4", steps / str(STEPS)),
        ),
    }
    for told, damage in damages.items():
        damage()
        with pytest.raises(UserError, match=told):
            folders.last_state(run, template)
        again, _, finished = trained(run)
        assert not finished and told in capsys.readouterr().out
        for one, other in zip(whole, again, strict=True):
            np.testing.assert_array_equal(one, other)
    finished, settings = run / "finished", run / "settings.json"
    finished.write_text(finished.read_text()[:-3] + "x\n")
    for use in (lambda: folders.last_state(run, template), lambda: trained(run)):
        with pytest.raises(UserError, match="of another run"):
            use()
    settings.unlink()
    with pytest.raises(UserError, match=r"settings\.json is gone"):
        trained(run)
