"""`forescale preflight RUN`: are these nodes fit to train? A task on each asks, before a run.

The tasks tell each other what they found, and the first one says `unfit NODE: why` of each node
that is not, which slurm/train_large.sh keeps away from.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from launch.cluster_environment import ClusterEnvironment, announce, discover
from launch.hostlist import expand_hosts
from launch.machine import GIB, free_bytes, write_rate
from model.errors import AbsentError, ReportedElsewhereError, UserError
from model.sentences import first_line
from parallel.consistency import first_difference
from parallel.rendezvous import Rendezvous, meet
from trainer.run.environment import commit, versions

LEAST_MEMORY, LEAST_DISK = GIB // 2, GIB
"""Of main memory for each task, and of disk for a run."""

Finding = dict[str, Any]
"""Of one node: its name, what is wrong with it or None, and its versions as JSON."""


def check(run: Path, tasks: int) -> bool:
    """Look at this node, compare it with the others, and sum over all; whether all are fit."""
    here = discover()
    mine: Finding = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "wrong": _wrong_here(run, tasks),
        "versions": json.dumps({**versions(), "forescale's commit": commit()}),
    }
    try:
        unfit, met = _judge_all(here, mine)
    except ReportedElsewhereError:
        return False
    except AbsentError as error:
        unfit, met = _judge_absent(error.ranks, here, mine), None
    except UserError as error:  # either node may be to blame: none is named
        print(f"{mine['node']}: {error}", flush=True)
        return False
    if here.rank == 0:
        # What all have in common is not theirs to be kept away from for.
        word = "unfit" if len(unfit) < here.world or here.world == 1 else "no node can train:"
        for node, why in unfit.items():
            print(f"{word} {node}: {why}", flush=True)
    if not unfit and met is not None and not _can_sum(here, met, mine["node"]):
        return False
    if here.rank == 0 and not unfit:
        nodes = list(met.hosts) if met is not None else [mine["node"]]
        print(f"preflight: {', '.join(nodes)} can train", flush=True)
    return not unfit


def _wrong_here(run: Path, tasks: int) -> str | None:
    import torch

    available = psutil.virtual_memory().available
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
            return f"GPU {device}: {first_line(error)}"
    return None


def _judge_all(here: ClusterEnvironment, mine: Finding) -> tuple[dict[str, str], Rendezvous | None]:
    """Why which nodes are unfit: the same on all."""
    if here.world == 1:
        return judge([mine]), None
    met = meet(announce(here), here.rank, here.world, {})
    try:
        findings = met.exchange(json.dumps(mine))
    except RuntimeError as error:
        raise UserError(f"the other nodes are lost: {first_line(error)}") from None
    return judge([json.loads(finding) for finding in findings]), met


def judge(findings: list[Finding]) -> dict[str, str]:
    """Why which nodes are unfit: by what they found, or because they differ from most nodes."""
    unfit = {finding["node"]: finding["wrong"] for finding in findings if finding["wrong"]}
    [(usual, _)] = Counter(finding["versions"] for finding in findings).most_common(1)
    for finding in findings:
        difference = first_difference(usual, finding["versions"], finding["node"], "most nodes")
        if difference is not None:
            unfit.setdefault(finding["node"], difference)
    return unfit


def _judge_absent(ranks: list[int], here: ClusterEnvironment, mine: Finding) -> dict[str, str]:
    """Where most are missing, it is this node that they cannot reach."""
    if 2 * len(ranks) > here.world:
        return {mine["node"]: f"{len(ranks)} of {here.world} nodes did not reach it"}
    nodes = _nodes() or [f"of rank {rank}" for rank in range(here.world)]
    return {nodes[rank]: f"did not come within {announce(here).seconds:g} s" for rank in ranks}


def _nodes() -> list[str]:
    """Return the node of each task of this Slurm step, where it is one."""
    hosts = os.environ.get("SLURM_STEP_NODELIST")
    return expand_hosts(hosts) if hosts else []


def _can_sum(here: ClusterEnvironment, met: Rendezvous, node: str) -> bool:
    """One number over all nodes, as training will."""
    import torch

    from parallel.collectives import sum_over_ranks
    from parallel.layout import Layout
    from parallel.mesh import destroy_mesh, init_mesh

    try:
        mesh = init_mesh(Layout(1, here.world), here.rank, 0, 1, met.store, met.address.seconds)
        total = float(sum_over_ranks(mesh, torch.tensor(1.0)))
        destroy_mesh()
    except RuntimeError as error:
        print(f"{node}: the nodes cannot sum: {first_line(error)}", flush=True)
        return False
    if total != here.world:
        print(f"{node}: the nodes' sum is {total:g} instead of {here.world}", flush=True)
    return total == here.world
