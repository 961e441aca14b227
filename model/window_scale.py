"""Instance normalisation: each window is scaled by its own context (Kim et al. 2022, RevIN)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowScale:
    """How a window's values enter a network, and how its forecasts come out of it."""

    mean: Tensor
    """Level of each window's channels [B, 1, C], or of each point's [B, T, C]."""
    deviation: Tensor
    """Deviation of each window's channels [B, 1, C]."""
    is_squashed: bool = False
    """Whether the network sees arcsinh of the values, so that outliers weigh less (Ansari et al.
    2025, Chronos-2)."""

    def entered(self, values: Tensor) -> Tensor:
        """Return values [B, T, C] in the network's units."""
        units = (values - self.mean) / self.deviation
        return units.asinh() if self.is_squashed else units

    def left(self, units: Tensor) -> Tensor:
        """Return numbers [B, T, C, n] of the network's units in those of the values."""
        if self.is_squashed:
            units = units.sinh()
        return units * self.deviation.unsqueeze(-1) + self.mean.unsqueeze(-1)


FLOOR = 1e-6
"""Least variance of a window where losses are in units of the data."""

RESOLUTION = 2.0**-22
"""Deviation, as a share of the largest value, that may be nothing but rounding in fp32."""


def from_first_valid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which points of x [B, T, C] are valid, the first of them, and all less that.

    Sums over a large level would lose small changes. Missing points are 0.
    """
    valid = ~x.isnan()
    level = x.gather(1, valid.to(torch.uint8).argmax(1, keepdim=True)).nan_to_num()
    return valid, level, (x - level).nan_to_num()


def instance_statistics(context: Tensor, *, is_relative: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each window's context [B, L, C], [B, 1, C] each.

    Missing points (NaN) are left out. A window without valid points gets 0 and 1, a constant one
    its level and a deviation of 1e-3. With `is_relative` the deviation has no floor, so that it
    follows the window's scale wherever that is, and a constant window's is 1.
    """
    valid, level, known = from_first_valid(context)
    count = valid.sum(1, keepdim=True)
    shift = known.sum(1, keepdim=True) / count.clamp(min=1)
    variance = ((known - shift).square() * valid).sum(1, keepdim=True) / count.clamp(min=1)
    mean = level + shift
    if not is_relative:
        deviation = (variance + FLOOR).sqrt()
        return mean, deviation.where(count > 0, 1.0)
    largest = context.abs().nan_to_num().amax(1, keepdim=True)
    deviation = variance.sqrt()
    return mean, deviation.where(deviation > RESOLUTION * largest, 1.0)
