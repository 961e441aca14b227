"""Instance normalisation: each window is scaled by its own context (Kim et al. 2022, RevIN)."""

from __future__ import annotations

import torch
from torch import Tensor


def instance_statistics(context: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each window's context [B, L, C], [B, 1, C] each.

    Missing points (NaN) are left out. A window without valid points gets 0 and 1, a constant one
    its level and a deviation of 1e-3.
    """
    valid = ~context.isnan()
    count = valid.sum(1, keepdim=True)
    # Relative to the first valid point: a sum over a large level would lose the small changes.
    level = context.gather(1, valid.to(torch.uint8).argmax(1, keepdim=True)).nan_to_num()
    known = (context - level).nan_to_num()
    shift = known.sum(1, keepdim=True) / count.clamp(min=1)
    variance = ((known - shift).square() * valid).sum(1, keepdim=True) / count.clamp(min=1)
    deviation = (variance + 1e-6).sqrt()
    return level + shift, deviation.where(count > 0, 1.0)
