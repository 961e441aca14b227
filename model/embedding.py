"""From points to tokens: patches and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def sinusoidal(start: int, stop: int, d_model: int, device: torch.device) -> Tensor:
    """Positions start..stop-1 as fp32 [stop - start, d_model] (Vaswani et al. 2017, 3.5)."""
    position = torch.arange(start, stop, dtype=torch.float32, device=device).unsqueeze(1)
    even = torch.arange(0, d_model, 2, dtype=torch.float32, device=device)
    angle = position * torch.exp(even * (-math.log(10_000.0) / d_model))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :d_model]


def to_patches(x: Tensor, patch_length: int, *, align: str) -> Tensor:
    """[B, T, C] -> [B, patches, patch_length * C].

    Where the length is no multiple, zeros fill the oldest patch (align="end", for a context) or
    the furthest one (align="start", for a future).
    """
    missing = -x.shape[1] % patch_length
    x = F.pad(x, (0, 0, missing, 0) if align == "end" else (0, 0, 0, missing))
    return x.unflatten(1, (-1, patch_length)).flatten(2)
