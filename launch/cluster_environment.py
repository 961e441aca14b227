"""Rank, local rank, world and rendezvous of this process, from any launcher's environment."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass

from launch.hostlist import expand_hosts
from model.errors import UserError
from parallel.address import Address

FIRST_PORT, PORTS = 20000, 10000
"""First port and number of those that ranks derive from their job's name where none is given."""


@dataclass(frozen=True)
class ClusterEnvironment:
    """A process among the ranks of a run."""

    rank: int
    local_rank: int
    world: int
    local_world: int
    """Ranks on this machine."""
    master: tuple[str, int] | None = None
    """Host and port of the rendezvous; None where MASTER_ADDR and MASTER_PORT name them."""


def discover(environment: Mapping[str, str] = os.environ) -> ClusterEnvironment:
    """Read the variables of torchrun and `deepspeed`, of mpirun, or of srun; else of one process.

    MASTER_ADDR and MASTER_PORT count more than what is derived here. Raises UserError where a
    variable cannot be read, or where there are more tasks than GPUs.
    """
    if "MASTER_PORT" in environment:
        _number(environment, "MASTER_PORT", 1, 65535)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _of_torchrun(environment)
    if "OMPI_COMM_WORLD_SIZE" in environment:  # before Slurm: mpirun's daemons are Slurm's tasks
        return _of_mpirun(environment)
    if "SLURM_STEP_NUM_TASKS" in environment:
        return _of_srun(environment)
    return ClusterEnvironment(rank=0, local_rank=0, world=1, local_world=1)


def _of_torchrun(environment: Mapping[str, str]) -> ClusterEnvironment:
    world = _number(environment, "WORLD_SIZE", 1, None)
    rank = _number(environment, "RANK", 0, world - 1)
    local_world = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environment else "LOCAL_SIZE"
    return ClusterEnvironment(
        rank=rank,
        local_rank=_number(environment, "LOCAL_RANK", 0, None, default=rank),
        world=world,
        local_world=_number(environment, local_world, 1, None, default=world),
    )


def _of_mpirun(environment: Mapping[str, str]) -> ClusterEnvironment:
    world = _number(environment, "OMPI_COMM_WORLD_SIZE", 1, None)
    local_world = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1, world)
    rank = _number(environment, "OMPI_COMM_WORLD_RANK", 0, world - 1)
    master: tuple[str, int] | None = None
    if local_world == world:
        master = "127.0.0.1", port_of(environment.get("PMIX_NAMESPACE", str(os.getppid())))
    elif "MASTER_ADDR" not in environment:
        master = _broadcast_by_mpi(rank)
    elif "MASTER_PORT" not in environment:
        master = environment["MASTER_ADDR"], port_of(environment.get("PMIX_NAMESPACE", ""))
    return ClusterEnvironment(
        rank,
        _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", 0, local_world - 1),
        world,
        local_world,
        master,
    )


def _broadcast_by_mpi(rank: int) -> tuple[str, int]:
    """Return rank 0's host and a free port there, broadcast over MPI."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "mpirun: over several machines the ranks need a place to meet: name it (mpirun -x "
            "MASTER_ADDR=HOST -x MASTER_PORT=29500) or install mpi4py (pip install "
            f"'forescale[mpi]'): {error}"
        ) from None
    mine = (socket.gethostname(), free_port()) if rank == 0 else None
    master: tuple[str, int] = MPI.COMM_WORLD.bcast(mine)
    return master


def _of_srun(environment: Mapping[str, str]) -> ClusterEnvironment:
    world = _number(environment, "SLURM_STEP_NUM_TASKS", 1, None)
    counts = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(world)))
    node = _number(environment, "SLURM_NODEID", 0, len(counts) - 1, default=0)
    local_world = counts[node]
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if gpus.isdigit() and local_world > int(gpus):
        raise UserError(
            f"srun: {local_world} tasks on this node and {gpus} GPUs: start one task for each GPU, "
            f"with --ntasks-per-node={gpus} or --gres=gpu:{local_world}"
        )
    host = "127.0.0.1"
    if len(counts) > 1:
        host = expand_hosts(environment.get("SLURM_STEP_NODELIST", "localhost"))[0]
    # An attempt does not meet what is left of the one before it; nor do steps side by side.
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    job = "/".join(environment.get(name, "0") for name in names)
    return ClusterEnvironment(
        _number(environment, "SLURM_PROCID", 0, world - 1),
        _number(environment, "SLURM_LOCALID", 0, local_world - 1),
        world,
        local_world,
        (host, port_of(job)),
    )


def _tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node: Slurm's `4(x2),3` is [4, 4, 3]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE: cannot read {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def port_of(job: str) -> int:
    """Return the port that all ranks of a job derive from its name."""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS


def _number(
    environment: Mapping[str, str],
    name: str,
    least: int,
    most: int | None,
    default: int | None = None,
) -> int:
    """Return a variable's number from `least` to `most`; raises UserError for anything else."""
    text = environment.get(name)
    if text is None and default is not None:
        return default
    highest = float("inf") if most is None else most
    if text is None or not text.isdigit() or not least <= int(text) <= highest:
        span = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{name}: expected a whole number, {span}, got {text!r}")
    return int(text)


ANNOUNCED = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Variables that `announce` sets."""


def announce(
    cluster: ClusterEnvironment, environment: MutableMapping[str, str] = os.environ
) -> Address:
    """Set the variables that torch and DeepSpeed read; return the address of the rendezvous.

    Raises UserError where the ranks of a world have no port in common.
    """
    host, port = cluster.master or ("127.0.0.1", 0)
    if port == 0 and cluster.world > 1 and "MASTER_PORT" not in environment:
        raise UserError(
            "MASTER_PORT: not set: ranks that are started by hand need one to meet at, the same "
            "for all"
        )
    environment.setdefault("MASTER_ADDR", host)
    environment.setdefault("MASTER_PORT", str(port or free_port()))
    environment["RANK"] = str(cluster.rank)
    environment["LOCAL_RANK"] = str(cluster.local_rank)
    environment["WORLD_SIZE"] = str(cluster.world)
    return Address.from_environment(environment)


@contextmanager
def announced(
    cluster: ClusterEnvironment, environment: MutableMapping[str, str] = os.environ
) -> Iterator[Address]:
    """Announce the rank for as long as it runs: what a notebook starts next is no rank of it."""
    before = {name: environment.get(name) for name in ANNOUNCED}
    try:
        yield announce(cluster, environment)
    finally:
        for name, value in before.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
