"""A run on this rank, from meeting the other ranks to the marker that says how it ended."""

from __future__ import annotations

from contextlib import ExitStack

from parallel.groups import Mesh, is_joined, join
from parallel.rendezvous import meet
from trainer.config.load import flat
from trainer.faults.failures import LeaseLostError
from trainer.faults.signals import StopRequest, ended_by_signal, stop_on_signal
from trainer.logs.progress import say
from trainer.loop import Outcome, Trainer
from trainer.prepare import Plan
from trainer.run.environment import commit, versions
from trainer.run.lease import Attempt, acquire


def train(
    plan: Plan,
    rank: int = 0,
    local_rank: int = 0,
    local_world: int = 1,
    stop: StopRequest | None = None,
) -> Outcome:
    """Run `plan` on this rank, from its resume point to its last step or to a signal.

    `local_world` counts the ranks on this machine; `stop` may have been asked for already.
    """
    if plan.is_done:
        if rank == 0:
            say(f"{plan.run.path} is done: {plan.steps_done} steps; nothing is left to do")
        return Outcome.DONE
    with ExitStack() as stack:
        lease = None
        if rank == 0:
            plan.run.path.mkdir(parents=True, exist_ok=True)
            lease = stack.enter_context(acquire(plan.run.path, Attempt.here()))
            plan.check_current()
        with ended_by_signal():
            mesh = _join(plan, rank, local_rank, local_world)
        stop = stack.enter_context(stop_on_signal(stop))
        trainer = Trainer(plan, mesh, stop, lease)
        outcome = trainer.run()
        if lease is not None:
            if not lease.is_held():
                raise LeaseLostError(plan.run.path)
            plan.run.mark(outcome, trainer.steps_done)
    return outcome


def _join(plan: Plan, rank: int, local_rank: int, local_world: int) -> Mesh:
    """Meet the other ranks, all about to do the same."""
    store = None
    if not is_joined():
        facts = {
            "the step to go on from": plan.steps_done,
            "the weights to start from": str(plan.start_from and plan.start_from.path.resolve()),
            "the run folder": str(plan.run.path.resolve()),
            "the data": plan.dataset.digest,
            **versions(),
            "forescale's commit": commit(),
            **flat(plan.configuration.settings.model_dump()),
        }
        meeting = meet(rank, plan.layout.world, facts)
        store = meeting.store
        if rank == 0 and plan.layout.world > 1:
            say(meeting.table(plan.layout))
    return join(plan.layout, rank, local_rank, local_world, store)
