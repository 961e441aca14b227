"""Outputs: what is forecast (a point, quantiles or a Student-t distribution), and its loss.

An output defines how many numbers the network's head returns per point (`size`), scales them from
instance-normalised to the data's units (`scaled`), and computes the loss and the point forecast of
the result. Shapes: raw and scaled [B, H, C, size]; target [B, H, C].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import ModelConfig
from model.constants import constant


class Output(Protocol):
    """What is forecast for each point, and how it is scored."""

    size: int
    """Number of numbers per point."""

    def scaled(self, raw: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return the head's numbers in the data's units; mean and deviation [B, 1, C]."""

    def loss(self, scaled: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each point, [B, H, C]."""

    def point(self, scaled: Tensor) -> Tensor:
        """Return the point forecast, [B, H, C]."""


class PointOutput:
    """A point forecast, scored by squared, absolute or Huber error (Huber 1964)."""

    size = 1

    def __init__(self, loss: str, delta: float) -> None:
        self._loss, self._delta = loss, delta

    def scaled(self, raw: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        return raw * deviation.unsqueeze(-1) + mean.unsqueeze(-1)

    def loss(self, scaled: Tensor, target: Tensor) -> Tensor:
        error = self.point(scaled) - target
        if self._loss == "mse":
            return error.square()
        if self._loss == "mae":
            return error.abs()
        zero = torch.zeros_like(error)
        return F.huber_loss(error, zero, reduction="none", delta=self._delta)

    def point(self, scaled: Tensor) -> Tensor:
        return scaled.squeeze(-1)


class QuantileOutput:
    """Quantiles that cannot cross, scored by the pinball loss (Koenker & Bassett 1978).

    The quantile nearest the median is free; each further one adds a positive step.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = tuple(levels)
        self.size = len(self.levels)
        self.middle = min(range(self.size), key=lambda i: abs(self.levels[i] - 0.5))

    def scaled(self, raw: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        steps = F.softplus(raw)
        middle = raw[..., self.middle : self.middle + 1]
        above = middle + steps[..., self.middle + 1 :].cumsum(-1)
        below = middle - steps[..., : self.middle].flip(-1).cumsum(-1).flip(-1)
        quantiles = torch.cat([below, middle, above], dim=-1)
        return quantiles * deviation.unsqueeze(-1) + mean.unsqueeze(-1)

    def loss(self, scaled: Tensor, target: Tensor) -> Tensor:
        error = target.unsqueeze(-1) - scaled
        level = constant(self.levels, scaled.dtype, scaled)
        return torch.maximum(level * error, (level - 1) * error).mean(-1)

    def point(self, scaled: Tensor) -> Tensor:
        return scaled[..., self.middle]


class StudentTOutput:
    """A Student-t distribution, scored by the negative log-likelihood.

    Its numbers are location, scale and degrees of freedom, which are above 2.
    """

    size = 3

    def scaled(self, raw: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        location, scale, freedom = raw.unbind(-1)
        location = location * deviation + mean
        scale = (F.softplus(scale) + 1e-4) * deviation
        return torch.stack([location, scale, F.softplus(freedom) + 2.0], dim=-1)

    def loss(self, scaled: Tensor, target: Tensor) -> Tensor:
        location, scale, freedom = scaled.unbind(-1)
        half = (freedom + 1) / 2
        return (
            torch.lgamma(freedom / 2)
            - torch.lgamma(half)
            + 0.5 * (freedom * math.pi).log()
            + scale.log()
            + half * torch.log1p(((target - location) / scale).square() / freedom)
        )

    def point(self, scaled: Tensor) -> Tensor:
        return scaled[..., 0]


def make_output(config: ModelConfig) -> Output:
    """Return the output that the loss of `config` scores."""
    if config.loss == "quantile":
        return QuantileOutput(config.quantiles)
    if config.loss == "student_t":
        return StudentTOutput()
    return PointOutput(config.loss, config.huber_delta)
