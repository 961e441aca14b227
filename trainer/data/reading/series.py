"""One series: its rows are brought into order, onto a regular grid of time, and become an item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from trainer.config.table_settings import TableConfig
from trainer.data.arrays import Doubles, Indices, Moments
from trainer.data.frequency import DAY, HOUR, Frequency, Grid, find_grid
from trainer.data.reading.problems import Problems
from trainer.data.set_format import Item

SPARSEST = 50
"""Points that a series' grid may have for each row; more come of a wrong time."""


@dataclass(frozen=True)
class SeriesRows:
    """The rows of one series as they stand in a table."""

    item_id: str
    where: str
    """The series' name in sentences."""
    rows: Indices
    """Number of each row in its table [T], from 1."""
    times: Moments | None
    """Time of each row [T]; None where rows are only numbered."""
    numbered: bool
    """Whether `times` are whole numbers that count the points."""
    is_utc: bool
    target: Doubles
    """Channels [T, C]."""
    known: Doubles
    """Covariates known in advance [T, F]."""
    past: Doubles
    """Covariates known up to the present [T, P]."""
    static_numbers: tuple[float, ...] = ()
    static_categories: tuple[str, ...] = ()
    known_names: tuple[str, ...] = ()

    def shown(self, row: np.int64) -> str:
        """Return a row's time as it stands in the table."""
        assert self.times is not None
        time = self.times[row]
        return str(time.astype(np.int64) if self.numbered else pd.Timestamp(time))


def make_item(
    series: SeriesRows, config: TableConfig, problems: Problems, *, dtype: str, alone: bool
) -> Item | None:
    """Return the item of a series' rows; None where nothing of it is left.

    `config` has the zone of its times, and the interval of a series of one row. `alone` says that
    nothing tells series apart: the rows may then be of several. Raises UserError by the policy of
    `problems`.
    """
    if not np.isfinite(series.target).any():
        problems.note("series without a value, left out", series.where)
        return None
    _check_known(series, problems)
    if series.times is None:
        known = _filled(series.known, series, problems)
        return _item(series, None, None, series.target, known, series.past, dtype)
    times, timezone = series.times, config.timezone
    has_clock = not series.numbered and _median_step(times) < DAY
    if has_clock and timezone is not None and not series.is_utc:
        times = _localised(times, timezone, series, problems)
    elif not has_clock and timezone is not None and series.is_utc:
        local = pd.DatetimeIndex(times, tz="UTC").tz_convert(timezone)
        times = local.tz_localize(None).to_numpy().astype("datetime64[us]")
    order = np.argsort(times, kind="stable")
    order = order[~np.isnat(times[order])]
    if (np.diff(order) < 0).any():
        problems.note("series whose rows were not in order of time, sorted", series.where)
    order = order[_first_of_each(times, order, series, problems, alone=alone)]
    times = times[order]
    grid = _number_grid(times) if series.numbered else find_grid(times)
    if grid is None and len(times) > 1:
        mend = "resample it, or take its rows as they come with data.time_column=none"
        if series.is_utc and timezone is None:
            zone = (
                "name the zone that its days and months are of, as in data.timezone=Europe/Berlin"
            )
            mend = f"{zone}, {mend}"
        problems.lose(
            "series without a regular interval, left out",
            f"data.source: {series.where} has times at no regular interval, such as "
            f"{series.shown(order[0])} and {series.shown(order[1])}",
            mend=mend,
        )
        return None
    return _on_grid(series, order, times, grid, config, problems, dtype)


def _check_known(series: SeriesRows, problems: Problems) -> None:
    """Report cells of covariates that are missing, though they are known in advance."""
    holes = np.isnan(series.known)
    if holes.any():
        row, column = np.argwhere(holes)[0]
        problems.lose(
            "series with missing cells of covariates, which keep the value before",
            f"data.covariates: {series.where}, row {series.rows[row]}: "
            f"{series.known_names[column]} is missing, but covariates must be known for every row",
            mend="fill it, or leave the column out",
        )


def _median_step(times: Moments) -> float:
    """Return the median of the microseconds between times, infinite for fewer than two."""
    known = np.sort(times[~np.isnat(times)])
    return float(np.median(np.diff(known.astype(np.int64)))) if len(known) > 1 else float("inf")


def _localised(times: Moments, timezone: str, series: SeriesRows, problems: Problems) -> Moments:
    """Return local times of a zone as UTC.

    Of an hour that comes twice, when clocks go back, the first time that a row has is summer's and
    the second is winter's.
    """
    local = pd.DatetimeIndex(times)
    flags = np.ones(len(local), bool)
    summer = local.tz_localize(timezone, ambiguous=flags, nonexistent="NaT")
    winter = local.tz_localize(timezone, ambiguous=~flags, nonexistent="NaT")
    utc = summer.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[us]")
    later = winter.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[us]")
    second = (utc != later) & local.duplicated()
    utc = np.where(second, later, utc)
    skipped = np.flatnonzero(np.isnat(utc) & ~np.isnat(times))
    if len(skipped):
        problems.lose(
            f"times that the clocks of {timezone} skip, left out",
            f"data.timezone: {series.where}, row {series.rows[skipped[0]]}: there is no "
            f"{series.shown(skipped[0])} in {timezone}",
            mend="name the zone that the times are of",
            count=len(skipped),
        )
    return utc


def _first_of_each(
    times: Moments, order: Indices, series: SeriesRows, problems: Problems, *, alone: bool
) -> Indices:
    """Return which of the rows `order` come first at their time; report the others."""
    sorted_times = times[order]
    repeats = np.flatnonzero(sorted_times[1:] == sorted_times[:-1]) + 1
    if not len(repeats):
        return np.arange(len(order))
    numbers = np.concatenate([series.target, series.known, series.past], axis=1)
    here, before = numbers[order[repeats]], numbers[order[repeats - 1]]
    differ = repeats[~((here == before) | (np.isnan(here) & np.isnan(before))).all(1)]
    if len(differ):
        at = differ[0]
        time = series.shown(order[at])
        mend, is_wrong = "correct one of them", False
        if not series.is_utc and len(differ) < 60 and _may_be_clock_change(times[order[at]]):
            mend = "if clocks went back then, name the zone, as in data.timezone=Europe/Berlin"
        elif alone:
            mend = "several series? Name the column that tells them apart as data.id_column"
        else:
            is_wrong = True
        first, second = sorted((int(series.rows[order[at - 1]]), int(series.rows[order[at]])))
        problems.lose(
            "rows at a time that another row of the series has, left out",
            f"data.time_column: {series.where}, rows {first} and {second} are both of {time}, and "
            "differ",
            mend=mend,
            count=len(differ),
            is_wrong=is_wrong,
        )
    same = len(repeats) - len(differ)
    if same:
        problems.note(
            "rows that repeat another, left out",
            f"row {series.rows[order[repeats[0]]]} of {series.where}",
            same,
        )
    keep = np.ones(len(order), bool)
    keep[repeats] = False
    return np.flatnonzero(keep)


AUTUMN, SPRING = (4, 9, 10, 11), (3, 4, 9, 10)
"""Months in which clocks go back, and forward, somewhere."""


def _may_be_clock_change(time: np.datetime64, months: tuple[int, ...] = AUTUMN) -> bool:
    """Return whether clocks are changed somewhere at a time: by night, on a Sunday."""
    stamp = pd.Timestamp(time)
    return stamp.day_of_week == 6 and stamp.hour <= 3 and stamp.month in months


def _tell_of_skipped_hour(
    series: SeriesRows, times: Moments, grid: Grid, problems: Problems
) -> None:
    """Note the first place where a series without a zone lacks just the hour that clocks skip."""
    if grid.frequency.kind != "fixed" or grid.frequency.count > HOUR or series.numbered:
        return
    steps = np.diff(times.astype("datetime64[us]").astype(np.int64))
    for at in np.flatnonzero(steps == grid.frequency.count + HOUR) + 1:
        if _may_be_clock_change(times[at], SPRING):
            problems.note(
                "series that lack the hour which clocks skip in spring: their times may be of a "
                "zone, as in data.timezone=Europe/Berlin, and none is missing then",
                f"{series.where}, before {pd.Timestamp(times[at])}",
            )
            return


def _number_grid(numbers: Moments) -> Grid | None:
    """Return the grid of ascending whole numbers: a point for each."""
    whole = numbers.astype(np.int64)
    return Grid(Frequency("fixed", 1), whole - whole[0]) if len(whole) else None


def _on_grid(
    series: SeriesRows,
    order: Indices,
    times: Moments,
    grid: Grid | None,
    config: TableConfig,
    problems: Problems,
    dtype: str,
) -> Item | None:
    """Return the item whose points are the rows `order`, at their places on a grid."""
    position = np.zeros(len(order), np.int64) if grid is None else grid.position
    points = int(position[-1]) + 1
    if points > SPARSEST * len(order) + 1000:
        far = int(np.argmax(np.diff(position)))
        problems.lose(
            "series with a gap of more points than they have, left out",
            f"data.time_column: {series.where} has nothing between {series.shown(order[far])} and "
            f"{series.shown(order[far + 1])}, {points - len(order):,} points",
            mend="correct the times, or divide the series",
        )
        return None
    given = None if config.freq is None else Frequency.parse(config.freq)
    if given is not None and grid is not None and given.length != grid.frequency.length:
        problems.note(
            f"series whose times have another interval than data.freq={config.freq}, which is for "
            "series that do not state theirs",
            series.where,
        )
    if points > len(order):
        problems.note(
            "series with missing rows, filled in as missing values",
            f"{series.where}, {points - len(order):,} of {points:,} points",
        )
        if grid is not None and config.timezone is None and not series.is_utc:
            _tell_of_skipped_hour(series, times, grid, problems)
    if grid is not None and grid.moved:
        problems.note("series with times beside their interval, moved to it", series.where)

    def scattered(numbers: Doubles) -> Doubles:
        if points == len(order):
            return numbers[order]
        full = np.full((points, numbers.shape[1]), np.nan)
        full[position] = numbers[order]
        return full

    known = _filled(scattered(series.known), series, problems)
    target, past = scattered(series.target), scattered(series.past)
    if series.numbered:
        return _item(series, None, None, target, known, past, dtype)
    if grid is not None:
        freq = grid.frequency.name(times[0])
    elif config.freq is not None:
        freq = Frequency.named(config.freq, times[0])
    else:
        freq = None
        problems.note(
            "series of one time, whose interval is taken to be that of most series, or days where "
            "there is none; set data.freq",
            series.where,
        )
    return _item(series, times[0], freq, target, known, past, dtype)


def _filled(known: Doubles, series: SeriesRows, problems: Problems) -> Doubles:
    """Return covariates known in advance with the last value where one is missing."""
    holes = np.isnan(known)
    if not holes.any():
        return known
    frame = pd.DataFrame(known).ffill().bfill()
    problems.note(
        "series whose covariates keep the value before in missing rows",
        f"{series.where}, {int(holes.sum()):,} values",
    )
    return frame.fillna(0.0).to_numpy()


def _item(
    series: SeriesRows,
    start: np.datetime64 | None,
    freq: str | None,
    target: Doubles,
    known: Doubles,
    past: Doubles,
    dtype: str,
) -> Item:
    """Return an item of arrays [T, C], which it holds channel by channel."""
    return Item(
        series.item_id,
        start,
        freq,
        np.ascontiguousarray(target.T, dtype),
        np.ascontiguousarray(known.T, dtype),
        np.ascontiguousarray(past.T, dtype),
        series.static_numbers,
        series.static_categories,
    )
