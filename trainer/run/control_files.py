"""Control files: requests to a run, made by creating a file in its folder.

touch runs/large/save    save a checkpoint at the next step; the file is removed
touch runs/large/stop    save, stop, and do not start again while the file is there
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from model.errors import UserError
from trainer.run.folder import RunFolder
from trainer.run.lease import Lease

READ_INTERVAL = 1.0
"""Seconds between reads: on a cluster's file system a read costs a millisecond."""


@dataclass(frozen=True)
class Requests:
    """The requests to a run, the same on all ranks."""

    stop: bool = False
    save: bool = False
    lease_lost: bool = False
    """Whether a newer attempt of the job has the folder."""


class ControlFiles:
    """The control files of a run folder, read by the main rank."""

    def __init__(self, run: RunFolder, lease: Lease) -> None:
        self._run, self.lease = run, lease
        self._read_at = 0.0

    def read(self) -> Requests:
        """Return the requests; none where the files were read less than READ_INTERVAL ago."""
        if time.monotonic() - self._read_at < READ_INTERVAL:
            return Requests()
        self._read_at = time.monotonic()
        return Requests(
            stop=self._run.stop_file.exists(),
            save=self._run.save_file.is_file(),
            lease_lost=not self.lease.is_held(),
        )

    def clear_save(self) -> None:
        """Remove the request for a save, which has begun."""
        self._run.save_file.unlink(missing_ok=True)


def refuse_if_stopped(run: RunFolder) -> None:
    """Raise UserError while there is a request to stop."""
    if run.stop_file.exists():
        raise UserError(f"{run.stop_file} asks this run to stand still; remove it to go on")
