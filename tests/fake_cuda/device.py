"""Builds and loads the CUDA device that computes nothing, before torch is imported."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")


def build(library: Path) -> None:
    """Compile the device into a shared library: about ten seconds."""
    torch = _torch()
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch / 'include'}"]
    command += [str(SOURCE), "-o", str(library), f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)


def install(library: Path) -> None:
    """Make torch believe in the device; torch asks for it once, when it is imported."""
    if "torch" in sys.modules:
        raise RuntimeError("torch has looked for a CUDA device already")
    ctypes.CDLL(str(_torch() / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library)).install()


def _torch() -> Path:
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
