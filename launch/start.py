"""`forescale train`: check everything, then train as this process's rank or through new ones."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.capacity import check_machine
from launch.cluster_environment import ClusterEnvironment, announce, announced, discover
from launch.machine import threads
from model.errors import DeviceMemoryError, RunFailedError, UserError
from trainer.faults.signals import LASTING, StopRequest, end_within, stop_on_signal

if TYPE_CHECKING:
    from trainer.prepare import Plan

ENDING_SECONDS = 60
"""Seconds that a rank has to end after an error that is its own."""


def start(
    config: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    resume: str,
    ranks: int | None,
    profile: str | None = None,
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
    _check_ranks(ranks, cluster)
    with stop_on_signal(signals=LASTING) as stop:
        try:
            chosen_level()  # before the ranks wait for one that is refused
            configuration = load(config, parse_overrides(overrides))
            world = ranks or cluster.world
            plan = prepare(configuration, run_dir=run_dir, resume=resume, world=world)
            profiled = None if profile is None else _profiled(profile, plan)
            if profiled is not None:
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # lines of the profiler's own
            if (ranks is None or ranks == 1) and not plan.start.is_done:
                check_machine(plan, cluster)
        except UserError as error:
            if cluster.rank == 0:
                raise
            return _report(cluster, error)
        if ranks is None or ranks == 1 or plan.start.is_done:
            return _train(plan, cluster, stop, profiled)
        refuse_if_leased(plan.run.path, Attempt.here())  # here rather than in a rank
        from launch.local_ranks import launch

        options = ["--run-dir", str(plan.run.path), "--resume", resume]
        options += [] if profile is None else ["--profile", profile]
        code = launch(ranks, [str(config), *overrides, *options], stop, plan.run.is_saved)
        return stop.exit_code if code == 0 and not plan.run.is_done() else code


def try_out(
    config: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    resume: str,
    ranks: int | None,
    profile: str | None = None,
) -> None:
    """Check everything and print what `start` would do; write no run and start no rank.

    Raises UserError where `start` would.
    """
    from rich.console import Console

    from launch.output import showing_log
    from launch.plan import explain, print_text
    from trainer.logs.log import log

    cluster = discover()
    _check_ranks(ranks, cluster)
    world = ranks or cluster.world
    node = world if ranks else cluster.local_world
    if cluster.rank:
        return
    with showing_log():
        known = explain(config, overrides, world, node, run_dir, resume)
        if profile is not None:
            _profiled(profile, known.plan)
        for warning in known.plan.warnings():
            log.warning(warning)
        print_text(known, Console(width=110))
        log.info("dry run: no run was written, and no rank was started")


def _check_ranks(ranks: int | None, cluster: ClusterEnvironment) -> None:
    if ranks is not None and cluster.world > 1:
        raise UserError("--ranks: a launcher has started the ranks already; leave it out")


def _report(cluster: ClusterEnvironment, error: UserError) -> int:
    """Have rank 0 quote what went wrong, unless the same has ended it; return the exit code."""
    address = announce(cluster)
    from parallel.rendezvous import report_failure

    report_failure(address, cluster.rank, str(error))
    return error.exit_code


def _profiled(steps: str, plan: Plan) -> tuple[int, int]:
    """Return the first and the last of the steps to profile.

    Raises UserError where they are none, or are not made by this start.
    """
    found = re.fullmatch(r"(\d{1,15})(?:-(\d{1,15}))?", steps)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile: expected steps such as 5-7, got {steps!r}")
    total, done = plan.configuration.settings.train.steps, plan.start.steps_done
    if first <= done:
        raise UserError(f"--profile: step {first} is done already; the next one is {done + 1}")
    if last >= total:
        raise UserError(
            f"--profile: the last step, {total}, cannot be profiled, nor later ones; train.steps "
            "says how many there are"
        )
    return first, last


def _train(
    plan: Plan, cluster: ClusterEnvironment, stop: StopRequest, profile: tuple[int, int] | None
) -> int:
    """Train as this rank; return the exit code. Rank 0 raises RunFailedError for all.

    A rank whose device has no more room raises it itself.
    """
    use_processors(cluster)
    from parallel.mesh import destroy_mesh
    from trainer.job import train
    from trainer.loop import Outcome

    try:
        with announced(cluster) as address:
            outcome = train(
                plan, cluster.rank, cluster.local_rank, stop, address=address, profile=profile
            )
    except RunFailedError as error:
        if cluster.rank == 0 or isinstance(error, DeviceMemoryError):
            raise
        return error.exit_code
    except Exception:
        if cluster.world > 1:
            end_within(ENDING_SECONDS)
        raise
    destroy_mesh()
    return stop.exit_code if outcome is Outcome.SAVED else 0


def use_processors(cluster: ClusterEnvironment) -> None:
    """Take this rank's share of the machine's processors, unless OMP_NUM_THREADS decides."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads(cluster.local_world))
