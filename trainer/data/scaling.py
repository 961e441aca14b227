"""Scaling of series: each channel and covariate by its own training part."""

from __future__ import annotations

from typing import Literal

import numpy as np

from trainer.data.arrays import Doubles, Indices
from trainer.data.series_source import SeriesSource


def own_scale(values: Doubles, axis: int = 0, *, keepdims: bool = False) -> tuple[Doubles, Doubles]:
    """Return mean and deviation (ddof 0) along an axis, NaN left out; 1 where nothing varies."""
    deviation = np.nanstd(values, axis=axis, keepdims=keepdims)
    mean = np.nanmean(values, axis=axis, keepdims=keepdims)
    return mean, np.where(deviation > 0, deviation, 1.0)


class Scaling:
    """The mean and deviation (ddof 0) of the training parts of a set's items.

    They are computed when an item is first asked for. A channel without a value there, or that does
    not vary, is left at its scale.
    """

    def __init__(self, series: SeriesSource, ends: Indices, kind: Literal["train", "none"]) -> None:
        """`ends` are the points at which the items' training parts end."""
        self._series, self._ends = series, ends
        channels = len(series.columns.target) + len(series.columns.known)
        self._mean = np.zeros((len(series), channels))
        self._deviation = np.ones((len(series), channels))
        self._is_known = np.full(len(series), kind == "none")

    def of(self, items: Indices) -> tuple[Doubles, Doubles]:
        """Return the mean and the deviation of items [B, C + F], channels before covariates."""
        for item in np.unique(items[~self._is_known[items]]).tolist():
            self._compute(item)
        return self._mean[items], self._deviation[items]

    def _compute(self, item: int) -> None:
        end = int(self._ends[item])
        parts = [self._series.target(item)[:, :end], self._series.known(item)[:, :end]]
        training = np.concatenate([part.T for part in parts], axis=1).astype(np.float64)
        has_some = ~np.isnan(training).all(0) if end else np.zeros(training.shape[1], bool)
        if has_some.any():
            mean, deviation = own_scale(training[:, has_some])
            self._mean[item, has_some], self._deviation[item, has_some] = mean, deviation
        self._is_known[item] = True
