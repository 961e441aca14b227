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
"""Functions of torch.distributed that do not return before other ranks have come."""


@dataclass(frozen=True)
class ThreadState:
    """What a thread is doing."""

    words: str
    awaited: tuple[int, ...] = ()
    """Ranks of the collective that it waits in; () outside collectives."""

    @property
    def waits(self) -> bool:
        return bool(self.awaited)


def main_thread() -> FrameType | None:
    """Return the main thread's innermost frame."""
    return sys._current_frames().get(threading.main_thread().ident or 0)


def thread_state(frame: FrameType | None) -> ThreadState:
    """Describe a thread by its innermost frame, from outside, while it runs or waits."""
    here = frame
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.name == "distributed_c10d.py" and frame.f_code.co_name in COLLECTIVES:
            return _collective(frame)
        frame = frame.f_back
    if here is None:
        return ThreadState("has ended")
    return ThreadState(
        f"is in {here.f_code.co_name}, {Path(here.f_code.co_filename).name}:{here.f_lineno}"
    )


def _collective(frame: FrameType) -> ThreadState:
    name, held = frame.f_code.co_name, frame.f_locals
    group = held.get("group")
    ranks = tuple(dist.get_process_group_ranks(group or dist.group.WORLD))
    for key in ("dst", "src"):
        if name in ("send", "recv") and isinstance(held.get(key), int):
            return ThreadState(
                f"{name} {'to' if key == 'dst' else 'from'} rank {held[key]}{_size(held)}",
                (held[key],),
            )
    return ThreadState(f"{name}{_size(held)}", ranks)


def _size(held: dict[str, Any]) -> str:
    for key in ("tensor", "output", "input", "output_tensor"):
        if isinstance(held.get(key), Tensor):
            return f" of {held[key].numel():,} elements"
    return ""
