"""Who may write in a run folder: one run at a time, and of a job only its newest incarnation.

A job that a scheduler starts again may meet its own old processes, still alive on a node that the
scheduler has lost. The newer incarnation takes the folder over, and the older one, which looks
before each commit, can no longer commit. Imports no torch.
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

NAME = ".owner"


@dataclass(frozen=True)
class Attempt:
    """One start of a job; starts of one job follow each other by their turns."""

    job: str
    """Empty outside schedulers, where no start follows another."""
    restarts: tuple[int, ...]

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Attempt:
        """Of Slurm (job or job array, element, restart count) and of torchrun (run, restart)."""
        slurm = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID", "")
        elastic = environment.get("TORCHELASTIC_RUN_ID", "none")
        names = [f"slurm {slurm}"] if slurm else []
        names += [f"torchrun {elastic}"] if elastic != "none" else []
        restarts = ("SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
        return cls(", ".join(names), tuple(_whole(environment.get(name)) for name in restarts))

    def follows(self, other: Attempt) -> bool:
        return bool(self.job) and self.job == other.job and self.restarts > other.restarts


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


class Lease:
    """The right to write in a folder."""

    def __init__(self, folder: Path, token: str) -> None:
        self._file, self._token = folder / NAME, token

    def is_held(self) -> bool:
        """Whether nobody has taken the folder over."""
        try:
            return bool(json.loads(self._file.read_text(encoding="utf-8"))["token"] == self._token)
        except (OSError, ValueError, KeyError):
            return False


def is_restart(folder: Path, attempt: Attempt) -> bool:
    """Whether the job of `attempt` has begun the run in `folder` itself, perhaps earlier."""
    try:
        held = _held(json.loads((folder / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return False
    return bool(held.job) and held.job == attempt.job and held.restarts <= attempt.restarts


def refuse_if_leased(folder: Path, attempt: Attempt) -> None:
    """Raises UserError where another run is going on in `folder`."""
    if (folder / NAME).exists():
        with _taken(folder, attempt):
            pass


@contextmanager
def acquire(folder: Path, attempt: Attempt) -> Iterator[Lease]:
    """Hold `folder` against other runs and against older incarnations of this one.

    Raises UserError where another run holds it, or where it cannot be written.
    """
    token = uuid.uuid4().hex
    beside = folder / f"{NAME}.{token}"
    record = {
        "token": token,
        "job": attempt.job,
        "turn": attempt.restarts,
        "host": socket.gethostname(),
        "process": os.getpid(),
    }
    with ExitStack() as stack:
        with _taken(folder, attempt):
            stack.enter_context(_record(beside, record))
            os.replace(beside, folder / NAME)
        yield Lease(folder, token)


@contextmanager
def _record(path: Path, content: dict[str, Any]) -> Iterator[None]:
    """A locked file, as long as this lasts; none where it cannot be written whole."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
            _lock(file)
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            sentence = f"--run-dir: cannot write in {path.parent}: {error.strerror}"
            raise UserError(sentence) from None
        yield


@contextmanager
def _taken(folder: Path, attempt: Attempt) -> Iterator[None]:
    """Within, nobody else takes the folder."""
    while True:
        with _opened(folder / NAME) as file:
            lock = _lock(file)
            if os.fstat(file.fileno()).st_ino != (folder / NAME).stat().st_ino:
                continue  # it has been replaced since it was opened
            file.seek(0)
            _refuse(folder, attempt, _read(file), lock)
            yield
            return


def _opened(path: Path) -> TextIOWrapper:
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--run-dir: {path} cannot be opened: {error.strerror}") from None


def _refuse(folder: Path, attempt: Attempt, holder: dict[str, Any], lock: Lock) -> None:
    held = _held(holder)
    where = f"process {holder.get('process')} on {holder.get('host')}"
    if held.follows(attempt) and lock is not Lock.OURS:
        raise UserError(
            f"--run-dir: a newer start of this job ({where}) has taken {folder} over; if it is "
            f"gone, remove {folder / NAME}"
        )
    if lock is Lock.THEIRS and not attempt.follows(held):
        raise UserError(
            f"--run-dir: another process is training in {folder} ({where}); "
            "wait for it, stop it, or choose another folder"
        )


def _held(holder: dict[str, Any]) -> Attempt:
    try:
        return Attempt(str(holder.get("job", "")), tuple(map(int, holder.get("turn", ()))))
    except (TypeError, ValueError):
        return Attempt("", ())


class Lock(Enum):
    """Whose a file's lock is."""

    OURS = 1
    THEIRS = 2
    NOBODYS = 3
    """A file system without locks: what the file says still fences."""


def _lock(file: TextIOWrapper) -> Lock:
    """Until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.THEIRS
    except OSError:
        return Lock.NOBODYS
    return Lock.OURS


def _read(file: TextIOWrapper) -> dict[str, Any]:
    try:
        content = json.load(file)
    except ValueError:  # new, or cut off by a full disk
        return {}
    return content if isinstance(content, dict) else {}
