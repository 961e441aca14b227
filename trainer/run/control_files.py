"""Files that somebody puts into a run folder to ask something of the run.

touch runs/large/save    a checkpoint at the next step; the file is taken away
touch runs/large/stop    save, stop, and do not start again while the file is there
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from trainer.run.lease import Lease

SECONDS = 1.0
"""Between looks: on a cluster's file system a look costs a millisecond."""


@dataclass(frozen=True)
class Requests:
    """What is asked of a run, the same on all ranks."""

    stop: bool = False
    save: bool = False
    taken_over: bool = False
    """A newer incarnation of the job has the folder."""


class ControlFiles:
    """Looked at by the main rank."""

    def __init__(self, run: Path, lease: Lease) -> None:
        self._run, self._lease = run, lease
        self._looked = 0.0

    def look(self) -> Requests:
        if time.monotonic() - self._looked < SECONDS:
            return Requests()
        self._looked = time.monotonic()
        return Requests(
            (self._run / "stop").exists(),
            (self._run / "save").exists(),
            not self._lease.is_held(),
        )

    def done(self) -> None:
        """A save was asked for and begun."""
        (self._run / "save").unlink(missing_ok=True)


def refuse_if_stopped(run: Path) -> None:
    """Raises UserError while somebody wants the run to stand."""
    if (run / "stop").exists():
        raise UserError(f"{run / 'stop'} asks this run to stand still; remove it to go on")
