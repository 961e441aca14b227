"""The lease of a run folder: one run at a time may write in it, and of a job its newest attempt.

A job that a scheduler starts again may find its own old processes, still alive on a node that the
scheduler has lost. The newer attempt takes the lease, and the older one, which checks before each
commit that it still has it, can no longer commit. Imports no torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from model.errors import UserError
from trainer.files import parse_json, read_json

NAME = ".owner"
"""Name of the file that records, in a run folder, who has the lease; that process locks it."""


@dataclass(frozen=True)
class Attempt:
    """One start of a job; the attempts of a job follow each other by their restart counts."""

    job: str
    """Name of the job; empty outside schedulers, where no attempt follows another."""
    restarts: tuple[int, ...]
    """Element of a job array and restart counts, compared from left to right."""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Attempt:
        """Return this process's attempt.

        It is of Slurm (job or job array, element, restart count) and torchrun (run, restart count).
        """
        slurm = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID", "")
        elastic = environment.get("TORCHELASTIC_RUN_ID", "none")
        names = [f"slurm {slurm}"] if slurm else []
        names += [f"torchrun {elastic}"] if elastic != "none" else []
        restarts = ("SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
        return cls(", ".join(names), tuple(_count(environment.get(name)) for name in restarts))

    def follows(self, other: Attempt) -> bool:
        """Return whether this is a later attempt of the same job."""
        return bool(self.job) and self.job == other.job and self.restarts > other.restarts


def _count(text: str | None) -> int:
    """Return a count that a variable may hold, else 0."""
    return int(text) if text and text.isdigit() else 0


class Lease:
    """The right to write in a run folder."""

    def __init__(self, folder: Path, token: str) -> None:
        self._file, self._token = folder / NAME, token

    def is_held(self) -> bool:
        """Return whether no other process has taken the lease since."""
        try:
            return bool(read_json(self._file)["token"] == self._token)
        except (OSError, ValueError, KeyError, TypeError):
            return False


def is_restart(folder: Path, attempt: Attempt) -> bool:
    """Return whether `attempt`, or an earlier one of its job, had the last lease of `folder`."""
    try:
        last = _attempt_of(read_json(folder / NAME))
    except (OSError, ValueError, AttributeError):
        return False
    return bool(last.job) and last.job == attempt.job and last.restarts <= attempt.restarts


def refuse_if_leased(folder: Path, attempt: Attempt) -> None:
    """Raise UserError where another run has the lease of `folder`."""
    if (folder / NAME).exists():
        with _exclusive(folder, attempt):
            pass


@contextmanager
def acquire(folder: Path, attempt: Attempt) -> Iterator[Lease]:
    """Yield the lease of `folder`, which excludes other runs and older attempts of this job.

    Raises UserError where another run has it, or where the folder cannot be written.
    """
    token = uuid.uuid4().hex
    new_file = folder / f"{NAME}.{token}"
    record = {
        "token": token,
        "job": attempt.job,
        "turn": attempt.restarts,
        "host": socket.gethostname(),
        "process": os.getpid(),
    }
    with ExitStack() as stack:
        with _exclusive(folder, attempt):
            stack.enter_context(_locked_record(new_file, record))
            os.replace(new_file, folder / NAME)
        yield Lease(folder, token)


@contextmanager
def _locked_record(path: Path, content: dict[str, Any]) -> Iterator[None]:
    """Write a record to a new file, and keep the file locked within the context.

    Raises UserError, and leaves no file, where it cannot be written.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
            _try_lock(file)
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            sentence = f"--run-dir: cannot write in {path.parent}: {error.strerror}"
            raise UserError(sentence) from None
        yield


@contextmanager
def _exclusive(folder: Path, attempt: Attempt) -> Iterator[None]:
    """Keep other processes from taking the lease within the context.

    Raises UserError where `attempt` may not take it.
    """
    while True:
        with _open(folder / NAME) as file:
            lock = _try_lock(file)
            if os.fstat(file.fileno()).st_ino != (folder / NAME).stat().st_ino:
                continue  # it has been replaced since it was opened
            file.seek(0)
            _check_may_take(folder, attempt, _read_record(file), lock)
            yield
            return


def _open(path: Path) -> TextIOWrapper:
    """Open the record, made empty where there is none. Raises UserError."""
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--run-dir: {path} cannot be opened: {error.strerror}") from None


def _check_may_take(folder: Path, attempt: Attempt, record: dict[str, Any], lock: Lock) -> None:
    """Raise UserError where the lease is a newer attempt's, or another run's that is alive."""
    holder = _attempt_of(record)
    where = f"process {record.get('process')} on {record.get('host')}"
    if holder.follows(attempt) and lock is not Lock.OURS:
        raise UserError(
            f"--run-dir: a newer start of this job ({where}) has taken {folder} over; if it is "
            f"gone, remove {folder / NAME}"
        )
    if lock is Lock.THEIRS and not attempt.follows(holder):
        raise UserError(
            f"--run-dir: another process is training in {folder} ({where}); "
            "wait for it, stop it, or choose another folder"
        )


def _attempt_of(record: dict[str, Any]) -> Attempt:
    """Return the attempt that a record names; one without a job where it names none."""
    try:
        return Attempt(str(record.get("job", "")), tuple(map(int, record.get("turn", ()))))
    except (TypeError, ValueError, OverflowError):
        return Attempt("", ())


class Lock(Enum):
    """The process that has a file's lock."""

    OURS = 1
    THEIRS = 2
    NOBODYS = 3
    """No process, on a file system without locks: the record alone decides there."""


def _try_lock(file: TextIOWrapper) -> Lock:
    """Lock a file until it is closed, if no other process has; return whose the lock is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.THEIRS
    except OSError:
        return Lock.NOBODYS
    return Lock.OURS


def _read_record(file: TextIOWrapper) -> dict[str, Any]:
    """Return the record in an open file; an empty one where there is none or not all of it."""
    try:
        content = parse_json(file.read())
    except ValueError:  # new, or cut off by a full disk
        return {}
    return content if isinstance(content, dict) else {}
