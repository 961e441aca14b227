"""The scores of forecasts on the windows of a split.

Shapes: I items, C channels, H steps of the horizon, W windows, Q levels of quantiles.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from trainer.data.arrays import Doubles, Floats
from trainer.data.windows import Split
from trainer.forecast.bootstrap import ENOUGH_ITEMS, Interval, reductions
from trainer.forecast.sums import Key, Sums

MODEL = "Forescale"
"""Name of the network among the forecasts."""

POINTS: Key = ("points", "")
"""Target points that are there."""
MAGNITUDE: Key = ("magnitude", "")
"""Absolute targets in the source's units."""


def quantities(names: Sequence[str], levels: Sequence[float]) -> list[Key]:
    """Return what is summed over points for forecasts of these names and quantiles."""
    points = [(what, name) for what in ("squared", "absolute", "percent") for name in names]
    quantiles = [(what, level) for what in ("pinball", "below") for level in levels]
    return [POINTS, MAGNITUDE, *points, *quantiles]


@dataclass(frozen=True)
class Evaluation:
    """Scores of several forecasts, from sums over the windows of a split that are scored."""

    split: Split
    windows: int
    """Number of windows that are scored."""
    all_windows: int
    """Number of windows in the split."""
    score_every: int
    """Distance between windows that are scored."""
    channels: list[str]
    units: str
    """The units that errors are measured in."""
    items: list[str]
    """Names of the I items that windows are of."""
    names: list[str]
    """Names of the forecasts, the network's first."""
    levels: tuple[float, ...]
    """Levels of the network's quantiles; () where it forecasts points alone."""
    sums: Sums
    deviation: Doubles
    """What the items' channels are divided by where they are standardised [I, C]."""
    seasonal_scale: Doubles
    """MASE's divisor for each item and channel [I, C], NaN where it is undefined."""
    window_items: np.ndarray[tuple[int], np.dtype[np.int64]]
    """The place in `items` of each window's item [W]."""
    horizon: int
    """H, the points of a forecast."""
    forecasts: dict[int, Floats] = field(default_factory=dict)
    """Window -> the network's forecast [H, C], of the windows to keep."""

    def scores(self) -> dict[str, dict[str, float]]:
        """Return forecast -> score -> its value; docs/forecasting.md defines each.

        MASE, SQL and MSIS are means over the items and channels that have any point and a divisor;
        NaN is none. Those of quantiles are there where the network forecasts quantiles.
        """
        total = max(1.0, self.sums.of_items(*POINTS).sum())
        answer: dict[str, dict[str, float]] = {}
        for name in self.names:
            squared, absolute, percent = (
                float(self.sums.of_items(what, name).sum() / total)
                for what in ("squared", "absolute", "percent")
            )
            answer[name] = {"mse": squared, "mae": absolute, "smape": percent}
            answer[name]["mase"] = _mean(self._mase(name))
            if self.levels:
                loss = self._quantile_loss(name)
                answer[name] |= {
                    "crps": float(loss.sum() / total),
                    "sql": _mean(self._per_point(loss) / self.seasonal_scale),
                    "wql": float((loss * self.deviation).sum() / self._magnitude),
                }
        if self.is_symmetric:
            answer[MODEL]["msis"] = _mean(self._interval_score() / self.seasonal_scale)
        return answer

    @property
    def _magnitude(self) -> float:
        return max(float(self.sums.of_items(*MAGNITUDE).sum()), 1e-300)

    def _quantile_loss(self, name: str) -> Doubles:
        """Return twice the mean pinball loss over the levels, summed over points [I, C].

        It is that of the network's quantiles, or of a forecast whose quantiles all are its point.
        """
        if name != MODEL:
            return self.sums.of_items("absolute", name)
        losses = [self.sums.of_items("pinball", level) for level in self.levels]
        return np.asarray(2 * np.mean(losses, axis=0))

    @property
    def is_symmetric(self) -> bool:
        """Whether the lowest and the highest quantile are the ends of a central interval."""
        return len(self.levels) > 1 and abs(self.levels[0] + self.levels[-1] - 1) < 1e-9

    def _interval_score(self) -> Doubles:
        """Return the mean interval score of the widest interval [I, C].

        Of level 1 - a, it is 2 / a times both ends' pinball losses (Gneiting & Raftery 2007).
        """
        low, high = self.levels[0], self.levels[-1]
        ends = self.sums.of_items("pinball", low) + self.sums.of_items("pinball", high)
        return self._per_point(ends) / low

    def mase(self, name: str) -> Doubles:
        """Return a forecast's MASE of each item [I], over its channels; NaN where undefined."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # an item without any divisor
            return np.asarray(np.nanmean(self._mase(name), axis=1))

    def _mase(self, name: str) -> Doubles:
        """Return a forecast's MASE of each item and channel, NaN where it is undefined."""
        return self._per_point(self.sums.of_items("absolute", name)) / self.seasonal_scale

    def _per_point(self, sums: Doubles) -> Doubles:
        points = self.sums.of_items(*POINTS)
        return np.where(points > 0, sums / np.maximum(1.0, points), np.nan)

    def over_items(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return forecast -> score -> its quartiles over the items, each item's mean."""
        points = self.sums.of_items(*POINTS).sum(1)
        answer: dict[str, dict[str, dict[str, float]]] = {}
        for name in self.names:
            squared, absolute = (self.sums.of_items(w, name) for w in ("squared", "absolute"))
            of_items = {
                "mse": squared.sum(1) / np.maximum(1.0, points),
                "mae": absolute.sum(1) / np.maximum(1.0, points),
                "mase": self.mase(name),
            }
            answer[name] = {
                score: _quartiles(values[points > 0]) for score, values in of_items.items()
            }
        return answer

    @property
    def undefined(self) -> int:
        """Number of items and channels whose MASE is undefined, and that are left out of it."""
        points = self.sums.of_items(*POINTS)
        return int(((points > 0) & np.isnan(self.seasonal_scale)).sum())

    def below(self) -> dict[float, float]:
        """Return level -> the share of points at or below the network's quantile."""
        total = max(1.0, self.sums.of_items(*POINTS).sum())
        return {
            level: float(self.sums.of_items("below", level).sum() / total) for level in self.levels
        }

    def coverage(self) -> tuple[float, float] | None:
        """Return the share of points that the widest interval should hold, and that it holds."""
        if len(self.levels) < 2:
            return None
        below, (low, *_, high) = self.below(), self.levels
        return high - low, below[high] - below[low]

    def by_step(self) -> dict[str, dict[str, list[float]]]:
        """Return forecast -> score -> its value at each step of the horizon.

        They are MSE and MAE, and of the network's quantiles the share in the widest interval.
        """
        points = np.maximum(1.0, self.sums.of_steps(*POINTS))
        answer = {
            name: {
                score: (self.sums.of_steps(what, name) / points).tolist()
                for score, what in (("mse", "squared"), ("mae", "absolute"))
            }
            for name in self.names
        }
        if len(self.levels) > 1:
            low, high = (self.sums.of_steps("below", self.levels[end]) for end in (0, -1))
            answer[MODEL]["covered"] = ((high - low) / points).tolist()
        return answer

    @property
    def resampled(self) -> str:
        """What `reductions` draws."""
        return "series" if len(self.items) >= ENOUGH_ITEMS else "blocks of windows"

    @cached_property
    def reductions(self) -> dict[str, Interval]:
        """Each other forecast -> by which part of its MAE the network's is lower."""
        errors = {name: self.sums.of_windows("absolute", name) for name in self.names}
        block = math.ceil(2 * self.horizon / self.score_every)
        return reductions(errors, self.window_items, block, MODEL)

    def summary(self) -> dict[str, Any]:
        """Return the content of evaluation.json, but for the step."""
        answer = {
            "split": str(self.split),
            "windows": self.windows,
            "all_windows": self.all_windows,
            "score_every": self.score_every,
            "units": self.units,
            "scores": {name: _defined(scores) for name, scores in self.scores().items()},
            "per_channel": self._per_channel(),
            "by_step": self.by_step(),
            "items": len(self.items),
            "over_items": self.over_items(),
            "mase_undefined": self.undefined,
            "mae_lower_by": {name: vars(found) for name, found in self.reductions.items()},
        }
        if self.levels:
            answer["below"] = {str(level): share for level, share in self.below().items()}
        coverage = self.coverage()
        if coverage is not None:
            answer["interval"] = {"nominal": coverage[0], "covered": coverage[1]}
        return answer

    def _per_channel(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return forecast -> channel -> score -> its value, of channels with any point."""
        points = self.sums.of_items(*POINTS).sum(0)
        answer: dict[str, dict[str, dict[str, float]]] = {}
        for name in self.names:
            squared, absolute = (
                self.sums.of_items(w, name).sum(0) for w in ("squared", "absolute")
            )
            answer[name] = {
                channel: {
                    "mse": float(squared[c] / points[c]),
                    "mae": float(absolute[c] / points[c]),
                }
                for c, channel in enumerate(self.channels)
                if points[c] > 0
            }
        return answer


def _mean(values: Doubles) -> float:
    """Return the mean of the numbers that are there, NaN for none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _quartiles(values: Doubles) -> dict[str, float]:
    """Return the quartiles of the numbers that are there; nothing where there are none."""
    known = values[~np.isnan(values)]
    if not known.size:
        return {}
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75]).tolist()
    return {"lower_quartile": low, "median": middle, "upper_quartile": high}


def _defined(scores: dict[str, float]) -> dict[str, float | None]:
    """Return scores as JSON has them: null where one is undefined."""
    return {name: None if math.isnan(score) else score for name, score in scores.items()}
