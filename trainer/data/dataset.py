"""The dataset: windows of series, the order in which a run sees them, and their contents."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from model.config import CALENDAR_SIZES, SeriesShape
from model.errors import UserError
from trainer.config.settings import DataConfig
from trainer.data.series_facts import SeriesFacts
from trainer.data.tables import Doubles, Floats, Series, Table, read_table

Indices = npt.NDArray[np.int64]

MAX_SCORED = 20_000
"""Windows of a split that are scored at most, unless data.score_every says otherwise."""


class Split(StrEnum):
    """A part of the series in time."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class Windows:
    """All stride-1 windows of a split, numbered through series after series."""

    first: Indices
    """Row at which the context of each series' first window starts."""
    ends: Indices
    """Number of windows in each series and all before it."""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Return the series that window `index` is of, and the row at which its context starts."""
        series = int(np.searchsorted(self.ends, index, side="right"))
        before = int(self.ends[series - 1]) if series > 0 else 0
        return series, int(self.first[series]) + index - before


@dataclass(frozen=True)
class WindowBatch:
    """Windows in standardised units; a window of weight 0 is padding."""

    context: Floats
    """Past values [B, L, C], NaN where missing."""
    target: Floats
    """Future values [B, H, C], NaN where missing."""
    covariates: Floats
    """Covariates [B, L + H, F] of past and future."""
    weight: Floats
    """Weights [B]: 1, or 0 for padding."""


class Dataset:
    """The series of a configuration, split in time and standardised by their training part."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        table = read_table(config)
        self.channels = table.channels
        self.notes = table.notes
        self.season_lengths = _season_lengths(config, table)
        self._bounds = [_bounds(series, config) for series in table.series]
        self._windows = {split: self._windows_of(split) for split in Split}
        if len(self._windows[Split.TRAIN]) == 0:
            raise UserError(self._too_short())
        self.mean, self.deviation = self._statistics(table)
        self.series = table.series
        # Cast to fp32 only here: before, a small deviation around a large mean would be lost.
        self.values = [
            ((one.values - self.mean) / self.deviation).astype(np.float32) for one in table.series
        ]
        self.notes += self._imprecise_channels() + self._missing_tests()
        embedded = config.calendar if config.calendar_encoding == "embedding" else []
        self.shape = SeriesShape(
            config.context_length,
            config.prediction_length,
            len(self.channels),
            self.series[0].covariates.shape[1] - len(embedded),
            tuple(CALENDAR_SIZES[name] for name in embedded),
            missing=any(bool(np.isnan(values).any()) for values in self.values),
        )

    def _statistics(self, table: Table) -> tuple[Doubles, Doubles]:
        """Return mean and deviation (ddof 0) of each channel over all series' training parts.

        Raises UserError for a channel that has no value there.
        """
        if self.config.scaling == "none":
            return np.zeros(len(table.channels)), np.ones(len(table.channels))
        pairs = zip(table.series, self._bounds, strict=True)
        training = np.concatenate([one.values[: bounds[0]] for one, bounds in pairs])
        counts = (~np.isnan(training)).sum(0)
        for channel, count in zip(table.channels, counts, strict=True):
            if not count:
                raise UserError(
                    f"data.targets: {channel} has no value in the training part; "
                    "leave it out of data.targets"
                )
        deviation = np.nanstd(training, axis=0)
        return np.nanmean(training, axis=0), np.where(deviation > 0, deviation, 1.0)

    def _imprecise_channels(self) -> list[str]:
        """Return a sentence about each channel whose variation fp32 cannot hold unscaled."""
        notes = []
        for index, channel in enumerate(self.channels):
            column = np.concatenate([values[:, index] for values in self.values])
            if np.nanmax(np.abs(column)) > 1e5 * max(float(np.nanstd(column)), 1e-30):
                notes.append(f"{channel}: fp32 loses much of its variation; use data.scaling=train")
        return notes

    def _missing_tests(self) -> list[str]:
        """Return a sentence about a test part without windows."""
        if self.windows(Split.TEST):
            return []
        return ["data.split leaves no test window: the run will not be scored"]

    @property
    def units(self) -> str:
        """The units that errors are measured in."""
        if self.config.scaling == "none":
            return "the source's units"
        return "units of the training part's deviation"

    @cached_property
    def digest(self) -> str:
        """A hash that changes with any value, timestamp, channel or window of the data."""
        total = hashlib.sha256(repr((self.channels, self._bounds, self.shape)).encode())
        for one, values in zip(self.series, self.values, strict=True):
            total.update(values.tobytes())
            total.update(one.covariates.tobytes())
            if one.times is not None:
                total.update(one.times.asi8.tobytes())
        return total.hexdigest()

    @property
    def facts(self) -> SeriesFacts:
        """The facts that a forecaster keeps of the series."""
        return SeriesFacts(
            self.shape,
            tuple(self.channels),
            tuple(self.mean.tolist()),
            tuple(self.deviation.tolist()),
        )

    def _windows_of(self, split: Split) -> Windows:
        """Return the windows whose future lies in `split` and whose context the series has."""
        length, horizon = self.config.context_length, self.config.prediction_length
        first, counts = [], []
        for train_end, validation_end, test_end in self._bounds:
            start, end = {
                Split.TRAIN: (length, train_end),
                Split.VALIDATION: (max(train_end, length), validation_end),
                Split.TEST: (max(validation_end, length), test_end),
            }[split]
            first.append(start - length)
            counts.append(max(0, end - start - horizon + 1))
        return Windows(np.array(first), np.cumsum(counts))

    def _too_short(self) -> str:
        """Return the sentence that no series has a training window."""
        needed = self.config.context_length + self.config.prediction_length
        longest = max(bounds[0] for bounds in self._bounds)
        return (
            f"data.context_length: no series is long enough: a window takes context_length + "
            f"prediction_length = {needed} rows, the longest training part has {longest}; shorten "
            "them, or give training more of the rows in data.split"
        )

    def windows(self, split: Split) -> int:
        """Return the number of windows in `split`."""
        return len(self._windows[split])

    def score_every(self, split: Split) -> int:
        """Return the distance between the windows of `split` that are scored.

        One that shared a factor with a season would leave some of its phases out.
        """
        if self.config.score_every is not None:
            return self.config.score_every
        every = max(1, math.ceil(self.windows(split) / MAX_SCORED))
        while any(math.gcd(every, season) > 1 for season in self.season_lengths):
            every += 1
        return every

    def scored(self, split: Split) -> Indices:
        """Return the numbers of the windows of `split` that are scored, on whatever layout."""
        return np.arange(0, self.windows(split), self.score_every(split))

    def draw(self, seed: int, start: int, stop: int) -> Indices:
        """Return the numbers of the training windows that are the run's samples start..stop-1.

        Sample i is a pure function of (seed, i): block i of the counter-based generator
        Philox4x64-10 (Salmon et al. 2011). So the order depends neither on the world nor on the
        batch size, and to resume takes one integer.
        """
        blocks = np.random.Philox(key=seed, counter=start).random_raw(4 * (stop - start))
        total = len(self._windows[Split.TRAIN])
        return np.asarray(blocks.reshape(-1, 4)[:, 0] % np.uint64(total), np.int64)

    def batch(self, split: Split, index: Indices, size: int | None = None) -> WindowBatch:
        """Return the windows numbered `index`, padded to `size` with a window of weight 0."""
        real = len(index)
        size = size or real
        if real < size:
            index = np.concatenate([index, np.zeros(size - real, np.int64)])
        windows = [self._window(split, int(i)) for i in index]
        values = np.stack([v for v, _ in windows])
        length = self.config.context_length
        return WindowBatch(
            values[:, :length],
            values[:, length:],
            np.stack([c for _, c in windows]),
            (np.arange(size) < real).astype(np.float32),
        )

    def _window(self, split: Split, index: int) -> tuple[Floats, Floats]:
        """Return a window's values [L + H, C] and covariates [L + H, F]."""
        series, rows = self._rows(split, index)
        return self.values[series][rows], self.series[series].covariates[rows]

    def window_times(self, split: Split, index: int) -> pd.DatetimeIndex | None:
        """Return the timestamps of a window's context and future, where the source has them."""
        series, rows = self._rows(split, index)
        times = self.series[series].times
        return None if times is None else times[rows]

    def _rows(self, split: Split, index: int) -> tuple[int, slice]:
        """Return the series that a window is of, and the rows of its context and future."""
        series, first = self._windows[split].locate(index)
        length = self.config.context_length + self.config.prediction_length
        return series, slice(first, first + length)

    def seasonal_scale(self) -> npt.NDArray[np.float64]:
        """Return [C]: the training part's mean absolute seasonal difference, MASE's divisor."""
        season = self.season_lengths[0] if self.season_lengths else 1
        training = [v[: b[0]] for v, b in zip(self.values, self._bounds, strict=True)]
        differences = np.concatenate(
            [np.abs(v[season:] - v[: max(0, len(v) - season)]) for v in training]
        )
        scale = np.nanmean(differences.astype(np.float64), axis=0)
        return np.where(scale > 0, scale, 1.0)


def _bounds(series: Series, config: DataConfig) -> tuple[int, int, int]:
    """Return the rows at which a series' training, validation and test part end.

    Raises UserError where the series has fewer rows than the parts.
    """
    rows = len(series.values)
    train, validation, test = config.split
    if max(config.split) <= 1:
        return int(rows * train), rows - int(rows * test), rows
    ends = (int(train), int(train + validation), int(train + validation + test))
    if ends[2] > rows:
        raise UserError(
            f"data.split: the parts add to {ends[2]} rows, but {series.item_id} has {rows}"
        )
    return ends


def _season_lengths(config: DataConfig, table: Table) -> list[int]:
    """Return the configured seasons, else the day and the week in points that fit the context."""
    if config.season_lengths is not None:
        return config.season_lengths
    if table.interval is None:
        return []
    periods = [pd.Timedelta(days=1) / table.interval, pd.Timedelta(days=7) / table.interval]
    seasons = [round(p) for p in periods if p > 1 and abs(p - round(p)) < 1e-6]
    return [season for season in seasons if season <= config.context_length]
