"""Scores of quantiles: the weighted quantile loss, and how often what comes is below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.arrays import Doubles, Indices


@dataclass(frozen=True)
class QuantileSums:
    """Sums over the windows of items, of which WQL and coverage are made."""

    levels: tuple[float, ...]
    """Levels of the Q quantiles; () where there are none."""
    mean: Doubles
    """What the items' channels are standardised by [I, C]."""
    deviation: Doubles
    sums: Doubles
    """Pinball losses by level, points below by level, and absolute targets and points [2 Q + 2, I,
    C]; losses in standardised units, targets in the source's."""

    @classmethod
    def zero(cls, levels: Sequence[float], mean: Doubles, deviation: Doubles) -> QuantileSums:
        """Return sums over no window; there are none at all without levels."""
        rows = 2 * len(levels) + 2 if levels else 0
        return cls(tuple(levels), mean, deviation, np.zeros((rows, *mean.shape)))

    def add(self, items: Indices, quantiles: Doubles, target: Doubles) -> None:
        """Add windows of items: quantiles [B, H, C, Q], target [B, H, C], NaN where missing."""
        if not self.levels:
            return
        for row, level in enumerate(self.levels):
            error = target - quantiles[..., row]
            loss = np.maximum(level * error, (level - 1) * error)
            np.add.at(self.sums[row], items, np.nansum(loss, axis=1))
            np.add.at(self.sums[len(self.levels) + row], items, (error <= 0).sum(1))
        mean, deviation = self.mean[items, None], self.deviation[items, None]
        np.add.at(self.sums[-2], items, np.nansum(np.abs(target * deviation + mean), axis=1))
        np.add.at(self.sums[-1], items, (~np.isnan(target)).sum(1))

    def weighted(self, absolute: Doubles | None = None) -> float:
        """Return the weighted quantile loss: twice the mean pinball loss over the mean magnitude.

        It is that of the quantiles, or of a forecast whose quantiles all are its point, by the sums
        of its absolute errors [I, C] (Park et al. 2022). Levels are as far above as below 0.5.
        """
        losses = 2 * self.sums[: len(self.levels)].mean(0) if absolute is None else absolute
        return float((losses * self.deviation).sum() / max(self.sums[-2].sum(), 1e-300))

    def below(self) -> dict[float, float]:
        """Return level -> the share of points at or below the quantile."""
        total = max(1.0, self.sums[-1].sum())
        counts = self.sums[len(self.levels) : -2].sum((1, 2))
        return {level: float(n / total) for level, n in zip(self.levels, counts, strict=True)}

    def coverage(self) -> tuple[float, float] | None:
        """Return the share of points that the widest interval should hold, and that it holds."""
        if len(self.levels) < 2:
            return None
        below, (low, *_, high) = self.below(), self.levels
        return high - low, below[high] - below[low]

    def summary(self) -> dict[str, Any]:
        """Return what evaluation.json has of the quantiles."""
        if not self.levels:
            return {}
        answer: dict[str, Any] = {"below": {str(k): v for k, v in self.below().items()}}
        coverage = self.coverage()
        if coverage is not None:
            answer["interval"] = {"nominal": coverage[0], "covered": coverage[1]}
        return answer
