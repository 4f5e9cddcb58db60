"""Per-image work survives what happens to long runs: bad images, kills, full disks, restarts."""

import errno
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import toy_workers as toy

from wsss_jax.data import stores
from wsss_jax.datasets import synthetic
from wsss_jax.datasets.table import open_dataset
from wsss_jax.run import executors
from wsss_jax.run import images as images_run
from wsss_jax.run.executors import ONE_THREAD, Workers, map_unordered, shard_of_environment
from wsss_jax.signals import Interrupted
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.stages.refine import refine
from wsss_jax.types import ScoreMaps

IDS = tuple(f"image_{number:02d}" for number in range(12))
HERE, TWO = Workers(), Workers(2)


def finished(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.bin")}


def collected(function, ids, workers):
    """Failures by id; every id must have come exactly once."""
    outcomes = list(map_unordered(function, ids, workers))
    assert sorted(outcome.id for outcome in outcomes) == sorted(set(ids))
    return {outcome.id: outcome.failure for outcome in outcomes if outcome.failure}


@pytest.mark.parametrize("workers", [HERE, TWO], ids=["here", "pool"])
def test_a_poison_image_costs_only_itself(tmp_path, workers):
    function = partial(toy.write_or_fail, folder=tmp_path, poison=IDS[3:4])
    failures = collected(function, [*IDS, *IDS[:4]], workers)  # ids given twice are done once
    assert failures == {IDS[3]: f"ZeroDivisionError: {IDS[3]} is poison"}
    assert finished(tmp_path) == {*IDS} - {IDS[3]}
    assert not multiprocessing.active_children()


def test_workers_are_other_processes_and_one_worker_is_none(tmp_path):
    function = partial(toy.write, folder=tmp_path)
    here = {outcome.value for outcome in map_unordered(function, IDS, HERE)}
    assert here == {os.getpid()}
    there = {outcome.value for outcome in map_unordered(function, IDS, TWO)}
    assert os.getpid() not in there and 1 <= len(there) <= 2


def test_images_that_kill_their_worker_are_found_and_the_others_done(tmp_path):
    killers = (IDS[0], IDS[7])
    failures = collected(partial(toy.write_or_die, folder=tmp_path, killers=killers), IDS, TWO)
    assert failures == dict.fromkeys(killers, executors.KILLED)
    assert finished(tmp_path) == {*IDS} - {*killers}


def test_a_worker_that_is_killed_once_loses_nothing(tmp_path):
    assert not collected(partial(toy.die_once, folder=tmp_path, victim=IDS[2]), IDS, TWO)
    assert finished(tmp_path) == {*IDS}


def test_many_deaths_at_once_hang_nothing_and_lose_nothing(tmp_path):
    function = partial(toy.write_or_die, folder=tmp_path, killers=IDS[:8])
    failures = collected(function, IDS, Workers(4))
    assert failures == dict.fromkeys(IDS[:8], executors.KILLED)
    assert finished(tmp_path) == {*IDS[8:]}
    assert not multiprocessing.active_children()


def test_workers_that_cannot_start_are_an_error_not_a_thousand_failures(capfd):
    with pytest.raises(ChildProcessError, match="cannot start"):
        list(map_unordered(toy.Unloadable(), IDS, TWO))
    assert "cannot be loaded in a worker" in capfd.readouterr().err
    with pytest.raises(Exception, match="pickle"):
        list(map_unordered(lambda id: id, IDS, TWO))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("workers", [HERE, TWO], ids=["here", "pool"])
def test_a_full_disk_stops_at_once_and_keeps_what_is_written(tmp_path, workers):
    full = partial(toy.write_until_full, folder=tmp_path, room=4)
    with pytest.raises(OSError, match="No space left"):
        list(map_unordered(full, IDS, workers))
    kept = finished(tmp_path)
    assert 4 <= len(kept) < len(IDS)  # two processes may both see room for one more
    assert not list(tmp_path.glob(".*"))
    left = [id for id in IDS if id not in kept]
    assert not collected(partial(toy.write_until_full, folder=tmp_path, room=99), left, workers)
    assert finished(tmp_path) == {*IDS}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_output_that_cannot_be_written_is_no_fault_of_the_images(number):
    with pytest.raises(OSError) as caught:
        list(map_unordered(partial(toy.refuse_to_write, number=number), IDS, HERE))
    assert caught.value.errno == number
    failures = collected(partial(toy.refuse_to_write, number=errno.EIO), IDS, HERE)
    assert len(failures) == len(IDS)  # a bad sector is the image's own misfortune


def test_two_runs_at_once_on_one_folder_both_finish_with_the_same_bytes(tmp_path):
    function = partial(toy.write, folder=tmp_path)
    runs = [map_unordered(function, IDS, TWO), map_unordered(function, IDS[::-1], TWO)]
    for pair in zip(*runs, strict=True):
        assert not any(outcome.failure for outcome in pair)
    assert {path.stem: path.read_bytes() for path in tmp_path.iterdir()} == {
        id: toy.content(id) for id in IDS
    }


def test_workers_have_one_thread_each_and_leave_ctrl_c_to_the_parent(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    for outcome in map_unordered(toy.surroundings, IDS[:3], TWO):
        assert outcome.value == (dict(ONE_THREAD), True)
    assert dict(os.environ) == before


def test_closing_early_leaves_no_process_behind(tmp_path):
    outcomes = map_unordered(partial(toy.write, folder=tmp_path), IDS, TWO)
    next(outcomes)
    outcomes.close()
    assert not multiprocessing.active_children()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("workers", [HERE, TWO], ids=["here", "pool"])
def test_a_stopped_stage_goes_on_where_it_stopped(tmp_path, workers):
    function = partial(toy.write, folder=tmp_path)

    def stop(id: str, value: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        images_run.each("toy", function, IDS, workers=workers, collect=stop)
    assert caught.value.code == 128 + signal.SIGTERM
    assert not multiprocessing.active_children()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert kept and finished(tmp_path) < {*IDS}
    left = [id for id in IDS if id not in finished(tmp_path)]
    tally = images_run.each("toy", function, left, workers=workers)
    assert tally.done == len(left) and not tally.skipped
    assert finished(tmp_path) == {*IDS}
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    script = f"""
import sys
sys.path[:0] = {[str(Path(toy.__file__).parent), *sys.path]!r}
from functools import partial
from pathlib import Path
import toy_workers
from wsss_jax.run.executors import Workers, map_unordered
if __name__ == "__main__":
    function = partial(toy_workers.mark_and_sleep, folder=Path({str(tmp_path)!r}))
    list(map_unordered(function, ["a", "b", "c"], Workers(2)))
"""
    path = tmp_path / "parent.py"
    path.write_text(script)
    with subprocess.Popen([sys.executable, str(path)]) as parent:
        toy.wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        parent.kill()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    toy.wait_until(lambda: not any(toy.is_alive(process) for process in workers))


def test_shares_are_disjoint_complete_and_stay_the_same_while_others_finish():
    ids = [f"{number:05d}" for number in range(1000)]
    shares = [Workers(shard=(index, 4)).share(ids) for index in range(4)]
    assert sorted(id for share in shares for id in share) == ids
    assert all(200 < len(share) < 300 for share in shares)
    later = [id for id in ids if id not in shares[0][:100]]
    assert Workers(shard=(1, 4)).share(later) == shares[1]


def test_shards_come_from_job_arrays(monkeypatch):
    assert shard_of_environment({}) == (0, 1)
    slurm = {
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_MIN": "5",
        "SLURM_ARRAY_TASK_COUNT": "4",
    }
    assert shard_of_environment(slurm) == (2, 4)
    with pytest.raises(ValueError, match="without gaps"):
        shard_of_environment({**slurm, "SLURM_ARRAY_TASK_ID": "20"})
    assert shard_of_environment({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "8"}) == (3, 8)
    with pytest.raises(ValueError, match="JOB_COMPLETIONS"):
        shard_of_environment({"JOB_COMPLETION_INDEX": "3"})
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert Workers().share_number() == (2, 4)
    assert Workers(shard=(0, 1)).share(IDS) == IDS  # what is said beats what is found


@pytest.mark.parametrize("wrong", [{"count": 0}, {"shard": (2, 2)}, {"shard": (-1, 2)}])
def test_impossible_workers_are_refused(wrong):
    with pytest.raises(ValueError, match=r"workers|shard"):
        Workers(**wrong)


def test_each_share_keeps_its_own_list_of_what_was_skipped(tmp_path, capsys):
    function = partial(toy.write_or_fail, folder=tmp_path, poison=IDS)
    for index in range(2):
        tally = images_run.each("toy", function, IDS, workers=Workers(shard=(index, 2)))
        images_run.record_skipped(tmp_path, tally)
    assert "share 1 of 2" in capsys.readouterr().out
    assert len(list(tmp_path.glob("skipped_?_of_2.json"))) == 2
    images_run.record_skipped(tmp_path, images_run.Tally(1, {}, (1, 2)))
    assert [path.name for path in tmp_path.glob("skipped*")] == ["skipped_0_of_2.json"]


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"
)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_says_how_to_get_it():
    with pytest.raises(ValueError, match=r"pip install 'wsss-jax\[ray\]'"):
        list(map_unordered(toy.surroundings, IDS, Workers(2, engine="ray")))


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_two_nodes_of_ray_do_the_same(tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    on_ray = Workers(2, engine="ray")
    environment = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, runtime_env=environment)
    try:
        assert len({found.value for found in map_unordered(toy.ray_node, IDS, on_ray)}) == 2
        failing = partial(toy.write_or_fail, folder=tmp_path, poison=IDS[3:4])
        assert list(collected(failing, IDS[:6], on_ray)) == [IDS[3]]
        assert finished(tmp_path) == {*IDS[:6]} - {IDS[3]}
        dying = partial(toy.write_or_die, folder=tmp_path, killers=IDS[7:8])
        failures = collected(dying, IDS[6:], on_ray)
        assert list(failures) == [IDS[7]] and executors.KILLED in failures[IDS[7]]
        with pytest.raises(OSError, match="Read-only"):
            list(map_unordered(toy.refuse_to_write, IDS, on_ray))
        seen, _ = next(map_unordered(toy.surroundings, IDS[:1], on_ray)).value
        assert seen == dict(ONE_THREAD)
        _check_refine(tmp_path, on_ray)
        assert ray.is_initialized()  # whoever started it ends it
    finally:
        ray.shutdown()
        cluster.shutdown()


def _check_refine(folder, workers):
    """A stage gives the same on Ray as here."""
    source = open_dataset(synthetic.write(folder / "data", 3, 0), split="all")
    names = source.classes.names
    maps = stores.create(folder / "maps", holds="scores", classes=names, made_by={})
    for number, id in enumerate(source.ids):
        scores = np.random.default_rng(number).random((8, 8, 1), np.float32)
        found = ScoreMaps(scores, np.zeros(1, np.int32), source.size(id), scores.max((0, 1)))
        maps.put_scores(id, found)
    walk, ids = Walk(steps=4), source.ids
    here = refine(maps, source, folder / "here", walk, ids=ids)
    there = refine(maps, source, folder / "there", walk, ids=ids, workers=workers)
    assert there.ids() == here.ids() and len(there.ids()) == 3
    for id in ids:
        np.testing.assert_allclose(there.get_scores(id).scores, here.get_scores(id).scores, 1e-5)
