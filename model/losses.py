"""Training loss: each sample's mean over its valid points, then the mean over samples."""

from __future__ import annotations

from torch import Tensor


def sample_mean(per_point: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over samples of each sample's mean over its valid points.

    A sample without valid points counts as 0. The loss is defined on a sample, so the mean over
    micro-batches of equal size is that of the global batch. Shapes: per_point and valid [B, ...]
    -> scalar.
    """
    weight = valid.to(per_point.dtype).flatten(1)
    total = per_point.where(valid, 0.0).flatten(1).sum(1)
    return (total / weight.sum(1).clamp(min=1.0)).mean()
