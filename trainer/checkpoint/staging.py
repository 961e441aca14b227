"""Copies of a state in the host's memory, written to disk while training changes the state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.checkpoint.partitions import Partition


class Staging:
    """Memory for copies of this rank's part of a checkpoint.

    It is kept from one copy to the next: allocating it anew, pinned for a GPU, takes time at each
    save.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}

    def copy(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a copy of `state`, valid until the next call."""
        copies = {}
        for name, tensor in state.items():
            source = tensor.data_1d if isinstance(tensor, Partition) else tensor.detach()
            buffer = self._buffer(name, source)
            buffer.copy_(source, non_blocking=True)
            copies[name] = tensor.with_data(buffer) if isinstance(tensor, Partition) else buffer
        if self._pinned:
            torch.cuda.synchronize()
        return copies

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        """Return host memory of the shape and dtype of `like`."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=self._pinned)
            self._buffers[name] = buffer
        return buffer
