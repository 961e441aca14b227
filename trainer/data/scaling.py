"""Scaling of series: each channel, covariate and past column by its own training part."""

from __future__ import annotations

from typing import Literal

import numpy as np

from trainer.data.arrays import Doubles, Indices
from trainer.data.series_source import SeriesSource


def own_scale(values: Doubles, axis: int = 0, *, keepdims: bool = False) -> tuple[Doubles, Doubles]:
    """Return mean and deviation (ddof 0) along an axis, NaN left out; 1 where nothing varies.

    Of no values they are 0 and 1.
    """
    valid = ~np.isnan(values)
    count = np.maximum(1, valid.sum(axis, keepdims=True))
    mean = np.where(valid, values, 0.0).sum(axis, keepdims=True) / count
    centred = np.where(valid, values - mean, 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis, keepdims=True) / count)
    if not keepdims:
        mean, deviation = mean.squeeze(axis), deviation.squeeze(axis)
    return mean, np.where(deviation > 0, deviation, 1.0)


class Scaling:
    """The mean and deviation (ddof 0) of the training parts of a set's items.

    They are computed when an item is first asked for. A channel without a value there, or that does
    not vary, is left at its scale.
    """

    def __init__(self, series: SeriesSource, ends: Indices, kind: Literal["train", "none"]) -> None:
        """`ends` are the points at which the items' training parts end."""
        self._series, self._ends = series, ends
        columns = series.columns
        width = len(columns.target) + len(columns.known) + len(columns.past)
        self._mean = np.zeros((len(series), width))
        self._deviation = np.ones((len(series), width))
        self._is_known = np.full(len(series), kind == "none")

    def of(self, items: Indices) -> tuple[Doubles, Doubles]:
        """Return the mean and the deviation of items [B, C + F + P].

        Channels come first, then columns known in advance, then those known up to the present.
        """
        for item in np.unique(items[~self._is_known[items]]).tolist():
            self._compute(item)
        return self._mean[items], self._deviation[items]

    def _compute(self, item: int) -> None:
        end = int(self._ends[item])
        series = self._series
        parts = [series.target(item), series.known(item), series.past(item)]
        training = np.concatenate([part[:, :end].T for part in parts], axis=1).astype(np.float64)
        has_some = ~np.isnan(training).all(0) if end else np.zeros(training.shape[1], bool)
        if has_some.any():
            mean, deviation = own_scale(training[:, has_some])
            self._mean[item, has_some], self._deviation[item, has_some] = mean, deviation
        self._is_known[item] = True
