"""The dataset: windows of series, the order in which a run sees them, and their contents."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from model.errors import UserError
from model.network_config import CALENDAR_SIZES, SeriesShape
from trainer.config.data_settings import DataConfig, SourceConfig
from trainer.data.arrays import Doubles, Floats, Indices
from trainer.data.augmentation import augmented
from trainer.data.cache import default_cache
from trainer.data.facts_of_parts import facts_of
from trainer.data.frequency import Frequency, commonest
from trainer.data.order import TrainingOrder
from trainer.data.part import Part, common_channels, past_columns, refuse_twice
from trainer.data.prepared import open_series, unused_settings
from trainer.data.series_facts import SeriesFacts
from trainer.data.windows import Split, WindowBatch

MAX_SCORED = 20_000
"""Windows of a split that are scored at most, unless data.score_every says otherwise."""


class Dataset:
    """The series of a configuration, split in time and standardised by their training parts.

    Items and windows are numbered through all sources.
    """

    def __init__(
        self,
        config: DataConfig,
        cache: Path | None = None,
        *,
        is_trained_on: bool = True,
        ahead: int = 0,
        past: Sequence[str] | None = None,
        channels: int = 0,
    ) -> None:
        """Open the sources; tables are prepared into the folder `cache`, by default runs/.data.

        Windows have the covariates of `ahead` points after their context, at least of those to
        forecast: a network sees as many as it was trained with. `past` names the columns known up
        to the present that they have, by default all that some source has. They have `channels` at
        least, and as many as any source has; what a series lacks is missing. Raises UserError where
        a source cannot be read, or no series is long enough to be trained on where it is to be.
        """
        self.config = config
        folder = cache or default_cache()
        sources = config.sources
        self.parts = [
            Part(open_series(source, config.table, folder), config, _split(source), ahead)
            for source in sources
        ]
        refuse_twice(self.parts)
        self._first_items = np.cumsum([0, *(len(part.series) for part in self.parts)])
        self.channels = common_channels(self.parts)
        self.channels += [f"channel {n + 1}" for n in range(len(self.channels), channels)]
        self.past = past_columns(self.parts) if past is None else list(past)
        """Columns known only up to the present; in a source that lacks one it is missing."""
        self._windows = {split: self._windows_of(split) for split in Split}
        if is_trained_on:
            self._check_lengths()
        self.season_lengths = self._season_lengths()
        self.notes = self._notes(is_trained_on)
        first = self.parts[0]
        embedded = config.calendar if config.calendar_encoding == "embedding" else []
        self.shape = SeriesShape(
            config.context_length,
            config.prediction_length,
            len(self.channels),
            first.covariates - len(embedded),
            tuple(CALENDAR_SIZES[name] for name in embedded),
            missing=config.augment.missing > 0
            or self.has_fewer_channels
            or any(part.has_missing for part in self.parts),
            many_series=self.items > 1,
            past=len(self.past),
        )

    @cached_property
    def order(self) -> TrainingOrder:
        """The order in which a run sees the training windows."""
        return TrainingOrder(self.parts, self.config)

    def _check_lengths(self) -> None:
        """Raise UserError where series are too short to be trained on."""
        if not any(part.has_full_windows for part in self.parts):
            raise UserError(self._too_short())
        for source, part in zip(self.config.sources, self.parts, strict=True):
            if not len(part.windows[Split.TRAIN]):
                raise UserError(f"data.source: {source.name}: {part.why_no_windows()}")

    def _windows_of(self, split: Split) -> Indices:
        """Return the number of windows of each source and all before it."""
        return np.cumsum([len(part.windows[split]) for part in self.parts])

    def _too_short(self) -> str:
        """Return the sentence that no series has a whole training window."""
        if all(part.parts.is_held_out.all() for part in self.parts):
            share = f"data.held_out: {self.config.held_out:g} of the series leaves none to train on"
            return f"{share}; hold fewer out"
        needed = self.config.shortest_context + self.config.least_horizon
        longest = max(int(part.parts.train.max()) for part in self.parts)
        return (
            f"data.context_length: no series is long enough: a window takes context_length + "
            f"prediction_length = {needed} rows, the longest training part has {longest}; shorten "
            "them, or give training more of the rows in data.split"
        )

    @property
    def has_fewer_channels(self) -> bool:
        """Whether some series have fewer channels than others."""
        return any(len(part.series.columns.target) < len(self.channels) for part in self.parts)

    def _notes(self, is_trained_on: bool) -> list[str]:
        """Return a sentence about each thing that a user should know of the series."""
        notes = [note for part in self.parts for note in part.notes(len(self.channels), self.past)]
        if is_trained_on and not self.windows(Split.TEST):
            given = [k for k in ("split_at", "split_last") if getattr(self.config, k) is not None]
            key = given[0] if given else "split"
            notes.append(f"data.{key} leaves no test window: the run will not be scored")
        paths = [source.path for source in self.config.sources if source.path is not None]
        return notes + unused_settings(paths, self.config.table)

    @cached_property
    def has_one_interval(self) -> bool:
        """Whether the season lengths are those of all items: they are given, or intervals equal."""
        freqs = {freq for part in self.parts for freq in part.series.freqs()}
        return self.config.season_lengths is not None or len(freqs) == 1

    def _season_lengths(self) -> list[int]:
        """Return the configured seasons, else those of the interval that most series have."""
        if self.config.season_lengths is not None:
            return self.config.season_lengths
        freq = commonest(freq for part in self.parts for freq in part.series.freqs())
        seasons = [] if freq is None else Frequency.parse(freq).seasons()
        return [season for season in seasons if season <= self.config.context_length]

    @property
    def items(self) -> int:
        """The number of items of all sources."""
        return int(self._first_items[-1])

    def item_id(self, item: int) -> str:
        """Return the name of an item."""
        source, within = self._source_of(item)
        return self.parts[source].series.item_id(within)

    def _source_of(self, item: int) -> tuple[int, int]:
        source = int(np.searchsorted(self._first_items, item, side="right")) - 1
        return source, item - int(self._first_items[source])

    @property
    def units(self) -> str:
        """The units that errors are measured in."""
        if self.config.scaling == "none":
            return "the source's units"
        return "units of the training part's deviation"

    @cached_property
    def digest(self) -> str:
        """A hash that changes with any value, timestamp, channel or window of the data."""
        total = hashlib.sha256(repr((self.channels, self.shape)).encode())
        for part in self.parts:
            total.update(part.series.digest.encode())
            for split in Split:
                total.update(part.windows[split].first.tobytes())
                total.update(part.windows[split].ends.tobytes())
        return total.hexdigest()

    @property
    def facts(self) -> SeriesFacts:
        """The facts that a forecaster keeps of the series."""
        return facts_of(self.parts, self.config, self.shape, self.channels, self.past)

    def windows(self, split: Split) -> int:
        """Return the number of windows in `split`."""
        return int(self._windows[split][-1])

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

    def draw(self, seed: int, start: int, stop: int, step: int = 1) -> Indices:
        """Return the numbers of the training windows that are the run's samples start..stop-1.

        These are among the samples of `step`, which only matters with data.context_lengths.
        """
        return self.order.samples(seed, start, stop, step).windows

    def samples(self, seed: int, start: int, stop: int, step: int = 1) -> WindowBatch:
        """Return the run's samples start..stop-1, which are among those of `step`, augmented."""
        samples = self.order.samples(seed, start, stop, step)
        context = samples.context_length
        batch = self.batch(Split.TRAIN, samples.windows, context_length=context)
        if self.config.augment.any:
            values = np.concatenate([batch.context, batch.target], axis=1)
            values = augmented(values, context, samples.random, self.config.augment)
            batch = replace(batch, context=values[:, :context], target=values[:, context:])
        return batch if samples.horizons is None else batch.up_to(samples.horizons)

    def _before(self, split: Split, source: int) -> int:
        """Return the number of windows of all sources before one."""
        return int(self._windows[split][source - 1]) if source else 0

    def _by_source(self, split: Split, index: Indices) -> list[tuple[int, Indices, Indices]]:
        """Return for each source its number, the rows of `index` that are its own, and these."""
        source = np.searchsorted(self._windows[split], index, side="right")
        answer = []
        for number in np.unique(source).tolist():
            rows = np.flatnonzero(source == number)
            answer.append((number, rows, index[rows] - self._before(split, number)))
        return answer

    def items_of(self, split: Split, index: Indices) -> Indices:
        """Return the items that windows are of."""
        items = np.empty(len(index), np.int64)
        for source, rows, own in self._by_source(split, index):
            items[rows] = self.parts[source].windows[split].locate(own)[0]
            items[rows] += self._first_items[source]
        return items

    def batch(
        self,
        split: Split,
        index: Indices,
        size: int | None = None,
        *,
        context_length: int | None = None,
    ) -> WindowBatch:
        """Return the windows numbered `index`, padded to `size` with a window of weight 0.

        Their contexts have the last `context_length` points, by default all.
        """
        real = len(index)
        size = size or real
        if real < size:
            index = np.concatenate([index, np.zeros(size - real, np.int64)])
        context = context_length or self.config.context_length
        values, covariates, past = self._contents(split, index, context)
        weight = (np.arange(size) < real).astype(np.float32)
        return WindowBatch(
            values[:, :context],
            values[:, context:],
            covariates,
            weight,
            past=past if self.past else None,
        )

    def _contents(
        self, split: Split, index: Indices, context: int
    ) -> tuple[Floats, Floats, Floats]:
        """Return windows' values [B, L + H, C], covariates [B, L + A, F] and past columns.

        The latter are [B, L, P], L = `context`.
        """
        columns = self.parts[0].series.columns
        is_as_read = len(columns.target) == len(self.channels) and columns.past == tuple(self.past)
        if len(self.parts) == 1 and is_as_read:
            return self.parts[0].batch(split, index, context)
        length = context + self.config.prediction_length
        values = np.full((len(index), length, len(self.channels)), np.nan, np.float32)
        width = self.shape.covariates + len(self.shape.calendar)
        covariates = np.empty((len(index), context + self.parts[0].ahead, width), np.float32)
        past = np.full((len(index), context, len(self.past)), np.nan, np.float32)
        for source, rows, own in self._by_source(split, index):
            part = self.parts[source]
            targets, covariates[rows], seen = part.batch(split, own, context)
            values[rows, :, : targets.shape[2]] = targets
            for column, name in enumerate(part.series.columns.past):
                if name in self.past:
                    past[rows, :, self.past.index(name)] = seen[:, :, column]
        return values, covariates, past

    def window_times(self, split: Split, index: int) -> pd.DatetimeIndex | None:
        """Return the timestamps of a window's context and future, where the source has them."""
        ((source, _, own),) = self._by_source(split, np.array([index]))
        return self.parts[source].window_times(split, int(own[0]))

    def scales(self, items: Indices) -> tuple[Doubles, Doubles]:
        """Return the means and the deviations [I, C] that items' channels are standardised by."""
        mean, deviation = np.zeros((2, len(items), len(self.channels)))
        deviation += 1.0
        for row, item in enumerate(items):
            source, within = self._source_of(int(item))
            own = self.parts[source].scaling.of(np.array([within]))
            count = len(self.parts[source].series.columns.target)
            mean[row, :count], deviation[row, :count] = (of[0, :count] for of in own)
        return mean, deviation

    def intervals(self, items: Indices) -> list[str | None]:
        """Return the interval of each item's points, None for points without times."""
        freqs = [part.series.freqs() for part in self.parts]
        places = (self._source_of(int(item)) for item in items)
        return [freqs[source][within] for source, within in places]

    def seasons(self, items: Indices) -> Indices:
        """Return each item's own season in points: the first of data.season_lengths, or 1."""
        if self.config.season_lengths is not None:
            own = self.config.season_lengths[:1] or [1]
            return np.full(len(items), own[0])
        seasons = [
            self.parts[source].season(within)
            for source, within in (self._source_of(int(item)) for item in items)
        ]
        return np.array(seasons, np.int64)

    def seasonal_scale(self, items: Indices) -> Doubles:
        """Return [I, C]: the mean absolute seasonal difference of training parts, MASE's divisor.

        It is NaN for a channel that has none, or that its season repeats exactly.
        """
        scales = np.full((len(items), len(self.channels)), np.nan)
        for row, (item, season) in enumerate(zip(items, self.seasons(items), strict=True)):
            source, within = self._source_of(int(item))
            own = self.parts[source].seasonal_scale(within, int(season))
            scales[row, : len(own)] = own
        return scales


def _split(source: SourceConfig) -> list[float] | None:
    """Return a source's own parts; synthetic series are all for training."""
    if source.split is None and source.synthetic is not None:
        return [1.0, 0.0, 0.0]
    return source.split
