"""A stack of transformer layers, and how one of them is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.config import TransformerConfig
from model.embedding import Positions
from model.norm import make_norm
from model.recompute import Recompute, recomputed


def make_layers(
    config: TransformerConfig, count: int, make: Callable[[], nn.Module]
) -> nn.ModuleList:
    """`count` layers, or one layer that many times; a shared layer has the first one's name."""
    if config.share_layers:
        return nn.ModuleList([make()] * count)
    return nn.ModuleList([make() for _ in range(count)])


class Stack(nn.Module):
    """An input projection, positions, layers, a final norm."""

    def __init__(self, input_size: int, config: TransformerConfig, layers: nn.ModuleList) -> None:
        super().__init__()
        self.config = config
        self.input_projection = nn.Linear(input_size, config.d_model)
        self.positions = Positions(config)
        self.layers = layers
        self.final_norm = make_norm(config) if config.use_final_norm else nn.Identity()


def run_layer(layer: nn.Module, *arguments: Any, recompute: Recompute, **options: Any) -> Tensor:
    """One layer, of which the backward pass computes again what `recompute` says."""
    if recompute != "none" and torch.is_grad_enabled():
        selective = recompute == "selective"
        answer: Tensor = recomputed(layer, *arguments, selective=selective, **options)
    else:
        answer = layer(*arguments, **options)
    return answer
