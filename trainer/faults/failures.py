"""What ends a run that began: one sentence each, the same on all ranks, and exit code 1."""

from __future__ import annotations

from pathlib import Path


class RunFailedError(RuntimeError):
    """The run cannot go on; its checkpoints are good."""


class DivergedError(RunFailedError):
    """Too many steps in a row were skipped; the weights are those of the last good one."""


class NonFiniteError(RunFailedError):
    """The weights are no numbers any more; nothing after the last checkpoint counts."""


class SaveFailedError(RunFailedError):
    """Two checkpoints in a row could not be written; those before them are as they were."""


class LeaseLostError(RunFailedError):
    """A newer incarnation of this job writes in the run folder now, or the folder is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} is this start's no longer: a newer start of the job has taken it over"
            if folder.exists()
            else f"{folder} has been removed"
        )
