"""Days, weeks and months whose times are written with the offset of a zone, over clock changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, prepared
from tests.trainer.data.test_rows_of_series import times_of

ZONES = ("Europe/Berlin", "America/New_York", "Pacific/Auckland", "UTC", "Asia/Kolkata")


def written(times: pd.DatetimeIndex, how: str) -> Any:
    if how == "timestamps":
        return times
    if how == "Z":
        return [f"{day:%Y-%m-%dT%H:%M:%S}Z" for day in times]
    if how == "day first":
        return [f"{day:%d.%m.%Y %H:%M%z}" for day in times]
    return [str(day) if how == "str" else day.isoformat() for day in times]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("how", ["str", "isoformat", "day first", "timestamps"])
@pytest.mark.parametrize(("freq", "name"), [("D", "D"), ("W-MON", "W-MON"), ("MS", "MS")])
def test_midnights_of_a_zone_are_days(
    tmp_path: Path, zone: str, how: str, freq: str, name: str
) -> None:
    """By the calendar of the zone, whatever hour of UTC they are at."""
    days = pd.date_range("2023-02-01", periods=60, freq=freq)
    frame = pd.DataFrame({"day": written(days.tz_localize(zone), how), "y": np.arange(60) + 0.5})
    file = tmp_path / "a.parquet"
    if how == "timestamps":
        frame.to_parquet(file)
    else:
        file = csv(tmp_path, frame)
    series = prepared(tmp_path, file)
    assert series.freq(0) == name and series.info.notes == () and series.info.timezone is None
    assert times_of(series).tolist() == days.tolist()
    assert series.target(0)[0].tolist() == frame["y"].tolist()


def test_days_with_and_without_offsets_are_of_one_calendar(tmp_path: Path) -> None:
    days = pd.date_range("2023-02-01", periods=60, freq="D")
    zoned = prepared(tmp_path / "a", csv(tmp_path, frame(written(days, "Z"))))
    plain = prepared(tmp_path / "b", csv(tmp_path, frame(days)))
    assert times_of(zoned).tolist() == times_of(plain).tolist()
    assert zoned.info.timezone == plain.info.timezone


def frame(days: Any) -> pd.DataFrame:
    return pd.DataFrame({"day": days, "y": np.arange(len(days)) + 0.5})


def test_a_zone_that_is_named_counts(tmp_path: Path) -> None:
    days = pd.date_range("2023-02-01", periods=60, freq="D", tz="Europe/Berlin")
    utc = days.tz_convert("UTC")
    series = prepared(tmp_path, csv(tmp_path, frame([str(t) for t in utc])), timezone=str(days.tz))
    assert times_of(series).tolist() == days.tz_localize(None).tolist()


@pytest.mark.parametrize("row", [20, 29_000])
def test_one_that_is_no_midnight_asks_for_the_zone(tmp_path: Path, row: int) -> None:
    """Whether it is seen at once or after many blocks."""
    days = pd.date_range("1950-02-01", periods=30_000, freq="D", tz="Europe/Berlin")
    times = [str(day) for day in days]
    times[row] = times[row].replace("00:00:00", "06:00:00")
    with pytest.raises(UserError, match=r"data\.timezone=Europe/Berlin"):
        prepared(tmp_path, csv(tmp_path, frame(times)))


def test_hours_are_moments(tmp_path: Path) -> None:
    hours = pd.date_range("2024-03-20", periods=800, freq="h", tz="Europe/Berlin")
    series = prepared(tmp_path, csv(tmp_path, frame([str(hour) for hour in hours])))
    assert series.info.timezone == "UTC"
    assert times_of(series).tolist() == hours.tz_convert("UTC").tz_localize(None).tolist()
