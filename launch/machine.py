"""What this machine has: read, not guessed, and slow to nothing but the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GIB = 2**30


def memory() -> dict[str, int]:
    """Bytes of main memory, `total` and `available`."""
    facts = {}
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        name, _, amount = line.partition(":")
        facts[name] = int(amount.split()[0]) * 1024
    return {"total": facts["MemTotal"], "available": facts["MemAvailable"]}


def existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(existing(folder)).free


def write_rate(folder: Path, size: int = 64 * 2**20) -> float:
    """Bytes a second that a file of `size` bytes is written and synced with.

    Raises OSError where the folder cannot be written.
    """
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=existing(folder)) as file:
        began = time.perf_counter()
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return size / (time.perf_counter() - began)


def interfaces() -> dict[str, str]:
    """Network interfaces and their state and speed."""
    found = {}
    for folder in sorted(Path("/sys/class/net").iterdir()):
        state = _line(folder / "operstate") or "unknown"
        speed = _line(folder / "speed")
        known = speed is not None and speed.isdigit() and speed != "0"
        found[folder.name] = f"{state}, {int(speed or 0) / 1000:g} Gbit/s" if known else state
    return found


def _line(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:  # some drivers answer with an error
        return None


def result_of(action: Callable[[], str]) -> str:
    """What an action tells, or why it cannot."""
    try:
        return action()
    except Exception as error:  # a report says what is broken, whatever that is
        first = (str(error).splitlines() or [""])[0]
        return f"no: {type(error).__name__}: {first}"
