"""`forescale doctor`: what this machine has and which parts work, to paste into a bug report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from launch.cluster_environment import discover
from launch.machine import GIB, free_bytes, interfaces, processors, result_of, write_rate
from trainer.run.environment import commit, versions

if TYPE_CHECKING:
    import torch

NETWORK = ("NCCL_", "GLOO_", "UCX_", "MASTER_", "TORCH_NCCL")
"""Beginnings of the environment variables that steer traffic between ranks."""

LAUNCHERS = ("deepspeed", "torchrun", "mpirun", "srun")


def report() -> None:
    """Print the report, one fact a line."""
    for title, facts in (
        ("machine", _machine()),
        ("versions", _versions()),
        ("devices", _devices()),
        ("attention kernels", _kernels()),
        ("launchers", _launchers()),
        ("network", _network()),
    ):
        print(f"## {title}")
        for name, fact in facts:
            print(f"{name}: {fact}")
        print(flush=True)


def _machine() -> Iterator[tuple[str, str]]:
    memory = psutil.virtual_memory()
    yield "system", platform.platform()
    yield "processors", f"{os.cpu_count()}, of which {processors()} may be used"
    yield "memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    for name, folder in (("here", Path.cwd()), ("/dev/shm", Path("/dev/shm"))):  # noqa: S108
        yield f"disk {name}", result_of(partial(_disk, folder))


def _disk(folder: Path) -> str:
    free, rate = free_bytes(folder) / GIB, write_rate(folder) / 1e6
    return f"{free:.1f} GiB free, {rate:,.0f} MB/s written and synced"


def _versions() -> Iterator[tuple[str, str]]:
    yield from ((name, version or "not installed") for name, version in versions().items())
    yield "commit", commit() or "not a git checkout"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    yield "torch is built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    if not torch.cuda.is_available():
        yield "GPUs", "none that torch can use"
    for index in range(torch.cuda.device_count()):
        yield f"GPU {index}", result_of(partial(_gpu, index))
    yield (
        "collectives",
        ", ".join(
            name
            for name in ("gloo", "nccl", "mpi")
            if getattr(torch.distributed, f"is_{name}_available")()
        ),
    )


def _gpu(index: int) -> str:
    import torch

    facts, free = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)[0] / GIB
    return (
        f"{facts.name}, {free:.1f} of {facts.total_memory / GIB:.1f} GiB free, "
        f"compute capability {facts.major}.{facts.minor}"
    )


def _kernels() -> Iterator[tuple[str, str]]:
    """Run each attention kernel, and compare it with the formula in fp64."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        for kind in ("standard", "xformer", "flash"):
            name = f"{kind}, {str(dtype).removeprefix('torch.')}, {device}"
            yield name, result_of(partial(_try, kind, device, dtype))


def _try(kind: str, device: str, dtype: torch.dtype) -> str:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from model.attention_backends import attend, choose_for

    query, key, value = torch.randn(3, 1, 8, 128, 64, device=device, dtype=dtype).unbind(0)
    choice = choose_for(query, key, att_type=kind, is_causal=True)
    answer = attend(choice.kernel, query, key, value, is_causal=True)
    exact = query.double(), key.double(), value.double()
    right = scaled_dot_product_attention(*exact, is_causal=True)
    return f"{choice}, off by {float((answer - right).abs().max()):.0e}"


def _launchers() -> Iterator[tuple[str, str]]:
    started = discover()
    yield "this process", f"rank {started.rank} of {started.world}"
    places = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    for name in LAUNCHERS:
        yield name, shutil.which(name, path=places) or "neither beside Python nor on the PATH"
    yield "mpi4py", result_of(_mpi)
    if shutil.which("srun"):
        yield "srun --mpi", result_of(partial(_first_words, ["srun", "--mpi=list"]))


def _mpi() -> str:
    import mpi4py

    mpi4py.rc.initialize = False  # under srun without PMI it would end this process
    from mpi4py import MPI

    return str(MPI.Get_library_version().splitlines()[0].rstrip("\0, "))


def _first_words(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        return f"fails: {(done.stderr.splitlines() or ['it says nothing'])[0]}"
    return " ".join((done.stdout + done.stderr).split())


def _network() -> Iterator[tuple[str, str]]:
    yield "host", platform.node()
    yield from interfaces().items()
    for name, value in sorted(os.environ.items()):
        if name.startswith(NETWORK):
            yield name, value
