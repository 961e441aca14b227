"""The part that one source has in a dataset: its series, their splits, scales and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from model.errors import UserError
from trainer.config.data_settings import DataConfig
from trainer.data.arrays import Doubles, Floats, Indices
from trainer.data.features import Calendar
from trainer.data.frequency import Frequency
from trainer.data.scaling import Scaling
from trainer.data.series_source import SeriesSource
from trainer.data.set_format import Values
from trainer.data.splits import parts_of
from trainer.data.windows import Split, Windows


class Part:
    """A set's series as a configuration wants them."""

    def __init__(
        self,
        series: SeriesSource,
        config: DataConfig,
        split: Sequence[float] | None = None,
        ahead: int = 0,
    ) -> None:
        self.series, self.config = series, config
        self.ahead = max(ahead, config.prediction_length)
        """Points after a context whose covariates a window has."""
        self.name = series.name
        self.parts = parts_of(series, config, split)
        self.calendar = Calendar(series, config)
        self.scaling = Scaling(series, self.parts.train, config.scaling)
        self.windows = {split: self._windows_of(split) for split in Split}
        self._channels, known = len(series.columns.target), len(series.columns.known)
        self._known_columns = slice(self._channels, self._channels + known)
        self._past_columns = slice(self._channels + known, None)
        """Places of the columns known in advance, and up to the present, among those scaled."""
        self._check_channels()

    def _check_channels(self) -> None:
        """Raise UserError where the only item has a channel without a value to train on."""
        if len(self.series) > 1:
            return
        training = self.series.target(0)[:, : int(self.parts.train[0])]
        for name, values in zip(self.series.columns.target, training, strict=True):
            if values.size and np.isnan(values).all():
                raise UserError(
                    f"data.targets: {name} has no value in the training part; leave it out of "
                    "data.targets"
                )

    def _windows_of(self, split: Split) -> Windows:
        parts = self.parts
        start = np.zeros(len(self.series), np.int64)
        begin, end = {
            Split.TRAIN: (start, parts.train),
            Split.VALIDATION: (parts.train, parts.validation),
            Split.TEST: (parts.validation, parts.test),
            Split.HELD_OUT: (start, parts.test),
        }[split]
        is_in = parts.is_held_out == (split is Split.HELD_OUT)
        end = np.where(is_in, end, begin)
        horizon = self._least_horizon(split)
        return Windows.between(begin, end, self.config.context_length, horizon)

    def _least_horizon(self, split: Split) -> int:
        """Return the points of a window's future that lie in the split, at least."""
        is_training = split is Split.TRAIN
        return self.config.least_horizon if is_training else self.config.prediction_length

    @property
    def covariates(self) -> int:
        """Covariates of a point: calendar features and columns known in advance."""
        per_feature = 1 if self.config.calendar_encoding == "embedding" else 2
        return per_feature * len(self.config.calendar) + len(self.series.columns.known)

    @property
    def has_full_windows(self) -> bool:
        """Whether some item is trained on with a whole context, if only the shortest one."""
        windows = self.windows[Split.TRAIN]
        first = windows.first + self.config.context_length - self.config.shortest_context
        return bool(((windows.counts > 0) & (first >= 0)).any())

    @property
    def has_missing(self) -> bool:
        """Whether some value of a window may be missing: in an item, or outside of it."""
        channels = len(self.series.columns.target)
        if (self.series.present < self.series.lengths * channels).any():
            return True
        if self.config.least_horizon < self.config.prediction_length:
            return True
        return any(_begins_early(windows) for windows in self.windows.values())

    @property
    def is_padded(self) -> bool:
        """Whether some training window begins before its item."""
        return _begins_early(self.windows[Split.TRAIN])

    def batch(
        self, split: Split, index: Indices, context_length: int | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """Return windows' standardised values [B, L + H, C] and covariates [B, L + ahead, F].

        Third come the values of columns known up to the present [B, L, P]. L is `context_length`,
        by default data.context_length: the last points of the context.
        """
        context = context_length or self.config.context_length
        length = context + self.config.prediction_length
        items, first = self.windows[split].locate(index)
        first = first + (self.config.context_length - context)
        values = self.series.windows(items, first, length)
        if self._least_horizon(split) < self.config.prediction_length:
            # What comes after the training part is another part's.
            ends = (self.parts.train[items] - first)[:, None, None]
            values = np.where(np.arange(length) < ends, values, np.nan)
        values = self._scaled(values, items, slice(0, self._channels))
        covariates = self._covariates(items, first, context + self.ahead)
        values = np.ascontiguousarray(values.transpose(0, 2, 1), np.float32)
        return values, covariates, self._past(items, first, context)

    def _scaled(self, values: Values, items: Indices, columns: slice) -> Values:
        """Return windows [B, C, T] of some columns in standardised units.

        They are cast to fp32 later: before, a small deviation around a large mean would be lost.
        """
        if self.config.scaling == "none":
            return values
        mean, deviation = self.scaling.of(items)
        centred = values - mean[:, columns, None]
        return np.divide(centred, deviation[:, columns, None], out=centred)

    def _covariates(self, items: Indices, first: Indices, length: int) -> Floats:
        """Return calendar features and columns known in advance of windows [B, length, F]."""
        if not self.covariates:
            return np.empty((len(items), length, 0), np.float32)
        both = [self._calendars(items, first, length), self._known(items, first, length)]
        if self.config.calendar_encoding == "embedding":
            both.reverse()
        return np.concatenate(both, axis=2)

    def _calendars(self, items: Indices, first: Indices, length: int) -> Floats:
        """Return the calendar features of windows [B, length, K]."""
        if not self.config.calendar:
            return np.empty((len(items), length, 0), np.float32)
        pairs = zip(items.tolist(), first.tolist(), strict=True)
        return np.stack([self.calendar.features(item, at, at + length) for item, at in pairs])

    def _known(self, items: Indices, first: Indices, length: int) -> Floats:
        """Return standardised columns known in advance [B, length, F], 0 where there is none."""
        if not self.series.columns.known:
            return np.empty((len(items), length, 0), np.float32)
        values = self.series.windows(items, first, length, "known")
        scaled = self._scaled(values, items, self._known_columns)
        return np.nan_to_num(scaled.transpose(0, 2, 1)).astype(np.float32)

    def _past(self, items: Indices, first: Indices, length: int) -> Floats:
        """Return standardised columns known up to the present [B, length, P], NaN if missing."""
        if not self.series.columns.past:
            return np.empty((len(items), length, 0), np.float32)
        values = self.series.windows(items, first, length, "past")
        scaled = self._scaled(values, items, self._past_columns)
        return scaled.transpose(0, 2, 1).astype(np.float32)

    def window_times(self, split: Split, index: int) -> pd.DatetimeIndex | None:
        """Return the timestamps of a window, where the source has them."""
        items, first = self.windows[split].locate(np.array([index]))
        length = self.config.context_length + self.config.prediction_length
        return self.calendar.times(int(items[0]), int(first[0]), int(first[0]) + length)

    def season(self, item: int) -> int:
        """Return an item's season in points: the first that its interval has, or 1."""
        freq = self.series.freq(item)
        seasons = [] if freq is None else Frequency.parse(freq).seasons()
        fitting = [season for season in seasons if season <= self.config.context_length]
        return fitting[0] if fitting else 1

    def seasonal_scale(self, item: int, season: int) -> Doubles:
        """Return [C]: the mean absolute seasonal difference of an item's training part, or NaN.

        It is in standardised units, as errors are.
        """
        mean, deviation = self.scaling.of(np.array([item]))
        channels = self._channels
        training = self.series.target(item)[:, : int(self.parts.train[item])]
        scaled = (training - mean[0, :channels, None]) / deviation[0, :channels, None]
        scaled = scaled.astype(np.float32).astype(np.float64)
        differences = np.abs(scaled[:, season:] - scaled[:, : max(0, scaled.shape[1] - season)])
        known = ~np.isnan(differences)
        counts = known.sum(1)
        sums = np.where(known, differences, 0.0).sum(1)
        return np.where((counts > 0) & (sums > 0), sums / np.maximum(1, counts), np.nan)

    def why_no_windows(self) -> str:
        """Return the sentence that no item has a training window."""
        return (
            f"no series has a training window of prediction_length = "
            f"{self.config.prediction_length} points and one before; the longest training part has "
            f"{int(self.parts.train.max())}"
        )

    def notes(self, channels: int, past: Sequence[str]) -> Iterator[str]:
        """Yield a sentence about each thing that a user should know of the series.

        `channels` and `past`, the columns known up to the present, are those that are read.
        """
        yield from self.series.notes
        columns = self.series.columns
        if len(columns.target) < channels:
            yield f"{self.name} has {len(columns.target)} of {channels} channels; others are masked"
        lacking = [name for name in past if name not in columns.past]
        if lacking:
            yield f"{self.name} has no {', '.join(lacking)}, known up to the present; all missing"
        unused = [*columns.static_numbers, *columns.static_categories]
        if unused:
            yield f"{self.name}: no network takes {', '.join(unused)} yet, which are constant"
        yield from self._missing_notes()
        yield from self._length_notes()
        if self.config.scaling == "none":
            yield from self._imprecise_notes()

    def _missing_notes(self) -> Iterator[str]:
        names = self.series.columns.target
        total = self.series.lengths * len(names)
        missing = int((total - self.series.present).sum())
        if not missing:
            return
        if len(self.series) == 1:
            holes = np.isnan(self.series.target(0)).sum(1)
            for name, count in zip(names, holes, strict=True):
                if count:
                    points = int(self.series.lengths[0])
                    yield f"{name}: {count} of {points} values are missing; they are masked"
            return
        items = int((self.series.present < total).sum())
        yield (
            f"{self.name}: {missing:,} of {int(total.sum()):,} values, in {items:,} of "
            f"{len(self.series):,} series, are missing; they are masked"
        )

    def _length_notes(self) -> Iterator[str]:
        windows, held_out = self.windows[Split.TRAIN], self.parts.is_held_out
        without = np.flatnonzero((windows.counts == 0) & ~held_out)
        needed = self.config.prediction_length + 1
        if len(without):
            shortest = int(without[self.parts.train[without].argmin()])
            yield (
                f"{len(without):,} of {len(self.series):,} series have no training window, such as "
                f"{self.series.item_id(shortest)} with {int(self.parts.train[shortest])} points in "
                f"training, where {needed} are needed"
            )
        padded = int(((windows.first < 0) & (windows.counts > 0)).sum())
        if padded:
            yield (
                f"{padded:,} of {len(self.series):,} series are shorter than context_length + "
                "prediction_length in training, and are padded on the left"
            )
        if held_out.any():
            yield f"{int(held_out.sum()):,} of {len(self.series):,} series are held out"

    def _imprecise_notes(self) -> Iterator[str]:
        """Yield a sentence about series whose variation fp32 cannot hold unscaled."""
        if len(self.series) == 1:
            values = self.series.target(0)
            largest = np.nanmax(np.abs(values), axis=1)
            lost = np.flatnonzero(largest > 1e5 * np.maximum(np.nanstd(values, axis=1), 1e-30))
            for channel in lost:
                name = self.series.columns.target[channel]
                yield f"{name}: fp32 loses much of its variation; use data.scaling=train"
            return
        statistics = self.series.statistics
        largest = np.maximum(np.abs(statistics("minimum")), np.abs(statistics("maximum")))
        lost = np.flatnonzero(largest > 1e5 * np.maximum(statistics("deviation"), 1e-30))
        if len(lost):
            name = self.series.item_id(int(lost[0]))
            more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
            yield f"{name}{more}: fp32 loses much of its variation; use data.scaling=train"


def _begins_early(windows: Windows) -> bool:
    """Return whether the context of some window begins before its item."""
    return bool((windows.first[windows.counts > 0] < 0).any())


def refuse_twice(parts: Sequence[Part]) -> None:
    """Raise UserError where two sources hold the same series."""
    names: dict[str, str] = {}
    for part in parts:
        digest = part.series.digest
        if digest in names:
            raise UserError(
                f"data.source: {names[digest]} and {part.name} hold the same; name one of them, "
                "with the weight of both"
            )
        names[digest] = part.name


def common_channels(parts: Sequence[Part]) -> list[str]:
    """Return the channels of the part that has most of them; others may lack some.

    Raises UserError where parts differ in the covariates.
    """
    first = parts[0]
    for part in parts[1:]:
        ours, theirs = first.series.columns.known, part.series.columns.known
        if ours != theirs:
            raise UserError(
                f"data.source: {first.name} has the covariates {', '.join(ours) or 'none'}, and "
                f"{part.name} {', '.join(theirs) or 'none'}; `forescale prepare` them with the "
                "same, in one order, by data.covariates"
            )
    widest = max(parts, key=lambda part: len(part.series.columns.target))
    return list(widest.series.columns.target)


def past_columns(parts: Sequence[Part]) -> list[str]:
    """Return the columns known up to the present that some part has; others lack their values."""
    return list(dict.fromkeys(name for part in parts for name in part.series.columns.past))
