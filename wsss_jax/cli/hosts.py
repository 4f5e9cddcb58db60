"""Several machines that train together (``jax.distributed``): which of them this process is.

SLURM tells it, or an indexed job of Kubernetes, or flags (docs/cluster.md). The first host writes
and prints; of the others only errors are shown. All must share the folders that they work in.
"""

import argparse
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from wsss_jax.errors import UserError

FLAGS = "--hosts.address HOST:PORT --hosts.count N --hosts.index I"
"""How a host is told what it is."""

ADDRESS = "JAX_COORDINATOR_ADDRESS"
"""Variable with the address, for indexed jobs of Kubernetes; the name is jax's own."""

ARRAYS = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
"""Variables by which per-image stages find their share of the images (``run.executors``)."""

SILENCE = 100
"""Seconds without a sign of life after which the others give a host up and end, too."""

_PORTS = 61440, 4096
"""First and number of ports of which a SLURM job takes one, by its number; jax takes the same."""


@dataclass(frozen=True)
class Hosts:
    """One of several processes that train together.

    address: host:port where the first one listens. count: of all. index: of this one, from 0.
    """

    address: str
    count: int
    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"host {self.index} of {self.count}; the index counts from 0")
        if not self.address.rpartition(":")[2].isdecimal():
            raise UserError(f"address of the first host is {self.address}, wanted HOST:PORT")


def taken(args: Sequence[str], environment: Mapping[str, str]) -> tuple[Hosts | None, list[str]]:
    """Which host this is, by flags or else by the scheduler, None for the only one; other flags.

    Raises UserError where only some of the three flags are given.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--hosts.address", dest="address")
    parser.add_argument("--hosts.count", dest="count", type=int)
    parser.add_argument("--hosts.index", dest="index", type=int)
    given = [arg for arg in args if arg.startswith("--hosts.")]
    if not given:
        return of_environment(environment), list(args)
    found, rest = parser.parse_known_args(args)
    if None in vars(found).values():
        raise UserError(f"{' '.join(given)}: give all three, {FLAGS}")
    return Hosts(**vars(found)), rest


def of_environment(environment: Mapping[str, str]) -> Hosts | None:
    """Which host SLURM or Kubernetes name; None where they started no others.

    SLURM: a task of ``srun`` with several. Kubernetes: an indexed job that names the address of its
    first pod in JAX_COORDINATOR_ADDRESS. Raises UserError for a job without JOB_COMPLETIONS.
    """
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        first, many = _PORTS
        port = first + int(environment["SLURM_JOB_ID"]) % many
        return Hosts(
            f"{_first_node(environment['SLURM_STEP_NODELIST'])}:{port}",
            int(environment["SLURM_NTASKS"]),
            int(environment["SLURM_PROCID"]),
        )
    if ADDRESS in environment and "JOB_COMPLETION_INDEX" in environment:
        if "JOB_COMPLETIONS" not in environment:
            raise UserError(
                f"{ADDRESS} and JOB_COMPLETION_INDEX are set but JOB_COMPLETIONS is not; set it to "
                "the number of pods"
            )
        count, index = (int(environment[f"JOB_COMPLETION{end}"]) for end in ("S", "_INDEX"))
        return Hosts(environment[ADDRESS], count, index)
    return None


def start(hosts: Hosts, environment: MutableMapping[str, str] = os.environ) -> None:
    """Join the other hosts; from now on JAX works on the devices of all of them.

    Takes the variables of job arrays out of the environment: they number hosts here, and each step
    of a verb that trains needs all images of the one before. Raises UserError where the first host
    cannot be reached within five minutes.
    """
    import jax  # only where there are several

    for name in ARRAYS:
        environment.pop(name, None)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(
            hosts.address,
            hosts.count,
            hosts.index,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except jax.errors.JaxRuntimeError as problem:
        raise UserError(
            f"{hosts.address}: the first of {hosts.count} hosts does not answer; start all of them "
            f"with the same address ({str(problem).splitlines()[0]})"
        ) from problem
    if hosts.index:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _first_node(nodes: str) -> str:
    """The first of SLURM's names: ``gpu03`` of ``gpu[03-04,07],big1``."""
    head, bracket, rest = nodes.split(",")[0].partition("[")
    return head + rest.split("-")[0].rstrip("]") if bracket else head
