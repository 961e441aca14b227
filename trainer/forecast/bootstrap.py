"""How sure it is that one forecast is better than another: intervals by resampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.data.arrays import Doubles, Indices

RESAMPLES = 1000
LEVEL = 0.95

ENOUGH_ITEMS = 20
"""Items that are drawn as wholes; of fewer, blocks of their windows are."""
ENOUGH = 10
"""Items or blocks of which an interval can be told."""


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds 95 % of those of resampled windows."""

    value: float
    low: float | None
    high: float | None


def reductions(
    errors: Mapping[str, Doubles], items: Indices, block: int, model: str
) -> dict[str, Interval]:
    """Return each other forecast -> by which part of its error a model's is lower.

    `errors` are sums of absolute errors over each window [W], `items` the windows' items in
    ascending order. Windows that share points are no independent witnesses: items are drawn with
    replacement, or where these are few blocks of `block` windows that follow each other (Kuensch
    1989). There is no interval where there are too few of both.
    """
    units = _units(items, block)
    sums = {name: np.bincount(units, error) for name, error in errors.items()}
    count = len(sums[model])
    drawn = {name: np.empty(RESAMPLES) for name in sums}
    rng = np.random.default_rng(0)
    for row in range(RESAMPLES if count >= ENOUGH else 0):
        chosen = rng.integers(count, size=count)
        for name, by_unit in sums.items():
            drawn[name][row] = by_unit[chosen].sum()
    return {
        name: Interval(
            float(_reduction(sums[model].sum(), sums[name].sum())),
            *(_ends(drawn[model], drawn[name]) if count >= ENOUGH else (None, None)),
        )
        for name in sums
        if name != model
    }


def _units(items: Indices, block: int) -> Indices:
    """Return the number of the item, or of the block within an item, that each window is of."""
    _, first, number = np.unique(items, return_index=True, return_inverse=True)
    if len(first) >= ENOUGH_ITEMS:
        return np.asarray(number)
    within = (np.arange(len(items)) - first[number]) // block
    return np.asarray(np.unique(np.stack([number, within]), axis=1, return_inverse=True)[1])


def _ends(ours: Doubles, theirs: Doubles) -> tuple[float, float]:
    low, high = np.quantile(_reduction(ours, theirs), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _reduction(ours: Doubles, theirs: Doubles) -> Doubles:
    return 1 - ours / np.maximum(theirs, 1e-300)
