"""The M4 competition's scores: sMAPE, MASE and OWA, beside the benchmark Naive 2.

They are those of its organisers' code in R (Makridakis, Spiliotis & Assimakopoulos 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.arrays import Doubles

LEVEL = 1.645
"""Quantile of the normal distribution that tells whether a series is seasonal, at 90 %."""


@dataclass(frozen=True)
class M4Scores:
    """Means over series."""

    smape: float
    """Symmetric mean absolute percentage error, in percent."""
    mase: float
    """Mean absolute scaled error."""

    def owa(self, naive: M4Scores) -> float:
        """Return the overall weighted average of both, relative to Naive 2's."""
        return (self.smape / naive.smape + self.mase / naive.mase) / 2


def m4_scores(
    histories: Sequence[Doubles],
    futures: Sequence[Doubles],
    forecasts: Sequence[Doubles],
    season: int,
) -> M4Scores:
    """Return the scores of forecasts of what came after histories.

    MASE's scale is the history's mean absolute difference over a season (Hyndman & Koehler 2006).
    """
    smape, mase = [], []
    for history, future, forecast in zip(histories, futures, forecasts, strict=True):
        error = np.abs(forecast - future)
        smape.append(float(np.mean(200 * error / (np.abs(forecast) + np.abs(future)))))
        mase.append(float(error.mean() / np.abs(history[season:] - history[:-season]).mean()))
    return M4Scores(float(np.mean(smape)), float(np.mean(mase)))


def naive_2(history: Doubles, horizon: int, season: int) -> Doubles:
    """Return the last value without its season, in the seasons to come.

    Seasons are multiplicative, and only of series whose autocorrelation tells of them.
    """
    if season == 1 or not is_seasonal(history, season):
        return np.repeat(history[-1:], horizon)
    indices = seasonal_indices(history, season)
    place = np.arange(len(history), len(history) + horizon) % season
    last = history[-1] / indices[(len(history) - 1) % season]
    return np.asarray(last * indices[place])


def is_seasonal(history: Doubles, season: int) -> bool:
    """Return whether the autocorrelation at a season is larger than chance makes it.

    The bounds are Bartlett's: they widen with the correlations at smaller lags. Where a series has
    fewer than three seasons, or 10^(season / 10) points, none is looked for.
    """
    points = len(history)
    lags = int(10 * math.log10(points))
    if points < 3 * season or lags < season:
        return False
    centred = history - history.mean()
    variance = float(np.square(centred).sum())
    if variance == 0:
        return False
    correlation = np.array(
        [float(centred[lag:] @ centred[:-lag]) / variance for lag in range(1, season + 1)]
    )
    limit = LEVEL / math.sqrt(points) * math.sqrt(1 + 2 * float(np.square(correlation[:-1]).sum()))
    return bool(abs(correlation[-1]) > limit)


def seasonal_indices(history: Doubles, season: int) -> Doubles:
    """Return the factor of each place in a season, by classical multiplicative decomposition.

    Each is the mean ratio of the points at its place to the moving average around them; place 0 is
    that of the first point (Hyndman & Athanasopoulos 2021, section 3.4).
    """
    weights = np.full(season, 1.0) if season % 2 else np.r_[0.5, np.ones(season - 1), 0.5]
    trend = np.convolve(history, weights / season, mode="valid")
    before = len(weights) // 2
    ratios = history[before : before + len(trend)] / trend
    place = np.arange(before, before + len(trend)) % season
    means = np.array([ratios[place == at].mean() for at in range(season)])
    return np.asarray(means / means.mean())
