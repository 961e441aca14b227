"""The running maximum along the points of series."""

from __future__ import annotations

import torch
from torch import Tensor


def running_max(values: Tensor) -> Tensor:
    """Return the largest value of [B, T, ...] up to each point of dimension 1.

    ONNX has no cummax: an exported graph doubles the span of points looked back at until all are.
    """
    if not torch.compiler.is_exporting():
        return values.cummax(1).values
    points, span = values.shape[1], 1
    while span < points:
        here, before = values[:, span:], values[:, :-span]
        values = torch.cat([values[:, :span], torch.maximum(here, before)], 1)
        span *= 2
    return values
