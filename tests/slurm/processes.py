"""Processes of this machine, and the namespaces that they are in."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, with its command line and the variables that it was started with."""

    pid: int
    command: str
    environment: str

    @property
    def rank(self) -> int:
        """Its rank in its Slurm step, or -1."""
        match = re.search(r"SLURM_PROCID=(\d+)", self.environment)
        return int(match[1]) if match else -1

    @property
    def node(self) -> str:
        """The node that started it, or nothing."""
        match = re.search(r"SLURMD_NODENAME=(\w+)", self.environment)
        return match[1] if match else ""


def running() -> list[Process]:
    """Return the processes of this machine that may be looked at."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (folder / "environ").read_bytes().replace(b"\0", b"\n").decode()
        except (OSError, UnicodeDecodeError):
            continue
        found.append(Process(int(folder.name), command, environment))
    return found


def has_ended(pid: int) -> bool:
    """Whether a process has ended, be it that its parent has not asked for its exit code yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def mount_namespace(pid: int) -> str | None:
    """Return the namespace of a process's mounts; None where there is no such process."""
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return None


def send(pid: int, number: int) -> None:
    """Send a signal to a process, where there is one."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
