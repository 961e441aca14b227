"""What this machine has: memory, disk and network. Only the disk takes time."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from model.sentences import first_line
from trainer.files import nearest_existing

GIB = 2**30


def memory_limit(root: Path = Path("/")) -> float:
    """Return the bytes that this process may use: the machine's, swap included, or a container's.

    A control group limits what a container or a batch job may use. `root` is the machine's root.
    """
    limits = [float(psutil.virtual_memory().total + psutil.swap_memory().total)]
    groups = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base = groups / controllers
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            here = base / path.lstrip("/")
            for folder in (here, *(p for p in here.parents if p.is_relative_to(base))):
                limits += [float(text) for text in _lines(folder / file) if text.isdigit()]
    return min(limits)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def processors() -> int:
    """Return the number of processors that this process may use: a scheduler may allow it few."""
    return len(os.sched_getaffinity(0))


def threads(local_world: int) -> int:
    """Return how many threads one of `local_world` ranks on this machine should compute with.

    A launcher that binds ranks to processors has divided them already.
    """
    return min(processors(), max(1, (os.cpu_count() or 1) // local_world))


def unusable_gpus(devices: Path = Path("/dev")) -> str | None:
    """Return why torch cannot use the GPUs that this machine has; None where it can, or has none.

    GPUs that CUDA_VISIBLE_DEVICES hides are not counted.
    """
    import torch

    found = any(devices.glob("nvidia[0-9]*"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    if not found or hidden or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build for CPUs"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return first_line(error)
    return "torch sees none of them"


SHARED_MEMORY = 64 * 2**20
"""Bytes of /dev/shm that NCCL needs for each rank of a machine."""

LOCKED_MEMORY = 2**30
"""Bytes that a process must be able to lock in memory for InfiniBand."""


def too_low(tasks: int, world: int, *, on_gpus: bool) -> str | None:
    """Return which of the system's limits is too low for `tasks` ranks here of `world`, if any.

    Shared and locked memory are NCCL's, so they count where ranks train on GPUs.
    """
    sockets = 256 + 2 * world  # gloo connects each rank with each, twice
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < sockets:
        return f"{files} files may be open (ulimit -n), and {world} ranks need {sockets}"
    if not on_gpus:
        return None
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    has_infiniband = any(Path("/sys/class/infiniband").glob("*"))
    if has_infiniband and locked != resource.RLIM_INFINITY and locked < LOCKED_MEMORY:
        return (
            f"{locked // 1024} KiB may be locked in memory (ulimit -l), and InfiniBand needs it "
            "unlimited"
        )
    shared = Path("/", "dev", "shm")
    if tasks > 1 and shared.is_dir():
        free, needed = shutil.disk_usage(shared).free, tasks * SHARED_MEMORY
        if free < needed:
            return (
                f"{free // 2**20} MiB are free in /dev/shm, and NCCL needs {needed // 2**20} for "
                f"{tasks} ranks (in a container: --ipc host)"
            )
    return None


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk where `folder` lies or would be made."""
    return shutil.disk_usage(nearest_existing(folder)).free


def write_rate(folder: Path, size: int = 64 * 2**20) -> float:
    """Return the bytes a second at which a file of `size` bytes is written and synced.

    Raises OSError where the folder cannot be written.
    """
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=nearest_existing(folder)) as file:
        began = time.perf_counter()
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return size / (time.perf_counter() - began)


def interfaces() -> dict[str, str]:
    """Return each network interface's state, speed and addresses, in words."""
    addresses = psutil.net_if_addrs()
    found = {}
    for name, state in sorted(psutil.net_if_stats().items()):
        words = ["up" if state.isup else "down"]
        words += [f"{state.speed / 1000:g} Gbit/s"] if state.speed else []
        words += [a.address for a in addresses.get(name, []) if a.family != psutil.AF_LINK]
        found[name] = ", ".join(words)
    return found


def result_of(action: Callable[[], str]) -> str:
    """Return what an action returns, or why it cannot."""
    try:
        return action()
    except Exception as error:  # a report says what is broken, whatever that is
        return f"no: {type(error).__name__}: {first_line(error)}"
