"""Quantiles at the levels that are asked for, between those that were trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from model.errors import UserError
from trainer.data.arrays import Doubles
from trainer.forecast.paths import Trained


def checked_levels(forecaster: Trained, levels: Sequence[float] | None) -> list[float]:
    """Return the levels that are asked for, by default those that were trained.

    Raises UserError for those that cannot be had.
    """
    trained = forecaster.network.output.levels
    if levels is None:
        return list(trained)
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise UserError(f"quantiles: expected a list of levels, as [0.1, 0.5, 0.9], got {levels!r}")
    if levels and not trained:
        raise UserError(
            f"quantiles: the network was trained by loss {forecaster.settings.model.loss} and "
            "forecasts points; leave them out, or train with model.loss=quantile"
        )
    outside = [level for level in levels if not trained[0] <= level <= trained[-1]]
    if outside:
        raise UserError(
            f"quantiles: the network was trained for those from {trained[0]} to {trained[-1]}, and "
            f"{outside[0]} is another; leave it out, or train with model.quantiles"
        )
    return sorted(set(levels))


def at_levels(trained: Sequence[float], quantiles: Doubles, levels: Sequence[float]) -> Doubles:
    """Return quantiles [..., levels] from those at the levels `trained`, by straight lines."""
    if not levels:
        return np.empty((*quantiles.shape[:-1], 0))
    if len(trained) == 1:
        return np.repeat(quantiles, len(levels), -1)
    nodes, wanted = np.asarray(trained), np.asarray(levels)
    below = np.clip(np.searchsorted(nodes, wanted, "right") - 1, 0, len(nodes) - 2)
    share = (wanted - nodes[below]) / (nodes[below + 1] - nodes[below])
    return quantiles[..., below] * (1 - share) + quantiles[..., below + 1] * share
