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
    started: str
    """When, in ticks since the machine's start: numbers of processes come again within minutes."""

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

    def has_ended(self) -> bool:
        """Whether it has ended, be it that its parent has not asked for its exit code yet."""
        try:
            state, started = _state(self.pid)
        except OSError:
            return True
        return state == "Z" or started != self.started

    def words(self) -> str:
        """Return what it is, for a message."""
        return f"process {self.pid}, {self.command}"


def running() -> list[Process]:
    """Return the processes of this machine that may be looked at."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (folder / "environ").read_bytes().replace(b"\0", b"\n").decode()
            _, started = _state(int(folder.name))
        except (OSError, UnicodeDecodeError):
            continue
        found.append(Process(int(folder.name), command, environment, started))
    return found


def _state(pid: int) -> tuple[str, str]:
    """Return a process's state, and when it was started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


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
