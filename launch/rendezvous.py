"""From whichever launcher's environment to rank, local rank and world."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from model.errors import UserError

_UNREAD = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}
"""Launchers whose environment is not read: the variable with the number of processes."""


@dataclass(frozen=True)
class Rendezvous:
    """This process among the ranks of a run."""

    rank: int
    local_rank: int
    world: int
    local_world: int
    """Ranks on this machine."""


def discover(environment: Mapping[str, str] = os.environ) -> Rendezvous:
    """Of `deepspeed` or torchrun, which set RANK and WORLD_SIZE; without them, one process.

    Raises UserError under a launcher whose ranks would each train alone.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        world = _number(environment, "WORLD_SIZE", 1, None)
        rank = _number(environment, "RANK", 0, world - 1)
        local_world = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environment else "LOCAL_SIZE"
        if "MASTER_PORT" in environment:
            _number(environment, "MASTER_PORT", 1, 65535)
        return Rendezvous(
            rank=rank,
            local_rank=_number(environment, "LOCAL_RANK", 0, None, default=rank),
            world=world,
            local_world=_number(environment, local_world, 1, None, default=world),
        )
    for name, launcher in _UNREAD.items():
        if int(environment.get(name, "1")) > 1:
            raise UserError(
                f"{launcher} started {environment[name]} processes, and each would train alone; "
                "start them through `deepspeed launch/train.py` or `torchrun launch/train.py`"
            )
    return Rendezvous(rank=0, local_rank=0, world=1, local_world=1)


def _number(
    environment: Mapping[str, str], name: str, least: int, most: int | None,
    default: int | None = None,
) -> int:  # fmt: skip
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit() or not least <= int(text) <= (most or int(text)):
        span = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{name}: expected a whole number, {span}, got {text!r}")
    return int(text)


def announce(rendezvous: Rendezvous, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what torch and DeepSpeed read, where no launcher did."""
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    environment.setdefault("MASTER_PORT", str(free_port()))
    environment["RANK"] = str(rendezvous.rank)
    environment["LOCAL_RANK"] = str(rendezvous.local_rank)
    environment["WORLD_SIZE"] = str(rendezvous.world)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
