"""Control files, which somebody puts into a run folder to ask something of the run.

touch runs/large/save    a checkpoint at the next step; the file is removed
touch runs/large/stop    save, stop, and do not start again while the file is there
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from trainer.run.lease import Lease

SECONDS = 1.0
"""Seconds between reads: on a cluster's file system a read costs a millisecond."""


@dataclass(frozen=True)
class Requests:
    """What is asked of a run, the same on all ranks."""

    stop: bool = False
    save: bool = False
    lease_lost: bool = False
    """Whether a newer attempt of the job has the folder."""


class ControlFiles:
    """The control files of a run folder, read by the main rank."""

    def __init__(self, run: Path, lease: Lease) -> None:
        self._run, self.lease = run, lease
        self._read_at = 0.0

    def read(self) -> Requests:
        """Return what is asked for; nothing where the files were read a moment ago."""
        if time.monotonic() - self._read_at < SECONDS:
            return Requests()
        self._read_at = time.monotonic()
        return Requests(
            stop=(self._run / "stop").exists(),
            save=(self._run / "save").exists(),
            lease_lost=not self.lease.is_held(),
        )

    def done(self) -> None:
        """Remove the request for a save, which has begun."""
        (self._run / "save").unlink(missing_ok=True)


def refuse_if_stopped(run: Path) -> None:
    """Raise UserError while somebody wants the run to stand still."""
    if (run / "stop").exists():
        raise UserError(f"{run / 'stop'} asks this run to stand still; remove it to go on")
