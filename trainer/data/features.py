"""Covariates of windows: calendar features of their times, and columns known in advance."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from model.errors import UserError
from trainer.config.data_settings import DataConfig
from trainer.data.arrays import Floats
from trainer.data.calendars import calendar_values, calendar_waves
from trainer.data.frequency import Frequency, commonest
from trainer.data.series_source import Series

KEPT_POINTS = 2**22
"""Points of a set up to which its calendar features are computed once, and kept."""

KEPT_SPANS = 64
"""Spans of time that are kept with their features: series of a table often end together."""

Span = tuple[np.datetime64, int, str, int]
"""A moment, the number of its point, the interval, and how many points follow."""


class Calendar:
    """The calendar features of a set's points."""

    def __init__(self, series: Series, config: DataConfig) -> None:
        """Raises UserError where there are to be features, and an item has no times."""
        self._series, self._config = series, config
        self._frequencies: dict[str, Frequency] = {}
        self._kept: dict[int, Floats] = {}
        self._times: dict[Span, pd.DatetimeIndex] = {}
        self._spans: dict[Span, Floats] = {}
        self._keeps = series.points <= KEPT_POINTS
        without = np.flatnonzero(np.isnat(series.starts))
        if config.calendar and len(without):
            raise UserError(
                f"data.calendar: {series.item_id(int(without[0]))} has no column of timestamps; "
                "name it as data.time_column or set data.calendar=[]"
            )

    @cached_property
    def _commonest(self) -> str:
        """The interval of series that have none of their own."""
        return commonest(self._series.freqs()) or "D"

    def times(self, item: int, first: int, stop: int) -> pd.DatetimeIndex | None:
        """Return the times of an item's points first..stop-1, also of those it does not have."""
        span = self._span(item, first, stop)
        return None if span is None else self._times_of(span)

    def _span(self, item: int, first: int, stop: int) -> Span | None:
        """Return the span of an item's points; None where it has no times.

        Spans of the same times are equal where intervals have one length.
        """
        start, freq = self._series.starts[item], self._series.freq(item)
        if np.isnat(start):
            return None
        name = freq or self._commonest  # of one point
        if name not in self._frequencies:
            self._frequencies[name] = Frequency.parse(name)
        frequency = self._frequencies[name]
        if frequency.kind == "fixed":
            return frequency.times(start, first, first + 1)[0], 0, name, stop - first
        return start, first, name, stop - first

    def _times_of(self, span: Span) -> pd.DatetimeIndex:
        times = self._times.get(span)  # several threads may be here
        if times is not None:
            return times
        start, first, name, count = span
        frequency, zone = self._frequencies[name], self._series.timezone
        times = pd.DatetimeIndex(frequency.times(start, first, first + count))
        if zone is not None and frequency.has_clock:
            times = times.tz_localize("UTC").tz_convert(self._config.timezone or zone)
        _keep(self._times, span, times)
        return times

    def features(self, item: int, first: int, stop: int) -> Floats:
        """Return the calendar features [T, K] of an item's points first..stop-1."""
        if not self._config.calendar:
            return np.empty((stop - first, 0), np.float32)
        length = int(self._series.lengths[item])
        if not self._keeps or first < 0 or stop > length:
            return self._computed(item, first, stop)
        if item not in self._kept:
            self._kept[item] = self._computed(item, 0, length)
        return self._kept[item][first:stop]

    def _computed(self, item: int, first: int, stop: int) -> Floats:
        span = self._span(item, first, stop)
        assert span is not None
        features = self._spans.get(span)
        if features is None:
            is_embedded = self._config.calendar_encoding == "embedding"
            encode = calendar_values if is_embedded else calendar_waves
            features = encode(self._times_of(span), self._config.calendar, self._config.timezone)
            _keep(self._spans, span, features)
        return features


def _keep(kept: dict[Span, Any], span: Span, value: object) -> None:
    """Keep a span's value, and forget all others where there are too many."""
    if len(kept) >= KEPT_SPANS:
        kept.clear()
    kept[span] = value
