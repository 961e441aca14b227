"""`forescale train`: check everything, then train as this process's rank or through new ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.capacity import check_machine
from launch.cluster_environment import ClusterEnvironment, announce, announced, discover
from launch.machine import threads
from model.errors import RunFailedError, UserError
from trainer.faults.signals import LASTING, StopRequest, stop_on_signal

if TYPE_CHECKING:
    from trainer.prepare import Plan


def start(
    config: Path, overrides: Sequence[str], *, run_dir: Path | None, resume: str, ranks: int | None
) -> int:
    """Check everything, then train as this rank or through `ranks` new ones; return the exit code.

    That is 0 for a run that is done, and `StopRequest.exit_code` for one that a signal has stopped.
    Raises UserError on rank 0 for what the user can mend, and RunFailedError for a run that failed.
    """
    from trainer.config import load
    from trainer.config.load import parse_overrides
    from trainer.logs.log import chosen_level
    from trainer.prepare import prepare
    from trainer.run.lease import Attempt, refuse_if_leased

    cluster = discover()
    if ranks is not None and cluster.world > 1:
        raise UserError("--ranks: a launcher has started the ranks already; leave it out")
    with stop_on_signal(signals=LASTING) as stop:
        try:
            chosen_level()  # before the ranks wait for one that is refused
            configuration = load(config, parse_overrides(overrides))
            world = ranks or cluster.world
            plan = prepare(configuration, run_dir=run_dir, resume=resume, world=world)
            if (ranks is None or ranks == 1) and not plan.start.is_done:
                check_machine(plan, cluster)
        except UserError as error:
            if cluster.rank == 0:
                raise
            return _report(cluster, error)
        if ranks is None or ranks == 1 or plan.start.is_done:
            return _train(plan, cluster, stop)
        refuse_if_leased(plan.run.path, Attempt.here())  # here rather than in a rank
        from launch.local_ranks import launch

        options = ["--run-dir", str(plan.run.path), "--resume", resume]
        code = launch(ranks, [str(config), *overrides, *options], stop)
        return stop.exit_code if code == 0 and not plan.run.is_done() else code


def try_out(
    config: Path, overrides: Sequence[str], *, run_dir: Path | None, resume: str, ranks: int | None
) -> None:
    """Check everything and print what `start` would do; write nothing and start no rank.

    Raises UserError where `start` would.
    """
    from rich.console import Console

    from launch.output import showing_log
    from launch.plan import explain, print_text
    from trainer.logs.log import log

    cluster = discover()
    world = ranks or cluster.world
    node = world if ranks else cluster.local_world
    if cluster.rank:
        return
    with showing_log():
        known = explain(config, overrides, world, node, run_dir, resume)
        for warning in known.plan.warnings():
            log.warning(warning)
        print_text(known, Console(width=110))
        log.info("dry run: nothing was written, and no rank was started")


def _report(cluster: ClusterEnvironment, error: UserError) -> int:
    """Have rank 0 quote what went wrong, unless the same has ended it; return the exit code."""
    address = announce(cluster)
    from parallel.rendezvous import report_failure

    report_failure(address, cluster.rank, str(error))
    return error.exit_code


def _train(plan: Plan, cluster: ClusterEnvironment, stop: StopRequest) -> int:
    """Train as this rank; return the exit code. Rank 0 raises RunFailedError for all."""
    use_processors(cluster)
    from parallel.mesh import destroy_mesh
    from trainer.job import train
    from trainer.loop import Outcome

    try:
        with announced(cluster) as address:
            outcome = train(plan, cluster.rank, cluster.local_rank, stop, address=address)
    except RunFailedError as error:
        if cluster.rank == 0:
            raise
        return error.exit_code
    destroy_mesh()
    return stop.exit_code if outcome is Outcome.SAVED else 0


def use_processors(cluster: ClusterEnvironment) -> None:
    """Take this rank's share of the machine's processors, unless OMP_NUM_THREADS decides."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads(cluster.local_world))
