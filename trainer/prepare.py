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
from trainer.run import RunFolder


@dataclass(frozen=True)
class Plan:
    """A run that may start."""

    configuration: Configuration
    layout: Layout
    dataset: Dataset
    run: RunFolder
    resume_from: Checkpoint | None

    @property
    def steps_done(self) -> int:
        return self.resume_from.step if self.resume_from else 0

    @property
    def is_done(self) -> bool:
        """Nothing is left to do in the run folder."""
        return self.run.is_done() and self.steps_done >= self.configuration.settings.train.steps


def prepare(
    configuration: Configuration,
    *,
    run_dir: Path | None = None,
    resume: str = "auto",
    world: int = 1,
) -> Plan:
    """Check settings, data and run folder; imports no torch and writes nothing.

    Raises UserError for what the user can mend.
    """
    layout = check(configuration, world)
    run = RunFolder(run_dir or Path("runs") / configuration.name)
    try:
        dataset = Dataset(configuration.settings.data)
    except UserError as error:
        raise configuration.locate(error) from None
    run.check(configuration, resume)
    return Plan(configuration, layout, dataset, run, run.resume_point(resume))
