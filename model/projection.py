"""Projections between patches of numbers and tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.network_config import ModelConfig


class ResidualProjection(nn.Module):
    """A linear map, to which a network of one hidden layer is added (Das et al. 2024, TimesFM)."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.skip = nn.Linear(inputs, outputs)
        self.hidden = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., outputs] of x [..., inputs]."""
        return self.skip(x) + self.output(F.silu(self.hidden(x)))


def make_projection(config: ModelConfig, inputs: int, outputs: int) -> nn.Module:
    """Return the projection that `config.patch_projection` names; its hidden width is 2 d_model."""
    if config.patch_projection == "residual":
        return ResidualProjection(inputs, outputs, 2 * config.d_model)
    return nn.Linear(inputs, outputs)
