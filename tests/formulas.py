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


def rotated(x: Tensor, start: int, count: int) -> Tensor:
    """Return x [B, T, groups, heads, D] whose first `count` heads are rotated as complex numbers.

    Channel i and i + D/2 of position p turn by p * 10000^(-2i/D) (Su et al. 2021, eq. 34).
    """
    half = x.shape[-1] // 2
    pairs = torch.complex(*x.double().chunk(2, -1))
    positions = torch.arange(start, start + x.shape[1], device=x.device, dtype=torch.float64)
    rates = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = torch.polar(torch.ones_like(rates), positions.unsqueeze(1) * rates)
    turned = pairs * angles[:, None, None]
    turned = torch.cat([turned[..., :count, :], pairs[..., count:, :]], -2)
    return torch.cat([turned.real, turned.imag], -1)
