"""What ends a run that began: one sentence each, the same on all ranks, and exit code 1."""

from __future__ import annotations


class RunFailedError(RuntimeError):
    """The run cannot go on; its checkpoints are good."""


class DivergedError(RunFailedError):
    """The loss or the gradient is no number any more; nothing after the last checkpoint counts."""


class SaveFailedError(RunFailedError):
    """Two checkpoints in a row could not be written; those before them are as they were."""


class TakenOverError(RunFailedError):
    """A newer incarnation of this job writes in the run folder now."""
