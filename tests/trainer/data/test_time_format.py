"""What a column of times is, by the ways that people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, hourly, prepared
from trainer.data.reading.time_format import TimeKind, decide, parse

DAYS = pd.date_range("2023-01-01", periods=60, freq="D")
HOURS = pd.date_range("2023-03-01", periods=300, freq="h")
MONTHS = pd.date_range("1985-01-01", periods=40, freq="MS")


def read(column: Any, **options: Any) -> tuple[pd.DatetimeIndex, bool]:
    """Return the times of a column."""
    column = pd.Series(column)
    return parse(column, decide(column, "a.csv, column when", **options))


@pytest.mark.parametrize(
    "pattern",
    [
        "%Y-%m-%d",
        "%Y/%m/%d",
        "%Y.%m.%d",
        "%Y%m%d",
        "%d/%m/%Y",
        "%m/%d/%Y",
        "%d.%m.%Y",
        "%d-%m-%Y",
        "%d.%m.%y",
        "%d-%b-%Y",
        "%d %b %Y",
        "%d %B %Y",
        "%b %d, %Y",
        "%B %d %Y",
    ],
)
def test_days_are_read_however_they_are_written(pattern: str) -> None:
    times, is_utc = read(DAYS.strftime(pattern))
    assert times.equals(DAYS.astype(times.dtype)) and not is_utc


@pytest.mark.parametrize(
    "clock",
    [" %H:%M", "T%H:%M:%S", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S%p", " %H", "T%H"],
)
@pytest.mark.parametrize("day", ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y"])
def test_hours_are_read_however_they_are_written(day: str, clock: str) -> None:
    times, is_utc = read(HOURS.strftime(day + clock))
    assert times.equals(HOURS.astype(times.dtype)) and not is_utc


@pytest.mark.parametrize("zone", ["Z", "+00:00", "+0000", " UTC", " +00:00"])
def test_zones_are_converted_to_utc(zone: str) -> None:
    times, is_utc = read([f"{text}{zone}" for text in HOURS.strftime("%Y-%m-%d %H:%M:%S")])
    assert is_utc and times.equals(HOURS.astype(times.dtype))


def test_offsets_may_change_with_the_clocks() -> None:
    local = pd.date_range("2024-03-30", "2024-04-01", freq="h", tz="Europe/Berlin")
    times, is_utc = read([time.isoformat() for time in local])
    assert is_utc and (times == local.tz_convert("UTC").tz_localize(None)).all()


def test_times_with_and_without_a_clock_are_mixed() -> None:
    times, _ = read(["2023-01-01", "2023-01-01 12:00:00", "2023-01-02"])
    assert times.tolist() == [
        pd.Timestamp(t) for t in ("2023-01-01", "2023-01-01 12", "2023-01-02")
    ]


def test_the_24th_hour_is_the_next_day() -> None:
    times, _ = read(["2023-01-31 23:00", "2023-01-31 24:00", "2023-02-01 01:00"])
    assert times[1] == pd.Timestamp("2023-02-01")


@pytest.mark.parametrize("pattern", ["%Y-%m", "%Y/%m", "%m/%Y", "%b %Y", "%b-%y", "%Y%m", "%B %Y"])
def test_months(pattern: str) -> None:
    times, _ = read(MONTHS.strftime(pattern))
    assert times.equals(MONTHS.astype(times.dtype))


@pytest.mark.parametrize("text", ["{0}Q{1}", "{0}-Q{1}", "{0} q{1}", "Q{1} {0}", "Q{1}/{0}"])
def test_quarters(text: str) -> None:
    times, _ = read(
        [text.format(year, quarter) for year in (1950, 1951) for quarter in (1, 2, 3, 4)]
    )
    assert times.tolist() == pd.date_range("1950-01-01", periods=8, freq="QS").tolist()


def test_iso_weeks() -> None:
    times, _ = read(["2018-W01", "2018-W02", "2020W53"])
    assert times.strftime("%Y-%m-%d").tolist() == ["2018-01-01", "2018-01-08", "2020-12-28"]


@pytest.mark.parametrize("kind", [int, str, float])
def test_years_also_before_pandas_nanoseconds(kind: type) -> None:
    times, _ = read([kind(year) for year in range(1650, 1700)])
    assert times[0].year == 1650 and times[-1].year == 1699 and times[0].month == 1


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_epochs_are_told_by_their_size(unit: str) -> None:
    numbers = HOURS.as_unit("ns").asi8 // {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}[unit]
    column = pd.Series(numbers)
    form = decide(column, "a.csv, column when")
    assert form.note is not None and f"data.time_unit={unit}" in form.note
    times, is_utc = parse(column, form)
    assert is_utc and (times == HOURS).all()
    assert (read(numbers, time_unit=unit)[0] == HOURS).all()


def test_a_counter_numbers_its_rows() -> None:
    assert decide(pd.Series(range(200)), "a.csv").kind is TimeKind.NUMBERED


def test_periods_begin_at_their_start() -> None:
    periods = pd.period_range("1990-01", periods=12, freq="M")
    for column in (pd.Series(periods), pd.Series(list(periods), dtype=object)):
        assert (
            read(column)[0].tolist() == pd.date_range("1990-01-01", periods=12, freq="MS").tolist()
        )


def test_a_format_that_is_given_is_used() -> None:
    times, _ = read(["01|02|23", "02|02|23"], date_format="%d|%m|%y")
    assert times.tolist() == [pd.Timestamp("2023-02-01"), pd.Timestamp("2023-02-02")]


def test_a_missing_time_stays_missing() -> None:
    times, _ = read(["2023-01-01", None, "2023-01-03"])
    assert times.isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2008-02-01", periods=12, freq="MS"),  # as days of January: both regular
        pd.DatetimeIndex(pd.date_range("2024-01-01", periods=11 * 24, freq="h")),
        pd.DatetimeIndex([pd.Timestamp(year, 1, 2) for year in range(2001, 2020)]),
    ],
    ids=["months", "eleven days", "years"],
)
@pytest.mark.parametrize("pattern", ["%d/%m/%Y %H:%M", "%d-%m-%Y %H:%M"])
def test_days_that_could_be_months_are_asked_for(times: pd.DatetimeIndex, pattern: str) -> None:
    with pytest.raises(UserError, match="could begin with the month or with the day") as caught:
        read(times.strftime(pattern))
    assert f"data.date_format='{pattern}'" in str(caught.value)


def test_days_first_are_known_by_a_13th() -> None:
    column = pd.Series(DAYS.strftime("%d/%m/%Y"))
    assert decide(column, "a.csv").pattern == "%d/%m/%Y"
    later = pd.date_range("2023-01-13", periods=30, freq="D").strftime("%d/%m/%Y")
    assert decide(pd.Series(later), "a.csv").pattern == "%d/%m/%Y"


@pytest.mark.parametrize("column", [["Total", "x"], [1.5, 2.5], [None, None]])
def test_what_is_no_time_is_refused(column: list[Any]) -> None:
    with pytest.raises(UserError, match=r"data.time_column: a.csv"):
        decide(pd.Series(column), "a.csv, column when")


def test_a_word_among_times_is_missing_from_them() -> None:
    column = pd.Series([*DAYS.strftime("%d/%m/%Y"), "Total"])
    times, _ = parse(column, decide(column, "a.csv"))
    assert np.flatnonzero(times.isna()).tolist() == [60]


@pytest.mark.parametrize("pattern", ["%Y-%W", "%Y-%U", "%G-W%V", "%YQ%Q", "%Y-%", "%k"])
def test_a_format_by_which_no_time_can_be_read_is_refused(pattern: str) -> None:
    with pytest.raises(
        UserError, match=r"data\.date_format: .*; weeks such as 2024-W05 and quarter"
    ):
        read(["2024-05", "2024-06"], date_format=pattern)


@pytest.mark.parametrize(
    "names", ["shop-{:02}", "SKU-{:02}", "store {:02}", "site/{:02}", "a.{:02}"]
)
def test_names_with_numbers_are_no_times(tmp_path: Path, names: str) -> None:
    frames = [hourly(40).assign(place=names.format(n)) for n in range(1, 4)]
    frame = pd.concat(frames, ignore_index=True)[["place", "time", "load"]]
    frame = frame.rename(columns={"time": "day"})  # a name that says nothing
    series = prepared(tmp_path, csv(tmp_path, frame), targets=["load"], id_column="place")
    assert series.item_ids().tolist() == [names.format(n) for n in range(1, 4)]
    assert series.freq(0) == "h"
