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


def make_norm(config: TransformerConfig) -> nn.Module:
    if config.use_adaptive_ln == "rms":
        return RMSNorm(config.d_model)
    return nn.LayerNorm(config.d_model, eps=EPSILON)
