"""Forecasts without training, beside which a network's are judged.

Shapes: B windows, L context points, H points to forecast, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trainer.data.arrays import Floats, Indices
from trainer.data.dataset import Dataset

OWN_SEASON = "seasonal naive"
"""Name of the baseline that repeats each item's own season."""


def seasonal_name(season: int) -> str:
    """Return the name of the baseline that repeats the last `season` points."""
    return f"seasonal naive ({season})"


def baseline_names(dataset: Dataset) -> list[str]:
    """Return the names of the forecasts without training."""
    if dataset.has_one_interval:
        seasonal = [seasonal_name(season) for season in dataset.season_lengths]
    else:
        seasonal = [OWN_SEASON]
    return [*seasonal, "last value", "drift"]


def baselines(context: Floats, dataset: Dataset, seasons: Indices) -> Iterator[Floats]:
    """Yield forecasts [B, H, C] from contexts [B, L, C], in the order of their names.

    They repeat each season, or the last value, or go on by the mean change from the context's first
    value to its last (Hyndman & Athanasopoulos 2021, section 5.2). Where items have several
    intervals, the first repeats each window's own season, of `seasons`; there may be fewer of these
    than windows: the last are padding.
    """
    filled = fill_forward(context)
    length, horizon = filled.shape[1], dataset.shape.prediction_length
    if dataset.has_one_interval:
        for season in dataset.season_lengths:
            yield filled[:, length - season + np.arange(horizon) % season]
    else:
        own = np.ones(len(filled), np.int64)
        own[: len(seasons)] = seasons
        at = length - own[:, None] + np.arange(horizon) % own[:, None]
        yield np.take_along_axis(filled, at[:, :, None], axis=1)
    last = filled[:, -1:]
    yield np.repeat(last, horizon, axis=1)
    yield last + _slope(context, filled) * np.arange(1, horizon + 1, dtype=np.float32)[:, None]


def _slope(context: Floats, filled: Floats) -> Floats:
    """Return the mean change a step [B, 1, C] from the first value that is there to the last."""
    first = np.isnan(context).argmin(1, keepdims=True)  # 0 where no value is there
    steps = np.maximum(1, context.shape[1] - 1 - first)
    change = filled[:, -1:] - np.take_along_axis(filled, first, axis=1)
    return np.asarray(change / steps, np.float32)


def fill_forward(context: Floats) -> Floats:
    """Return a context whose missing points have the value before them, else 0, the mean."""
    valid = ~np.isnan(context)
    if valid.all():
        return context
    position = np.where(valid, np.arange(context.shape[1])[None, :, None], 0)
    last = np.maximum.accumulate(position, axis=1)
    return np.nan_to_num(np.take_along_axis(context, last, axis=1))
