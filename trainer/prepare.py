"""Everything that can be refused is refused here, in seconds and before a rank starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from parallel.layout import Layout
from trainer.checkpoint.store import Checkpoint
from trainer.config import Configuration
from trainer.config.rules import check
from trainer.data import Dataset
from trainer.run.control_files import refuse_if_stopped
from trainer.run.folder import RunFolder, check_same
from trainer.run.lease import Attempt, is_restart
from trainer.weights.source import WeightsSource, find


@dataclass(frozen=True)
class Plan:
    """A run that may start."""

    configuration: Configuration
    layout: Layout
    dataset: Dataset
    run: RunFolder
    resume_from: Checkpoint | None
    start_from: WeightsSource | None
    """Whose weights a new run starts with."""
    may_fall_back: bool
    """On an older checkpoint, where this one is damaged: it was not asked for by its name."""

    @property
    def steps_done(self) -> int:
        return self.resume_from.step if self.resume_from else 0

    @property
    def is_done(self) -> bool:
        """Nothing is left to do in the run folder."""
        return self.run.is_done() and self.steps_done >= self.configuration.settings.train.steps

    def check_current(self) -> None:
        """Raises UserError where somebody has trained in the folder since this was planned."""
        newest = self.run.store.newest()
        if self.may_fall_back and newest != self.resume_from:
            raise UserError(
                f"{self.run.path} has gone on to {newest.path.name if newest else 'nothing'} since "
                "this command looked; give it again"
            )


def prepare(
    configuration: Configuration,
    *,
    run_dir: Path | None = None,
    resume: str = "auto",
    world: int = 1,
) -> Plan:
    """Check settings, data and run folder; imports no torch and starts nothing.

    Raises UserError for what the user can mend.
    """
    layout = check(configuration, world)
    run = RunFolder(run_dir or Path("runs") / configuration.name)
    try:
        dataset = Dataset(configuration.settings.data)
    except UserError as error:
        raise configuration.locate(error) from None
    if resume != "auto" and is_restart(run.path, Attempt.here()):
        # A job that is started again goes on with what it has begun itself.
        resume = "auto" if resume == "never" or run.store.newest() else resume
    run.check(configuration, resume)
    refuse_if_stopped(run.path)
    point = run.resume_point(resume)
    source = _start_from(configuration) if point is None else None
    plan = Plan(configuration, layout, dataset, run, point, source, may_fall_back=resume == "auto")
    if plan.resume_from is not None:
        check_resume(plan, plan.resume_from)
    return plan


def _start_from(configuration: Configuration) -> WeightsSource | None:
    path = configuration.settings.model.init_from
    if path is None:
        return None
    try:
        return find(Path(path))
    except UserError as error:
        raise configuration.error("model.init_from", str(error)) from None


def check_resume(plan: Plan, checkpoint: Checkpoint) -> None:
    """Refuse to go on from what was computed from something else."""
    made_from = checkpoint.description()
    check_same(plan.configuration, made_from["settings"], f"{checkpoint.path} is of other settings")
    if made_from["data"] != plan.dataset.digest:
        raise UserError(
            f"data.source: {plan.configuration.settings.data.source} has changed since "
            f"{checkpoint.path} was written; choose another --run-dir to start on the new data"
        )
    steps = plan.configuration.settings.train.steps
    if plan.steps_done > steps and not plan.is_done:
        raise plan.configuration.error(
            "train.steps", f"{plan.run.path} has made {plan.steps_done} steps already, not {steps}"
        )
