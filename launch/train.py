"""One rank of a run, under `forescale train`, `deepspeed launch/train.py`, torchrun or alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run as a script, `launch/` itself is on the path; the packages lie beside it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.cluster_environment import Rendezvous, announce, discover
from model.errors import UserError
from trainer.faults.failures import RunFailedError
from trainer.faults.signals import LASTING, StopRequest, stop_on_signal

if TYPE_CHECKING:
    from trainer.prepare import Plan


def start(
    config: Path, overrides: Sequence[str], *, run_dir: Path | None, resume: str, ranks: int | None
) -> int:
    """Check everything, then train as this rank or through `ranks` new ones; the exit code."""
    from trainer.config import load
    from trainer.config.load import parse_overrides
    from trainer.prepare import prepare
    from trainer.run.lease import Attempt, refuse_if_leased

    rendezvous = discover()
    if ranks is not None and rendezvous.world > 1:
        raise UserError("--ranks: a launcher has started the ranks already; leave it out")
    with stop_on_signal(signals=LASTING) as stop:
        try:
            configuration = load(config, parse_overrides(overrides))
            world = ranks or rendezvous.world
            plan = prepare(configuration, run_dir=run_dir, resume=resume, world=world)
        except UserError as error:
            if rendezvous.rank == 0:
                raise
            return _tell(rendezvous, error)
        if ranks is None or ranks == 1 or plan.is_done:
            return _train(plan, rendezvous, stop)
        if plan.run.exists():
            refuse_if_leased(plan.run.path, Attempt.here())  # said here rather than by a rank
        from launch.local_ranks import launch

        options = ["--run-dir", str(plan.run.path), "--resume", resume]
        return launch(ranks, [str(config), *overrides, *options], stop)


def _tell(rendezvous: Rendezvous, error: UserError) -> int:
    """Have rank 0 quote what went wrong here, unless it has ended by the same mistake."""
    announce(rendezvous)
    from parallel.rendezvous import report_failure

    report_failure(rendezvous.rank, str(error))
    return 2


def _train(plan: Plan, rendezvous: Rendezvous, stop: StopRequest) -> int:
    use_processors(rendezvous)
    announce(rendezvous)
    from parallel.groups import leave
    from trainer.job import train

    try:
        train(plan, rendezvous.rank, rendezvous.local_rank, rendezvous.local_world, stop)
    except RunFailedError as error:
        if rendezvous.rank == 0:
            print(f"forescale: {error}", file=sys.stderr)
        return 1
    leave()
    return 0


def use_processors(rendezvous: Rendezvous) -> None:
    """This rank's share of the machine's processors, unless OMP_NUM_THREADS decides."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // rendezvous.local_world))


if __name__ == "__main__":
    from launch.entry import enter

    enter(["train", *sys.argv[1:]])
