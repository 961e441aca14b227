"""Mixtures of real series (TSMixup; Ansari et al. 2024, algorithm 1)."""

from __future__ import annotations

import numpy as np

from trainer.data.arrays import Doubles
from trainer.data.series_source import SeriesSource

MOST_SERIES = 3
CONCENTRATION = 1.5
"""Parameter of the Dirichlet distribution of the weights."""
ATTEMPTS = 8
"""Windows that are tried for one that has a value."""


def mixed(rng: np.random.Generator, series: SeriesSource, length: int) -> Doubles:
    """Return a convex combination [C, T] of windows of up to three series.

    Each is divided by its mean absolute value first. One that is shorter stands at the end, and its
    reflections before it.
    """
    count = int(rng.integers(1, MOST_SERIES + 1))
    weights = rng.dirichlet([CONCENTRATION] * count)
    channels = len(series.columns.target)
    total = np.zeros((channels, length))
    for weight in weights.tolist():
        total += weight * _scaled(_window(rng, series, length))
    return total


def _window(rng: np.random.Generator, series: SeriesSource, length: int) -> Doubles:
    """Return a random window [C, T] of a random series."""
    for _ in range(ATTEMPTS):
        item = int(rng.integers(len(series)))
        points = int(series.lengths[item])
        first = int(rng.integers(max(1, points - length + 1)))
        values = series.target(item)[:, first : first + length].astype(np.float64)
        if np.isfinite(values).any():
            break
    before = ((0, 0), (length - values.shape[1], 0))
    return np.pad(values, before, mode="reflect" if values.shape[1] > 1 else "edge")


def _scaled(values: Doubles) -> Doubles:
    """Return values by their mean absolute value; those that are missing are 0."""
    known = np.nan_to_num(values)
    level = np.abs(known).mean(1, keepdims=True)
    return known / np.where(level > 0, level, 1.0)
