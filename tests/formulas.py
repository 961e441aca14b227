"""Plain formulas that tests compare kernels with."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v in fp64, zeros for a query without visible keys."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1).double(), v.repeat_interleave(group, 1).double()
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    if is_causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask
    scores = q.double() @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return weights.nan_to_num(0.0) @ v


def normalised(x: Tensor, gain: Tensor, removed: Tensor | None) -> Tensor:
    """Return gain * c / sqrt(mean(c^2) + 1e-5) with c = x - removed * mean(x)."""
    centred = x if removed is None else x - removed * x.mean(-1, keepdim=True)
    return gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
