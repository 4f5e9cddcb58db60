"""Which of several hosts a process is: what flags, SLURM and Kubernetes tell (no process here)."""

import pytest

from wsss_jax.cli.hosts import Hosts, of_environment, taken
from wsss_jax.errors import UserError

SLURM = {"SLURM_JOB_ID": "70001", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
PODS = {"JAX_COORDINATOR_ADDRESS": "train-0.train:1234", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("gpu[03-04,07],big1", "gpu03"), ("n[7,9]", "n7")],
)
def test_slurm_tells_all_tasks_the_same_address(nodes, first):
    found = of_environment({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert found == Hosts(f"{first}:{61440 + 70001 % 4096}", 2, 1)


def test_one_process_alone_is_no_host(monkeypatch):
    assert of_environment({}) is None
    assert of_environment(SLURM) is None, "a batch script outside srun"
    assert of_environment({**SLURM, "SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}) is None
    assert of_environment({"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "2"}) is None


def test_pods_of_an_indexed_job_are_hosts_where_they_know_the_first():
    found = of_environment({**PODS, "JOB_COMPLETIONS": "2"})
    assert found == Hosts("train-0.train:1234", 2, 1)
    with pytest.raises(UserError, match="JOB_COMPLETIONS is not"):
        of_environment(PODS)


def test_flags_come_before_what_is_found_and_are_taken_out():
    args = ["--data", "d", "--hosts.address", "a:1", "--hosts.count=2", "--hosts.index", "0", "x"]
    found, rest = taken(args, {**SLURM, "SLURM_STEP_NODELIST": "n[1-2]"})
    assert found == Hosts("a:1", 2, 0) and rest == ["--data", "d", "x"]
    assert taken(["--data", "d"], {}) == (None, ["--data", "d"])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--hosts.count", "2"], "give all three"),
        (["--hosts.address", "a:1", "--hosts.count", "2", "--hosts.index", "2"], "host 2 of 2"),
        (["--hosts.address", "a", "--hosts.count", "2", "--hosts.index", "1"], "HOST:PORT"),
    ],
)
def test_half_an_answer_is_refused(flags, told):
    with pytest.raises(UserError, match=told):
        taken(flags, {})
