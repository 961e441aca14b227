"""Copies of a state in the host's memory, written to disk while training changes the state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.checkpoint.partitions import Partition


class Staging:
    """Its memory, as much as this rank's part of a checkpoint, is kept from one copy to the next:
    to make it anew, pinned for a GPU, costs time at each save."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._held: dict[str, Tensor] = {}

    def copy(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Good until the next call."""
        copies = {}
        for name, tensor in state.items():
            source = tensor.data_1d if isinstance(tensor, Partition) else tensor.detach()
            into = self._memory(name, source)
            into.copy_(source, non_blocking=True)
            copies[name] = tensor.holding(into) if isinstance(tensor, Partition) else into
        if self._pinned:
            torch.cuda.synchronize()
        return copies

    def _memory(self, name: str, like: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is None or held.shape != like.shape or held.dtype != like.dtype:
            held = torch.empty(like.shape, dtype=like.dtype, pin_memory=self._pinned)
            self._held[name] = held
        return held
