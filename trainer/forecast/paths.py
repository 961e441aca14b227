"""Forecasts over any horizon: beyond the one that was trained, quantile paths are fed back.

A network forecasts H points at once. For the next ones each quantile of what it has forecast is
taken for known, as a path of its own; the quantiles over all paths' forecasts are those of the next
points (Ansari et al. 2025, Chronos-Bolt). To feed back the median alone would let intervals shrink.

Shapes: B windows, L context points, T points to forecast, C channels, F covariates, K columns that
are known up to the present, P paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.network import TimeSeriesTransformer
from trainer.config.settings import Settings
from trainer.data.series_facts import SeriesFacts
from trainer.data.windows import WindowBatch


class Trained(Protocol):
    """A trained network, as `forecaster` has it."""

    network: TimeSeriesTransformer
    settings: Settings
    facts: SeriesFacts

    @property
    def past(self) -> tuple[str, ...]:
        """The names of the columns known up to the present that the network reads."""

    def predict_windows(
        self, batches: Iterable[WindowBatch]
    ) -> Iterator[tuple[WindowBatch, Tensor]]:
        """Yield batches with their forecasts, points and quantiles [B, H, C, 1 + levels]."""


def forecast_paths(
    forecaster: Trained, context: Tensor, covariates: Tensor, past: Tensor, horizon: int
) -> Tensor:
    """Return the point forecast and quantiles of T = `horizon` points, [B, T, C, 1 + levels].

    In the network's standardised units: context [B, L, C], NaN where missing, L the longest that
    the network takes; covariates [B, L + n * H, F] up to the end of the last H points that the
    network forecasts at once, whether all of them are asked for or not; past [B, L, K], NaN where
    missing, of which nothing is known later.
    """
    at_once, length = forecaster.facts.shape.prediction_length, context.shape[1]
    paths, done = context.unsqueeze(1), []
    for first in range(0, horizon, at_once):
        known = covariates[:, first : first + length + at_once]
        seen = F.pad(past, (0, 0, 0, first), value=math.nan)[:, first:][:, :length]
        forecast = _next_points(forecaster, paths, known, seen)
        done.append(forecast)
        following = forecast[..., 1:] if forecaster.network.output.levels else forecast[..., :1]
        following = following.permute(0, 3, 1, 2)  # [B, P, points, C]
        before = paths.expand(-1, following.shape[1], -1, -1)
        paths = torch.cat([before, following], 2)[:, :, -length:]
    return torch.cat(done, 1)[:, :horizon]


def _next_points(forecaster: Trained, paths: Tensor, covariates: Tensor, past: Tensor) -> Tensor:
    """Return [B, H, C, 1 + levels] from paths [B, P, L, C] and what is known beside them.

    That is covariates [B, L + H, F], and past [B, L, K].
    """
    shape, count = forecaster.facts.shape, paths.shape[1]
    rows = paths.flatten(0, 1)
    known, seen = (each.repeat_interleave(count, 0) for each in (covariates, past))
    batch = WindowBatch(
        rows.numpy(),
        np.full((len(rows), shape.prediction_length, shape.channels), np.nan, np.float32),
        known.numpy(),
        np.ones(len(rows), np.float32),
        past=seen.numpy(),
    )
    [(_, forecast)] = forecaster.predict_windows([batch])
    forecast = forecast.unflatten(0, (-1, count)).float()
    if count == 1:
        return forecast.squeeze(1)
    levels = torch.tensor([0.5, *forecaster.network.output.levels])
    samples = forecast[..., 1:].permute(0, 2, 3, 1, 4).flatten(3)  # [B, points, C, P * levels]
    return samples.quantile(levels, -1).permute(1, 2, 3, 0)
