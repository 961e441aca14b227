"""A stack of transformer layers, and how one of them is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.config import TransformerConfig
from model.embedding import Positions
from model.layers import BaseTransformerLayer
from model.norm import make_norm
from model.recompute import Recompute, recomputed


def make_layers(
    config: TransformerConfig, count: int, make: Callable[[], nn.Module]
) -> nn.ModuleList:
    """Return `count` layers, or one layer that many times with `share_layers`.

    A shared layer has the first layer's parameter names.
    """
    if config.share_layers:
        return nn.ModuleList([make()] * count)
    return nn.ModuleList([make() for _ in range(count)])


class Stack(nn.Module):
    """Input projection, positions, layers and final norm of an encoder or decoder."""

    def __init__(
        self, input_projection: nn.Module, config: TransformerConfig, layers: nn.ModuleList
    ) -> None:
        super().__init__()
        self.config = config
        self.input_projection = input_projection
        self.positions = Positions(config)
        self.layers = layers
        self.final_norm = make_norm(config) if config.use_final_norm else nn.Identity()


def run_layer(layer: nn.Module, *arguments: Any, recompute: Recompute, **options: Any) -> Tensor:
    """Run one layer, part of which the backward pass repeats as `recompute` says."""
    if recompute == "none" or not torch.is_grad_enabled():
        return layer(*arguments, **options)
    keeps_last = not (isinstance(layer, BaseTransformerLayer) and layer.ends_with_product)
    return recomputed(
        layer, *arguments, selective=recompute == "selective", keeps_last=keeps_last, **options
    )
