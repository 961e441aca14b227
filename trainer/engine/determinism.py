"""Deterministic kernels alone: on a GPU, for runs that are to resume bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WORKSPACES = ":4096:8"
"""Workspaces of cuBLAS with which its products do not depend on the order of streams."""


@contextmanager
def deterministic(*, wanted: bool) -> Iterator[None]:
    """Within, torch takes kernels that give the same bits each time, if `wanted`.

    cuBLAS reads its variable once, so it is set before a process's first product on a GPU. An
    operation without such a kernel raises RuntimeError with its name.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES)
    before = torch.are_deterministic_algorithms_enabled()
    options: Any = torch.utils.deterministic
    filled = options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # nothing reads what nobody has set
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        options.fill_uninitialized_memory = filled
