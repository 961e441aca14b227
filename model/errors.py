"""All exceptions of Forescale, and the exit code of a command that one of them ends.

    ValueError
    └── UserError                   2  a mistake that the user can mend
        ├── ReportedElsewhereError  2  another rank reports it: this one ends silently
        ├── SeveralSeriesError      2  a table whose series some columns may tell apart
        └── AbsentError             2  ranks that have not come to the rendezvous
    RuntimeError
    └── RunFailedError              1  a run that began cannot go on; its checkpoints are good
        ├── DivergedError           1  too many steps in a row were skipped
        ├── NonFiniteError          1  the weights are no numbers any more
        ├── SaveFailedError         1  two checkpoints in a row could not be written
        ├── DeviceMemoryError       1  a rank's device has no more room
        └── LeaseLostError          1  a newer attempt of the job has taken the run folder over

Commands print one of these as one line on stderr. Anything else that is raised is a defect of the
program: it keeps its traceback and ends with 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that names the key or file and the way out."""

    exit_code: ClassVar[int] = 2


class ReportedElsewhereError(UserError):
    """A mistake that another rank reports: this one ends without a word."""


class SeveralSeriesError(UserError):
    """A table holds several series, which the columns `ids` tell apart if they are meant to."""

    def __init__(self, sentence: str, ids: tuple[str, ...]) -> None:
        super().__init__(sentence)
        self.ids = ids


class AbsentError(UserError):
    """Ranks that have not come to the rendezvous."""

    def __init__(self, sentence: str, ranks: list[int]) -> None:
        super().__init__(sentence)
        self.ranks = ranks


class RunFailedError(RuntimeError):
    """A run that began cannot go on; its checkpoints are good. The same on all ranks."""

    exit_code: ClassVar[int] = 1


class DivergedError(RunFailedError):
    """Too many steps in a row were skipped; the weights are those of the last good one."""


class NonFiniteError(RunFailedError):
    """The weights are no numbers any more; nothing after the last checkpoint counts."""


class SaveFailedError(RunFailedError):
    """Two checkpoints in a row could not be written; those before them are as they were."""


class DeviceMemoryError(RunFailedError):
    """A device has no more room; raised on its rank alone, which says so itself."""


class LeaseLostError(RunFailedError):
    """A newer attempt of this job writes in the run folder now, or the folder is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} is this start's no longer: a newer start of the job has taken it over"
            if folder.exists()
            else f"{folder} has been removed"
        )
