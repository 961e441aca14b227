"""Norms over the last dimension."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TransformerConfig
from model.init import Init

EPSILON = 1e-5


class RMSNorm(nn.Module):
    """x / rms(x) * gain (Zhang & Sennrich 2019): LayerNorm without the mean."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model))

    def initial(self) -> Mapping[str, Init]:
        return {"weight": Init(mean=1.0)}

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPSILON)


class AdaptiveNorm(nn.Module):
    """A norm that learns, per channel, how much of the mean to remove.

    y = gain * c / sqrt(mean(c^2) + eps) with c = x - removed * mean(x): RMSNorm where `removed` is
    0, LayerNorm (without a shift) where it is 1; it starts in between. A condition
    [..., condition_size] adds a gain and a shift, zero at first (Peebles & Xie 2023, adaLN-Zero).
    """

    def __init__(self, d_model: int, condition_size: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model))
        self.removed = nn.Parameter(torch.empty(d_model))
        self.condition = (
            nn.Parameter(torch.empty(2, d_model, condition_size)) if condition_size else None
        )

    def initial(self) -> Mapping[str, Init]:
        return {"weight": Init(mean=1.0), "removed": Init(mean=0.5), "condition": Init()}

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        centred = x - self.removed * x.mean(-1, keepdim=True)
        y = F.rms_norm(centred, self.weight.shape, self.weight, EPSILON)
        if condition is None:
            return y
        if self.condition is None:
            raise ValueError("a condition was given, but condition_size is 0")
        gain, shift = F.linear(condition, self.condition.flatten(0, 1)).chunk(2, dim=-1)
        return y * (1 + gain) + shift


def make_norm(config: TransformerConfig) -> nn.Module:
    kind = config.use_adaptive_ln
    if callable(kind):
        norm = kind(config.d_model)
        if not isinstance(norm, nn.Module):
            raise TypeError(f"use_adaptive_ln: {kind} made a {type(norm).__name__}, not a module")
        return norm
    if kind == "rms":
        return RMSNorm(config.d_model)
    if kind == "adaptive":
        return AdaptiveNorm(config.d_model)
    return nn.LayerNorm(config.d_model, eps=EPSILON)
