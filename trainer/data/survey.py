"""What a table of series seems to hold: its times, its series, and what can be forecast."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from model.errors import UserError
from trainer.config.settings import DataConfig
from trainer.data.tables import (
    find_time_column,
    is_row_number,
    mostly_numbers,
    parse_times,
    read_frame,
)

ID_NAMES = (
    "unique_id",
    "item_id",
    "series_id",
    "id",
    "series",
    "item",
    "sku",
    "store",
    "sensor",
    "station",
    "symbol",
    "ticker",
    "name",
)
"""Usual names of the column that names the series, the likelier ones first."""

CALENDAR_NAMES = ("year", "quarter", "month", "week", "weekday", "day", "hour", "minute")
"""Columns that repeat what the timestamps say."""

SAMPLE = 200
"""Values of a column by which it is taken for timestamps."""


@dataclass(frozen=True)
class Survey:
    """What was found in a table."""

    source: str
    time_column: str | None
    id_column: str | None
    targets: list[str]
    others: list[str]
    """Columns without a role."""
    rows: int
    series: int
    length: int
    """Rows of the series in the middle, by length."""
    interval: pd.Timedelta | None
    """Sampling interval, where there are timestamps."""


def survey(source: str) -> Survey:
    """Look at a table. Raises UserError where it cannot be read, or its series be told apart."""
    frame, name = read_frame(DataConfig(source=source))
    times_in = _time_column(frame, name)
    times = None if times_in is None else parse_times(frame[times_in], name)
    series_in = _id_column(frame, times_in, times, name)
    targets = _targets(frame, times_in, series_in)
    if not targets:
        raise UserError(f"{name} has no numeric column to forecast")
    columns = [str(column) for column in frame.columns if not is_row_number(str(column))]
    used = {times_in, series_in, *targets}
    groups = np.zeros(len(frame), np.int64) if series_in is None else _codes(frame[series_in])
    lengths = np.bincount(groups)
    return Survey(
        source,
        times_in,
        series_in,
        targets,
        [column for column in columns if column not in used],
        len(frame),
        len(lengths),
        int(np.median(lengths)),
        None if times is None else _interval(times, groups),
    )


def _time_column(frame: pd.DataFrame, name: str) -> str | None:
    """Return the column of timestamps: one with a usual name, else the first that holds some."""
    usual = find_time_column(frame, DataConfig(), name)
    if usual is not None and not pd.api.types.is_numeric_dtype(frame[usual]):
        return usual
    for column in frame.columns:
        values = frame[column].dropna().iloc[:SAMPLE]
        if pd.api.types.is_numeric_dtype(values) or values.empty:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if pd.to_datetime(values, errors="coerce", utc=True).notna().all():
                return str(column)
    return None


def _id_column(
    frame: pd.DataFrame, times_in: str | None, times: pd.DatetimeIndex | None, name: str
) -> str | None:
    """Return the column that names the series; None where the table is one series."""
    if times is not None and times.is_monotonic_increasing and times.is_unique:
        return None
    for column in _candidates(frame, times_in, with_numbers=times is not None):
        codes = _codes(frame[column])
        if times is None:
            # Without timestamps a name's rows are taken for a series if they stand together.
            if 0 < (np.diff(codes) != 0).sum() == codes.max():
                return column
        elif codes.max() + 1 < len(codes) and _ascend(times, codes):
            return column
    if times is None or times.is_unique:
        return None
    raise UserError(
        f"{name}: timestamps of {times_in} repeat, and no single column tells the series apart; "
        "join the columns that do into one"
    )


def _candidates(frame: pd.DataFrame, times_in: str | None, *, with_numbers: bool) -> Iterator[str]:
    """Yield columns without gaps that may name series: by usual names, texts, whole numbers."""
    columns = [str(c) for c in frame.columns if c != times_in and frame[c].notna().all()]
    usual = [c for c in columns if c.lower() in ID_NAMES]
    yield from sorted(usual, key=lambda column: ID_NAMES.index(column.lower()))
    yield from (c for c in columns if not pd.api.types.is_numeric_dtype(frame[c]))
    if with_numbers:
        yield from (c for c in columns if frame[c].dtype.kind in "iu" and not is_row_number(c))


def _codes(column: pd.Series) -> npt.NDArray[np.int64]:
    """Return of each row the number of its value, by first appearance."""
    return np.asarray(pd.factorize(column)[0], np.int64)


def _ascend(times: pd.DatetimeIndex, codes: npt.NDArray[np.int64]) -> bool:
    """Return whether the times of each group ascend without repetition."""
    order = np.argsort(codes, kind="stable")
    steps, same = np.diff(times.asi8[order]), np.diff(codes[order]) == 0
    return bool((steps[same] > 0).all())


def _interval(times: pd.DatetimeIndex, groups: npt.NDArray[np.int64]) -> pd.Timedelta | None:
    """Return the median interval between the first series' timestamps."""
    first = times.asi8[groups == 0]
    return pd.Timedelta(np.median(np.diff(first)), unit=times.unit) if len(first) > 1 else None


def _targets(frame: pd.DataFrame, times_in: str | None, series_in: str | None) -> list[str]:
    """Return the columns of measurements: numbers that vary, but for counters and the calendar."""
    numbers = [
        str(column)
        for column in frame.columns
        if column not in (times_in, series_in)
        and not is_row_number(str(column))
        and (frame[column].dtype.kind in "iuf" or _is_broken(frame[column]))
    ]
    varying = [column for column in numbers if _varies(frame[column])]
    measured = [column for column in varying if not _is_known(frame[column])]
    return measured or varying


def _is_broken(column: pd.Series) -> bool:
    """Return whether a column of text holds numbers but for a few words: reading it says where."""
    is_text = column.dtype == object or pd.api.types.is_string_dtype(column)
    return bool(is_text and mostly_numbers(column))


def _varies(column: pd.Series) -> bool:
    return column.nunique() > 1


def _is_known(column: pd.Series) -> bool:
    """Return whether a column holds flags, a count of rows, or a part of the timestamp."""
    values = column.dropna()
    is_flag = column.dtype.kind in "iuf" and set(values.unique()[:3]) <= {0, 1}
    is_count = column.dtype.kind in "iu" and bool((values.diff().iloc[1:] == 1).all())
    return is_flag or is_count or str(column.name).lower() in CALENDAR_NAMES
