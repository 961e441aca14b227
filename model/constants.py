"""Small tensors of constants, copied to a device once."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from model.tracing import is_plain, is_traced


def constant(values: tuple[float, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return the values [len(values)] on the device of `like`, which nobody may change.

    They are copied in the first call alone: a copy from a list waits for the device.
    """
    if is_traced() or not is_plain(like):
        return torch.tensor(values, dtype=dtype, device=like.device)
    return _kept(values, dtype, like.device)


@lru_cache(maxsize=256)
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
