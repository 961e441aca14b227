"""A forecast by as many forward passes as the architecture takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from model.network import TimeSeriesTransformer
from model.tokens import Inputs

Window = tuple[Tensor, Tensor]
"""Context [B, L, V] and covariates [B, L + H, F]."""


def forecast(
    network: TimeSeriesTransformer,
    windows: Sequence[Window],
    compute: Callable[[Sequence[Inputs]], list[Tensor]],
    share: Callable[[list[Tensor], list[Tensor]], Sequence[Tensor]] = lambda own, _: own,
) -> list[Tensor]:
    """Return the forecasts of `windows`: point and quantiles [B, H, C, 1 + levels].

    Each pass but the last fills in a patch of the future with its point forecast.

    `compute` runs the network: inputs -> outputs, none on a rank that does not see them, where
    nothing is returned. `share(forecasts, like)` brings a pass's forecasts to the ranks that need
    them for the next one, shaped as `like`.
    """
    horizon, channels = network.shape.prediction_length, network.shape.channels
    future = [
        context.new_full((context.shape[0], horizon, channels), math.nan) for context, _ in windows
    ]

    def inputs(known_future: list[Tensor]) -> list[Inputs]:
        return [
            network.inputs(context, covariates, known)
            for (context, covariates), known in zip(windows, known_future, strict=True)
        ]

    for number in range(network.passes - 1):
        points = [
            network.forecast(output, context)
            for output, (context, _) in zip(compute(inputs(future)), windows, strict=False)
        ]
        future = [
            _with_patch(known, patch, number, network.config.patch_length)
            for known, patch in zip(future, share(points, future), strict=True)
        ]
    return [
        network.predicted(output, context)
        for output, (context, _) in zip(compute(inputs(future)), windows, strict=False)
    ]


def _with_patch(future: Tensor, forecast: Tensor, number: int, patch_length: int) -> Tensor:
    """Return a copy of `future` [B, H, C] with its patch `number` taken from `forecast`."""
    points = slice(number * patch_length, (number + 1) * patch_length)
    future = future.clone()
    future[:, points] = forecast[:, points].to(future)
    return future
