"""`forescale preflight RUN`: is this node fit to train? One task for each node asks, before a run.

A node that is not says `unfit NODE: why`, which slurm/train_large.sh keeps away from.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from launch.machine import GIB, free_bytes, memory, write_rate
from launch.rendezvous import Rendezvous, announce, discover
from model.errors import SaidElsewhereError, UserError
from trainer.environment import commit, versions

LEAST_MEMORY, LEAST_DISK = GIB // 2, GIB
"""Of main memory for each task, and of disk for a run."""

SECONDS = 60.0
"""For all nodes to come."""


def check(run: Path, tasks: int) -> bool:
    """Look at this node, then meet the others; whether it is fit."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    wrong = _alone(run, tasks)
    if wrong is None:
        rendezvous = discover()
        if rendezvous.world > 1:
            wrong = _together(rendezvous, node)
    if wrong is not None:
        print(f"unfit {node}: {wrong}", flush=True)
    return wrong is None


def _alone(run: Path, tasks: int) -> str | None:
    import torch

    available = memory()["available"]
    if available < tasks * LEAST_MEMORY:
        return f"{available / GIB:.1f} GiB of memory are free for {tasks} tasks"
    try:
        write_rate(run, 2**20)
    except OSError as error:
        return f"{run} cannot be written: {error.strerror}"
    free = free_bytes(run)
    if free < LEAST_DISK:
        return f"{free / GIB:.1f} GiB are free where {run} lies"
    if torch.version.cuda is None:
        return None
    if torch.cuda.device_count() < tasks:
        return f"{torch.cuda.device_count()} of {tasks} GPUs answer"
    for device in range(tasks):
        try:
            square = torch.ones(512, 512, device=f"cuda:{device}")
            if float((square @ square).sum()) != 512.0**3:
                return f"GPU {device} computes wrongly"
        except RuntimeError as error:
            return f"GPU {device}: {str(error).splitlines()[0]}"
    return None


def _together(rendezvous: Rendezvous, node: str) -> str | None:
    """One small sum over all nodes, which have the same versions."""
    import torch

    from parallel.agreement import meet
    from parallel.groups import join, leave, sum_over_ranks
    from parallel.layout import Layout

    announce(rendezvous)
    facts = {**versions(), "forescale's commit": commit()}
    rank, world = rendezvous.rank, rendezvous.world
    try:
        meeting = meet(rank, world, facts, SECONDS)
        place = join(Layout(1, world), rank, 0, 1, meeting.store)
        total = float(sum_over_ranks(place, torch.tensor(1.0)))
        leave()
    except SaidElsewhereError:
        return None
    except UserError as error:
        return _blame(str(error), world, node)
    except RuntimeError as error:
        return f"cannot reach the others: {str(error).splitlines()[0]}"
    if rank == 0:
        print(f"preflight: {len(meeting.hosts)} nodes, {', '.join(meeting.hosts)}", flush=True)
    return None if total == world else f"the nodes' sum is {total:g} instead of {world}"


def _blame(sentence: str, world: int, node: str) -> str | None:
    """The node that a sentence about `rank N` is of, where it is another one."""
    first = sentence.partition("rank ")[2].partition(" ")[0].rstrip(",:")
    nodes = _nodes()
    if first.isdigit() and len(nodes) == world and nodes[int(first)] != node:
        print(f"unfit {nodes[int(first)]}: {sentence}", flush=True)
        return None
    return sentence


def _nodes() -> list[str]:
    """Of this Slurm step, one for each task."""
    names = os.environ.get("SLURM_STEP_NODELIST", "")
    try:
        told = subprocess.run(["scontrol", "show", "hostnames", names], capture_output=True,
                              text=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return []
    return told.stdout.split()
