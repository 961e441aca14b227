"""A forecast by as many forward passes as the architecture takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from model.network import Inputs, TimeSeriesTransformer

Window = tuple[Tensor, Tensor]
"""Context [B, L, C] and covariates [B, L + H, F]."""


def forecast(
    network: TimeSeriesTransformer,
    windows: Sequence[Window],
    compute: Callable[[Sequence[Inputs]], list[Tensor]],
    share: Callable[[list[Tensor], list[Tensor]], Sequence[Tensor]] = lambda own, _: own,
) -> list[Tensor]:
    """Return the point forecasts [B, H, C] of `windows`; each pass fills in a patch of the future.

    `compute` runs the network: inputs -> outputs, none on a rank that does not see them, where
    nothing is returned. `share(forecasts, like)` brings a pass's forecasts to the ranks that need
    them for the next one, shaped as `like`.
    """
    horizon = network.shape.prediction_length
    future = [
        context.new_full((len(context), horizon, context.shape[2]), math.nan)
        for context, _ in windows
    ]
    forecasts: list[Tensor] = []
    for number in range(network.passes):
        inputs = [
            network.inputs(context, covariates, known)
            for (context, covariates), known in zip(windows, future, strict=True)
        ]
        forecasts = [
            network.forecast(output, context)
            for output, (context, _) in zip(compute(inputs), windows, strict=False)
        ]
        if number + 1 < network.passes:
            future = [
                _with_patch(known, patch, number, network.config.patch_length)
                for known, patch in zip(future, share(forecasts, future), strict=True)
            ]
    return forecasts


def _with_patch(future: Tensor, forecast: Tensor, number: int, patch_length: int) -> Tensor:
    """Return a copy of `future` [B, H, C] with its patch `number` taken from `forecast`."""
    points = slice(number * patch_length, (number + 1) * patch_length)
    future = future.clone()
    future[:, points] = forecast[:, points].to(future)
    return future
