"""Stack inspection: the collective that a thread waits in, or the line that it is at, in words."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch import Tensor

COLLECTIVES = {
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "reduce",
    "reduce_scatter_tensor",
    "gather",
    "send",
    "recv",
    "batch_isend_irecv",
}
"""Functions of torch.distributed that return only after other ranks have called them, too."""


@dataclass(frozen=True)
class ThreadState:
    """The state of a thread: the collective or the line that it is in."""

    words: str
    """The state in words."""
    awaited: tuple[int, ...] = ()
    """Ranks of the collective that it waits in; () outside collectives."""


def main_thread() -> FrameType | None:
    """Return the main thread's innermost frame."""
    return sys._current_frames().get(threading.main_thread().ident or 0)


def is_in_collective(frame: FrameType | None) -> bool:
    """Return whether the thread with this innermost frame is in a collective."""
    while frame is not None and not _is_collective(frame):
        frame = frame.f_back
    return frame is not None


def _is_collective(frame: FrameType) -> bool:
    """Return whether a frame is that of a collective's function."""
    file = Path(frame.f_code.co_filename)
    return file.name == "distributed_c10d.py" and frame.f_code.co_name in COLLECTIVES


def thread_state(frame: FrameType | None) -> ThreadState:
    """Return the state of a thread by its innermost frame; the thread may be another, running."""
    here = frame
    while frame is not None:
        if _is_collective(frame):
            return _collective(frame)
        frame = frame.f_back
    if here is None:
        return ThreadState("has ended")
    return ThreadState(
        f"is in {here.f_code.co_name}, {Path(here.f_code.co_filename).name}:{here.f_lineno}"
    )


def _collective(frame: FrameType) -> ThreadState:
    """Return the state of a thread that is in a collective, whose function has `frame`."""
    name, variables = frame.f_code.co_name, frame.f_locals
    group = variables.get("group")
    ranks = tuple(dist.get_process_group_ranks(group or dist.group.WORLD))
    size = _size(variables)
    for key, direction in (("dst", "to"), ("src", "from")):
        peer = variables.get(key)
        if name in ("send", "recv") and isinstance(peer, int):
            return ThreadState(f"{name} {direction} rank {peer}{size}", (peer,))
    return ThreadState(f"{name}{size}", ranks)


def _size(variables: dict[str, Any]) -> str:
    """Return the size of a collective's tensor in words, by the local variables of its frame."""
    for key in ("tensor", "output", "input", "output_tensor"):
        if isinstance(variables.get(key), Tensor):
            return f" of {variables[key].numel():,} elements"
    return ""
