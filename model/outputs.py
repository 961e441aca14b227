"""Outputs: what is forecast (a point, quantiles or a Student-t distribution), and its loss.

An output defines how many numbers the network's head returns per point (`size`), makes a forecast
of them (`shaped`), brings it from the network's units to the data's (`scaled`), and computes its
loss and its point forecast in either. Shapes: numbers [B, H, C, size]; target [B, H, C].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model.constants import constant
from model.network_config import ModelConfig
from model.window_scale import WindowScale

APART = 0.25
"""Deviation, in the network's units, of the normal distribution that sorted quantiles start as."""


class Output(Protocol):
    """What is forecast for each point, and how it is scored."""

    size: int
    """Number of numbers per point."""
    levels: tuple[float, ...]
    """Levels of the quantiles that are forecast; () where none are."""

    def shaped(self, raw: Tensor) -> Tensor:
        """Return a forecast of the head's numbers, in their units."""

    def scaled(self, shaped: Tensor, scale: WindowScale) -> Tensor:
        """Return a forecast in other units, as of the data, from which `scale` leads to its own."""

    def loss(self, shaped: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each point, [B, H, C]."""

    def point(self, shaped: Tensor) -> Tensor:
        """Return the point forecast, [B, H, C]."""

    def quantiles(self, shaped: Tensor) -> Tensor:
        """Return the quantiles of `levels`, [B, H, C, len(levels)]."""


class PointOutput:
    """A point forecast, scored by squared, absolute or Huber error (Huber 1964)."""

    size = 1
    levels: tuple[float, ...] = ()

    def __init__(self, loss: str, delta: float) -> None:
        self._loss, self._delta = loss, delta

    def shaped(self, raw: Tensor) -> Tensor:
        return raw

    def scaled(self, shaped: Tensor, scale: WindowScale) -> Tensor:
        return scale.left(shaped)

    def loss(self, shaped: Tensor, target: Tensor) -> Tensor:
        error = self.point(shaped) - target
        if self._loss == "mse":
            return error.square()
        if self._loss == "mae":
            return error.abs()
        zero = torch.zeros_like(error)
        return F.huber_loss(error, zero, reduction="none", delta=self._delta)

    def point(self, shaped: Tensor) -> Tensor:
        return shaped.squeeze(-1)

    def quantiles(self, shaped: Tensor) -> Tensor:
        return shaped[..., :0]


class QuantileOutput:
    """Quantiles that cannot cross, scored by the pinball loss (Koenker & Bassett 1978).

    The quantile nearest the median is free; each further one adds a positive step. Or they are the
    head's numbers, sorted (Chernozhukov et al. 2010).
    """

    def __init__(self, levels: Sequence[float], *, are_sorted: bool = False) -> None:
        self.levels, self._are_sorted = tuple(levels), are_sorted
        self._apart = tuple(APART * NormalDist().inv_cdf(level) for level in levels)
        self.size = len(self.levels)
        self.middle = min(range(self.size), key=lambda i: abs(self.levels[i] - 0.5))

    def shaped(self, raw: Tensor) -> Tensor:
        if self._are_sorted:
            # Apart from the start: which of equal numbers gets which gradient would be chance.
            numbers = raw + constant(self._apart, raw.dtype, raw)
            if torch.compiler.is_exporting():  # ONNX has no stable sort
                return numbers.topk(numbers.shape[-1], largest=False).values
            return numbers.sort(stable=True, dim=-1).values
        steps = F.softplus(raw)
        middle = raw[..., self.middle : self.middle + 1]
        above = middle + steps[..., self.middle + 1 :].cumsum(-1)
        below = middle - steps[..., : self.middle].flip(-1).cumsum(-1).flip(-1)
        return torch.cat([below, middle, above], dim=-1)

    def scaled(self, shaped: Tensor, scale: WindowScale) -> Tensor:
        return scale.left(shaped)

    def loss(self, shaped: Tensor, target: Tensor) -> Tensor:
        error = target.unsqueeze(-1) - shaped
        level = constant(self.levels, shaped.dtype, shaped)
        return torch.maximum(level * error, (level - 1) * error).mean(-1)

    def point(self, shaped: Tensor) -> Tensor:
        return shaped[..., self.middle]

    def quantiles(self, shaped: Tensor) -> Tensor:
        return shaped


class StudentTOutput:
    """A Student-t distribution, scored by the negative log-likelihood.

    Its numbers are location, scale and degrees of freedom, which are above 2.
    """

    size = 3
    levels: tuple[float, ...] = ()

    def shaped(self, raw: Tensor) -> Tensor:
        location, scale, freedom = raw.unbind(-1)
        scale, freedom = F.softplus(scale) + 1e-4, F.softplus(freedom) + 2.0
        return torch.stack([location, scale, freedom], dim=-1)

    def scaled(self, shaped: Tensor, scale: WindowScale) -> Tensor:
        location, width, freedom = shaped.unbind(-1)
        location = location * scale.deviation + scale.mean
        return torch.stack([location, width * scale.deviation, freedom], dim=-1)

    def loss(self, shaped: Tensor, target: Tensor) -> Tensor:
        location, scale, freedom = shaped.unbind(-1)
        half = (freedom + 1) / 2
        return (
            torch.lgamma(freedom / 2)
            - torch.lgamma(half)
            + 0.5 * (freedom * math.pi).log()
            + scale.log()
            + half * torch.log1p(((target - location) / scale).square() / freedom)
        )

    def point(self, shaped: Tensor) -> Tensor:
        return shaped[..., 0]

    def quantiles(self, shaped: Tensor) -> Tensor:
        return shaped[..., :0]


def make_output(config: ModelConfig) -> Output:
    """Return the output that the loss of `config` scores."""
    if config.loss == "quantile":
        return QuantileOutput(config.quantiles, are_sorted=config.quantile_order == "sorted")
    if config.loss == "student_t":
        return StudentTOutput()
    return PointOutput(config.loss, config.huber_delta)
