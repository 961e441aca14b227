"""The parts of series: cuts in points or in time, and series that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from model.errors import UserError
from trainer.config.data_settings import DataConfig
from trainer.data.arrays import Indices
from trainer.data.frequency import DAY, Frequency
from trainer.data.series_source import SeriesSource


@dataclass(frozen=True)
class Parts:
    """The points at which the parts of each item end; what is later is in no part."""

    train: Indices
    validation: Indices
    test: Indices
    is_held_out: npt.NDArray[np.bool_]


def parts_of(
    series: SeriesSource, config: DataConfig, split: Sequence[float] | None = None
) -> Parts:
    """Return the parts of a set's items.

    Raises UserError where the only item has fewer points than the parts, or a cut in time is no
    time.
    """
    lengths = series.lengths if config.rows is None else np.minimum(series.lengths, config.rows)
    if config.split_at is not None and split is None:
        times = [_time(text, series) for text in config.split_at]
        if times[1] < times[0]:
            raise UserError(f"data.split_at: {config.split_at[1]} is before {config.split_at[0]}")
        train, validation = (_points_before(time, series, lengths) for time in times)
        test = lengths
    elif config.split_last is not None and split is None:
        last_validation, last_test = config.split_last
        validation = np.maximum(0, lengths - last_test)
        train, test = np.maximum(0, validation - last_validation), lengths
    else:
        train, validation, test = _by_points(series, lengths, split or config.split)
    return Parts(train, validation, test, held_out(series, config.held_out))


def _by_points(
    series: SeriesSource, lengths: Indices, split: Sequence[float]
) -> tuple[Indices, Indices, Indices]:
    train, validation, test = split
    if max(split) <= 1:
        return (
            (lengths * train).astype(np.int64),
            lengths - (lengths * test).astype(np.int64),
            lengths,
        )
    ends = int(train), int(train + validation), int(train + validation + test)
    if (lengths < ends[2]).all():
        longest = int(lengths.argmax())
        raise UserError(
            f"data.split: the parts add to {ends[2]} rows, but {series.item_id(longest)} has "
            f"{lengths[longest]}"
        )
    cut = tuple(np.minimum(end, lengths) for end in ends)
    return cut[0], cut[1], cut[2]


def held_out(series: SeriesSource, share: float) -> npt.NDArray[np.bool_]:
    """Return which items are held out: about a share of them, chosen by a hash of their names."""
    if share == 0:
        return np.zeros(len(series), bool)
    hashes = pd.util.hash_array(series.item_ids())
    return np.asarray(hashes < share * 2.0**64)


def _time(text: str, series: SeriesSource) -> np.datetime64:
    """Return a cut as a time as the set's starts are."""
    try:
        stamp = pd.Timestamp(text)
    except ValueError:
        raise UserError(f"data.split_at: {text!r} is no time such as 2024-01-31") from None
    zone = series.timezone
    if stamp.tzinfo is None:
        stamp = stamp if zone is None else stamp.tz_localize(zone)
    elif zone is None:
        raise UserError(
            f"data.split_at: {text!r} names an offset, and the times of {series.name} do not"
        )
    if stamp.tzinfo is not None:
        stamp = stamp.tz_convert("UTC").tz_localize(None)
    return stamp.to_datetime64().astype("datetime64[us]")


def _points_before(cut: np.datetime64, series: SeriesSource, lengths: Indices) -> Indices:
    """Return how many points of each item are before a time. Raises UserError for one without."""
    starts, freqs = series.starts, series.freqs()
    known = np.array([freq is not None for freq in freqs])
    without = np.flatnonzero(np.isnat(starts) | ~known & (lengths > 1))
    if len(without):
        raise UserError(
            f"data.split_at: {series.item_id(int(without[0]))} has no times to be cut at; use "
            "data.split"
        )
    answer = np.zeros(len(series), np.int64)
    names = np.array([freq or "D" for freq in freqs])
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        frequency = Frequency.parse(name)
        local = cut
        if series.timezone is not None and not frequency.has_clock:
            stamp = pd.Timestamp(cut, tz="UTC").tz_convert(series.timezone)
            local = stamp.tz_localize(None).to_datetime64().astype("datetime64[us]")
        answer[rows] = _count_before(local, frequency, starts[rows])
    return np.clip(answer, 0, lengths)


def _count_before(
    cut: np.datetime64, frequency: Frequency, starts: npt.NDArray[np.datetime64]
) -> Indices:
    """Return how many points of unending series that begin at `starts` are before a time."""
    since = (cut - starts.astype("datetime64[us]")).astype(np.int64)
    if frequency.kind == "fixed":
        return np.maximum(0, -(-since // frequency.count))
    step = frequency.count * (28 * DAY if frequency.kind == "months" else DAY)
    counts = []
    for start, span in zip(starts, since, strict=True):
        most = max(0, int(span // step) + 2)
        counts.append(np.searchsorted(frequency.times(start, 0, most), cut))
    return np.array(counts, np.int64)
