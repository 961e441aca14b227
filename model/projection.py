"""Projections between patches of numbers and tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from model.init import Init
from model.network_config import ModelConfig


class ResidualProjection(nn.Module):
    """A linear map, to which a network of one hidden layer is added (Das et al. 2024, TimesFM)."""

    def __init__(
        self, inputs: int, outputs: int, hidden: int, last: type[nn.Linear] = nn.Linear
    ) -> None:
        super().__init__()
        self.skip = last(inputs, outputs)
        self.hidden = nn.Linear(inputs, hidden)
        self.output = last(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., outputs] of x [..., inputs]."""
        return self.skip(x) + self.output(F.silu(self.hidden(x)))


class SmallLinear(nn.Linear):
    """A linear map that starts a tenth as large as others.

    From zero the layers before it would have no gradient in the first step.
    """

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"weight": Init(std=0.1 * self.in_features**-0.5), "bias": Init()}


def make_projection(
    config: ModelConfig, inputs: int, outputs: int, *, is_small: bool = False
) -> nn.Module:
    """Return the projection that `config.patch_projection` names; its hidden width is 2 d_model.

    With `is_small` it starts a tenth as large.
    """
    linear = SmallLinear if is_small else nn.Linear
    if config.patch_projection == "residual":
        return ResidualProjection(inputs, outputs, 2 * config.d_model, linear)
    return linear(inputs, outputs)
