"""`forescale preflight RUN`: whether these nodes can train, found by a task on each before a run.

The tasks exchange what they found, and the first one reports each node that is unfit, which
slurm/train_large.sh excludes when it requeues the job.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launch.cluster_environment import ClusterEnvironment, announce, discover
from launch.hostlist import expand_hosts
from launch.machine import GIB, free_bytes, too_low, write_rate
from launch.output import print_json
from model.errors import AbsentError, ReportedElsewhereError, UserError
from model.sentences import first_line
from parallel.consistency import first_difference
from parallel.rendezvous import Rendezvous, meet
from trainer.run.environment import commit, versions

MIN_MEMORY, MIN_DISK = GIB // 2, GIB
"""Bytes of free memory that each task needs, and of free disk that a run needs."""

Finding = dict[str, Any]
"""What one node found: its name, what is wrong with it or None, and its versions as JSON."""


@dataclass(frozen=True)
class Report:
    """What is known of the nodes, as `--json` prints it; whole on the first task."""

    can_train: bool = False
    nodes: list[str] = field(default_factory=list)
    """Nodes that can train."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Node -> why it is to be kept away from."""
    in_common: dict[str, str] = field(default_factory=dict)
    """Node -> what is wrong, where something is wrong with all of them: no other would do."""
    error: str | None = None
    """What failed without a node to blame, as this task saw it."""


def check(run: Path, tasks: int, *, as_json: bool, with_text: bool) -> bool:
    """Examine this node among the others, and print what is found; return whether all are fit.

    The first task prints the report, the others their own errors. Raises UserError where `run` can
    be no run folder.
    """
    if run.is_file() or (run.suffix in (".yaml", ".yml") and not run.exists()):
        raise UserError(
            f"{run}: expected a run folder, such as runs/{run.stem}, and this names a file"
        )
    here = discover()
    report = examine(run, tasks, here)
    if as_json and here.rank == 0:
        print_json(asdict(report))
    if with_text or not as_json or here.rank > 0:
        for sentence in _sentences(report, here.rank):
            print(sentence, flush=True, file=sys.stderr if as_json else sys.stdout)
    return report.can_train


def _sentences(report: Report, rank: int) -> Iterator[str]:
    if rank == 0:
        yield from (f"unfit {node}: {why}" for node, why in report.unfit.items())
        yield from (f"no node can train: {node}: {why}" for node, why in report.in_common.items())
    if report.error:
        yield report.error
    if rank == 0 and report.can_train:
        yield f"preflight: {', '.join(report.nodes)} can train"


def examine(run: Path, tasks: int, here: ClusterEnvironment) -> Report:
    """Examine this node, compare it with the others, and sum a number over all of them."""
    mine: Finding = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "wrong": _wrong_here(run, tasks, tasks * here.world),
        "versions": json.dumps({**versions(), "forescale's commit": commit()}),
    }
    try:
        unfit, met = _judge_all(here, mine)
    except ReportedElsewhereError:
        return Report()
    except AbsentError as error:
        unfit, met = _judge_absent(error.ranks, here, mine), None
    except UserError as error:  # either node may be to blame: none is named
        return Report(error=f"{mine['node']}: {error}")
    if unfit:
        # What all have in common is not theirs to be kept away from for.
        are_all = len(unfit) == here.world > 1
        return Report(in_common=unfit) if are_all else Report(unfit=unfit)
    wrong = _sum_error(here, met) if met is not None else None
    if wrong is not None:
        return Report(error=f"{mine['node']}: {wrong}")
    return Report(can_train=True, nodes=list(met.hosts) if met is not None else [mine["node"]])


def _wrong_here(run: Path, tasks: int, world: int) -> str | None:
    """Return why this node cannot train, if it cannot."""
    import torch

    available = psutil.virtual_memory().available
    if available < tasks * MIN_MEMORY:
        return f"{available / GIB:.1f} GiB of memory are free for {tasks} tasks"
    try:
        write_rate(run, 2**20)
    except OSError as error:
        return f"{run} cannot be written: {error.strerror}"
    free = free_bytes(run)
    if free < MIN_DISK:
        return f"{free / GIB:.1f} GiB are free where {run} lies"
    low = too_low(tasks, world, on_gpus=torch.version.cuda is not None)
    if low is not None or torch.version.cuda is None:
        return low
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
    """Return why which nodes are unfit, the same on all, and where they have met.

    Raises UserError where the others are not there.
    """
    if here.world == 1:
        return judge([mine]), None
    met = meet(announce(here), here.rank, here.world, {}, _device())
    try:
        findings = met.exchange(json.dumps(mine))
    except RuntimeError as error:
        raise UserError(f"the other nodes are lost: {first_line(error)}") from None
    return judge([json.loads(finding) for finding in findings]), met


def judge(findings: list[Finding]) -> dict[str, str]:
    """Return which nodes are unfit, by what they found or because they differ from most nodes."""
    unfit = {finding["node"]: finding["wrong"] for finding in findings if finding["wrong"]}
    [(usual, _)] = Counter(finding["versions"] for finding in findings).most_common(1)
    for finding in findings:
        difference = first_difference(usual, finding["versions"], finding["node"], "most nodes")
        if difference is not None:
            unfit.setdefault(finding["node"], difference)
    return unfit


def _device() -> str:
    """Return the device that this task sums with."""
    from parallel.mesh import device_name, local_device

    return device_name(local_device(0))


def _judge_absent(ranks: list[int], here: ClusterEnvironment, mine: Finding) -> dict[str, str]:
    """Return which nodes are unfit: those that are absent, or this one where most of them are."""
    if 2 * len(ranks) > here.world:
        return {mine["node"]: f"{len(ranks)} of {here.world} nodes did not reach it"}
    nodes = _nodes_of_tasks(here.world)
    return {nodes[rank]: f"did not come within {announce(here).seconds:g} s" for rank in ranks}


def _nodes_of_tasks(world: int) -> list[str]:
    """Return the node of each task of this Slurm step; outside Slurm, words for it."""
    hosts = os.environ.get("SLURM_STEP_NODELIST")
    nodes = expand_hosts(hosts) if hosts else []
    return nodes if len(nodes) == world else [f"of rank {rank}" for rank in range(world)]


def _sum_error(here: ClusterEnvironment, met: Rendezvous) -> str | None:
    """Sum one number over all nodes, as training will; return what went wrong, if anything."""
    import torch

    from parallel.collectives import sum_over_ranks
    from parallel.layout import Layout
    from parallel.mesh import destroy_mesh, init_mesh, local_device

    try:
        layout = Layout(1, here.world)
        how = met.store, met.backend, met.address.seconds
        mesh = init_mesh(layout, here.rank, local_device(0), *how)
        total = float(sum_over_ranks(mesh, torch.tensor(1.0)))
        destroy_mesh()
    except RuntimeError as error:
        return f"the nodes cannot sum: {first_line(error)}"
    return None if total == here.world else f"the nodes' sum is {total:g} instead of {here.world}"
