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
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from model.errors import UserError

NAME = ".owner"


@dataclass(frozen=True)
class Incarnation:
    """One start of a job; starts of one job follow each other by their turns."""

    job: str
    """Empty outside schedulers, where no start follows another."""
    turn: tuple[int, ...]

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Incarnation:
        """Of Slurm (job or job array, element, restart count) and of torchrun (run, restart)."""
        slurm = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID", "")
        elastic = environment.get("TORCHELASTIC_RUN_ID", "none")
        names = [f"slurm {slurm}"] if slurm else []
        names += [f"torchrun {elastic}"] if elastic != "none" else []
        turns = ("SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
        return cls(", ".join(names), tuple(int(environment.get(name, "0")) for name in turns))

    def follows(self, other: Incarnation) -> bool:
        return bool(self.job) and self.job == other.job and self.turn > other.turn


class Ownership:
    """The right to write in a folder."""

    def __init__(self, folder: Path, token: str) -> None:
        self._file, self._token = folder / NAME, token

    def lasts(self) -> bool:
        """Whether nobody has taken the folder over."""
        try:
            return bool(json.loads(self._file.read_text(encoding="utf-8"))["token"] == self._token)
        except (OSError, ValueError, KeyError):
            return False


def refuse_if_taken(folder: Path, incarnation: Incarnation) -> None:
    """Raises UserError where another run is going on in `folder`."""
    if (folder / NAME).exists():
        with _taken(folder, incarnation):
            pass


@contextmanager
def own(folder: Path, incarnation: Incarnation) -> Iterator[Ownership]:
    """Hold `folder` against other runs and against older incarnations of this one.

    Raises UserError where another run holds it, or a newer incarnation has held it.
    """
    token = uuid.uuid4().hex
    beside = folder / f"{NAME}.{token}"
    record = {"token": token, "job": incarnation.job, "turn": incarnation.turn,
              "host": socket.gethostname(), "process": os.getpid()}  # fmt: skip
    with ExitStack() as stack:
        with _taken(folder, incarnation):
            file = stack.enter_context(open(beside, "w", encoding="utf-8"))
            _lock(file)
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, folder / NAME)
        yield Ownership(folder, token)


@contextmanager
def _taken(folder: Path, incarnation: Incarnation) -> Iterator[None]:
    """Within, nobody else takes the folder."""
    while True:
        with open(folder / NAME, "a+", encoding="utf-8") as file:
            is_free = _lock(file)
            if os.fstat(file.fileno()).st_ino != (folder / NAME).stat().st_ino:
                continue  # it has been replaced since it was opened
            file.seek(0)
            _refuse(folder, incarnation, _read(file), is_free=is_free)
            yield
            return


def _refuse(
    folder: Path, incarnation: Incarnation, holder: dict[str, Any], *, is_free: bool
) -> None:
    held = Incarnation(str(holder.get("job", "")), tuple(holder.get("turn", ())))
    where = f"process {holder.get('process')} on {holder.get('host')}"
    if held.follows(incarnation):
        raise UserError(f"--run-dir: a newer start of this job ({where}) has taken {folder} over")
    if not is_free and not incarnation.follows(held):
        raise UserError(
            f"--run-dir: another process is training in {folder} ({where}); "
            "wait for it, stop it, or choose another folder"
        )


def _lock(file: TextIOWrapper) -> bool:
    """Until the file is closed; False where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what the file says still fences
        return True
    return True


def _read(file: TextIOWrapper) -> dict[str, Any]:
    try:
        content = json.load(file)
    except ValueError:  # new, or cut off by a full disk
        return {}
    return content if isinstance(content, dict) else {}
