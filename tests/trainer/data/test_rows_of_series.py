"""The rows of a series: their order, their times, what is missing, what stands twice."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, hourly, prepared
from trainer.data.frequency import Frequency
from trainer.data.series_set import SeriesSet


def local_times(zone: str, first: str, hours: int, step: str = "h") -> pd.DataFrame:
    """Return a table of a zone's clock times, as somebody there would write them down."""
    times = pd.date_range(first, periods=hours, freq=step, tz=zone)
    return pd.DataFrame({"time": times.tz_localize(None), "y": np.arange(hours) + 0.5})


def times_of(series: SeriesSet, item: int = 0) -> pd.DatetimeIndex:
    """Return the times of an item's points."""
    frequency = Frequency.parse(str(series.freq(item)))
    points = int(series.lengths[item])
    return pd.DatetimeIndex(frequency.times(series.starts[item], 0, points))


@pytest.mark.parametrize(
    ("zone", "step"),
    [("Europe/Berlin", "15min"), ("America/New_York", "h"), ("Australia/Melbourne", "30min")],
)
def test_local_times_over_clock_changes(tmp_path: Path, zone: str, step: str) -> None:
    """A year of them: an hour comes twice in autumn, and one is left out in spring."""
    frame = local_times(zone, "2023-12-01", 400 * 24, step)
    series = prepared(tmp_path, csv(tmp_path, frame), timezone=zone)
    assert series.info.timezone == zone and series.info.notes == ()
    assert series.target(0)[0].tolist() == frame["y"].tolist()
    local = times_of(series).tz_localize("UTC").tz_convert(zone).tz_localize(None)
    assert local.tolist() == frame["time"].tolist()


def test_a_clock_change_without_a_zone_is_named(tmp_path: Path) -> None:
    """Nobody is told to remove a measured hour."""
    file = csv(tmp_path, local_times("Europe/Berlin", "2024-10-20", 400))
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, file)
    assert "clocks" in str(caught.value) and "data.timezone=Europe/Berlin" in str(caught.value)
    assert "skip" not in str(caught.value) and "remove" not in str(caught.value)


@pytest.mark.parametrize(
    ("zone", "first", "step"),
    [
        ("Europe/Berlin", "2024-03-20", "h"),
        ("America/New_York", "2024-03-01", "15min"),
        ("Australia/Melbourne", "2024-10-01", "30min"),
    ],
)
def test_an_hour_that_clocks_skip_is_named(
    tmp_path: Path, zone: str, first: str, step: str
) -> None:
    """In half a year no hour comes twice: nothing else would tell that the times are a zone's."""
    frame = local_times(zone, first, 2000, step)
    [told] = [
        n
        for n in prepared(tmp_path / "a", csv(tmp_path, frame)).info.notes
        if "clocks skip in spring" in n
    ]
    assert "data.timezone=Europe/Berlin" in told and f", before {first[:7]}" in told
    assert not prepared(tmp_path / "b", csv(tmp_path, frame), timezone=zone).info.notes


def test_other_missing_hours_are_no_clock_change(tmp_path: Path) -> None:
    frame = hourly(2000, "2024-03-20")
    for row in (100, 277, 900):  # a Sunday at one o'clock in the afternoon among them
        frame = frame.drop(index=row)
    assert not any(
        "clocks skip in spring" in note
        for note in prepared(tmp_path, csv(tmp_path, frame)).info.notes
    )


def test_times_that_a_zone_does_not_have(tmp_path: Path) -> None:
    file = csv(tmp_path, hourly(48, "2024-03-30"))
    with pytest.raises(UserError, match=r"there is no 2024-03-31 02:00:00 in Europe/Berlin"):
        prepared(tmp_path, file, timezone="Europe/Berlin")
    series = prepared(tmp_path, file, timezone="Europe/Berlin", on_error="skip")
    assert series.lengths[0] == 47


def test_offsets_are_utc(tmp_path: Path) -> None:
    frame = local_times("Europe/Berlin", "2024-10-20", 400)
    aware = pd.date_range("2024-10-20", periods=400, freq="h", tz="Europe/Berlin")
    frame["time"] = [stamp.isoformat() for stamp in aware]
    series = prepared(tmp_path, csv(tmp_path, frame))
    assert series.info.timezone == "UTC"
    assert times_of(series).tz_localize("UTC").tolist() == aware.tz_convert("UTC").tolist()


def test_days_in_a_zone_are_dates(tmp_path: Path) -> None:
    """Whose days have 23 or 25 hours twice a year."""
    days = pd.date_range("2024-01-01", periods=366, freq="D", tz="Europe/Berlin")
    frame = pd.DataFrame({"time": [d.isoformat() for d in days], "y": np.sin(np.arange(366))})
    series = prepared(tmp_path, csv(tmp_path, frame), timezone="Europe/Berlin")
    assert series.freq(0) == "D" and series.lengths[0] == 366
    assert times_of(series).tolist() == days.tz_localize(None).tolist()


def test_some_sources_with_offsets_and_others_without(tmp_path: Path) -> None:
    csv(tmp_path, hourly().assign(unique_id="a"), "a.csv")
    frame = hourly().assign(unique_id="b", time=lambda f: f["time"].astype(str) + "+00:00")
    csv(tmp_path, frame, "b.csv")
    sources = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    with pytest.raises(UserError, match=r"data.timezone: some times carry an offset"):
        prepared(tmp_path, sources)
    assert len(prepared(tmp_path, sources, timezone="UTC")) == 2


def test_rows_in_another_order(tmp_path: Path) -> None:
    frame = hourly()
    plain = prepared(tmp_path, csv(tmp_path, frame))
    for other in (
        frame.iloc[::-1],
        frame.sample(frac=1, random_state=0),
        frame.iloc[np.r_[50:100, 0:50]],
    ):
        series = prepared(tmp_path, csv(tmp_path, other, "other.csv"))
        assert (series.target(0) == plain.target(0)).all()
        assert any("not in order of time, sorted" in note for note in series.info.notes)


def test_missing_rows_are_missing_values(tmp_path: Path) -> None:
    """The same points as rows that are not there, and as empty cells: one and the same set."""
    frame = hourly(300)
    gone = np.sort(np.random.default_rng(0).choice(np.arange(1, 299), 90, replace=False))
    empty = frame.copy()
    empty.loc[gone, "load"] = np.nan
    with_cells = prepared(tmp_path, csv(tmp_path, empty))
    without_rows = prepared(tmp_path, csv(tmp_path, frame.drop(index=gone)))
    assert np.array_equal(with_cells.target(0), without_rows.target(0), equal_nan=True)
    assert any("90 of 300 points" in note for note in without_rows.info.notes)


def test_many_series_with_gaps_are_one_note(tmp_path: Path) -> None:
    frame = pd.concat([hourly(30).drop(index=7).assign(unique_id=str(n)) for n in range(200)])
    (_, note) = prepared(tmp_path, csv(tmp_path, frame)).info.notes
    assert "200" in note and "series 0 of" in note and len(note) < 300


def test_covariates_go_on_over_missing_rows(tmp_path: Path) -> None:
    frame = hourly(50).assign(price=lambda f: f["load"] * 2).drop(index=[10, 11])
    series = prepared(tmp_path, csv(tmp_path, frame), targets=["load"], covariates=["price"])
    known = series.known(0)[0]
    assert known[10] == known[11] == known[9] and np.isfinite(known).all()
    assert any("keep the value before" in note for note in series.info.notes)


@pytest.mark.parametrize("freqs", [("h", "D"), ("15min", "MS"), ("W-MON", "h")])
def test_each_series_has_its_own_interval(tmp_path: Path, freqs: tuple[str, str]) -> None:
    frames = [
        pd.DataFrame(
            {
                "time": pd.date_range("2024-01-01", periods=50, freq=freq),
                "unique_id": freq,
                "y": np.sin(np.arange(50)),
            }
        )
        for freq in freqs
    ]
    series = prepared(tmp_path, csv(tmp_path, pd.concat(frames)))
    assert tuple(series.freqs()) == freqs and series.lengths.tolist() == [50, 50]


def test_rows_that_stand_twice(tmp_path: Path) -> None:
    frame = hourly()
    same = pd.concat([frame, frame.iloc[10:13]])
    series = prepared(tmp_path, csv(tmp_path, same))
    assert series.lengths[0] == 100
    assert any("rows that repeat another, left out: 3" in note for note in series.info.notes)
    other = pd.concat([frame, frame.iloc[10:11].assign(load=-5.0)]).assign(unique_id="a")
    file = csv(tmp_path, other)
    with pytest.raises(UserError, match=r"rows 11 and 101 are both of 2024-01-01 10:00:00"):
        prepared(tmp_path, file)
    skipped = prepared(tmp_path, file, on_error="skip")
    assert skipped.target(0)[0, 10] == frame["load"][10]
    assert any("left out: " in note and "differ" in note for note in skipped.info.notes)


def test_times_at_no_interval(tmp_path: Path) -> None:
    seconds = np.cumsum(np.random.default_rng(0).integers(1, 10_000, 100))
    frame = hourly().assign(time=pd.Timestamp("2024-01-01") + pd.to_timedelta(seconds, unit="s"))
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match=r"no regular interval.*data.time_column=none"):
        prepared(tmp_path, file)
    assert prepared(tmp_path, file, time_column="none", targets=["load"]).lengths[0] == 100


def test_a_time_of_another_century(tmp_path: Path) -> None:
    """A gap of a million points comes of a wrong time, and would fill the disk."""
    frame = hourly()
    frame.loc[0, "time"] = pd.Timestamp("1900-01-01")
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match="nothing between 1900-01-01"):
        prepared(tmp_path, file)


@pytest.mark.parametrize("on_error", ["refuse", "skip"])
def test_series_without_a_value(tmp_path: Path, on_error: str) -> None:
    frame = pd.concat([hourly(30).assign(unique_id=n) for n in "abc"])
    frame.loc[frame["unique_id"] == "b", "load"] = np.nan
    series = prepared(tmp_path, csv(tmp_path, frame), on_error=on_error)
    assert [series.item_id(n) for n in range(2)] == ["a", "c"] and len(series) == 2
    assert any("without a value, left out: series b" in note for note in series.info.notes)


def test_rows_without_a_name_or_time(tmp_path: Path) -> None:
    frame = hourly(30).assign(unique_id="a", time=lambda f: f["time"].astype(str))
    frame.loc[4, "unique_id"] = ""
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match=r"data.id_column: .*row 5 has no unique_id"):
        prepared(tmp_path, file)
    frame.loc[9, "time"] = "Total"
    series = prepared(tmp_path, csv(tmp_path, frame), on_error="skip")
    assert np.isnan(series.target(0)[0]).nonzero()[0].tolist() == [4, 9]
    assert sum("left out" in note for note in series.info.notes) == 2


@pytest.mark.parametrize(
    ("value", "word"), [(-9999, r"data.missing=\[-9999\]"), (1e30, "far outside")]
)
def test_codes_and_mistakes_are_said(tmp_path: Path, value: float, word: str) -> None:
    frame = hourly(500).assign(load=10 + np.sin(np.arange(500)))
    frame.loc[[40, 41, 300] if value < 0 else [40], "load"] = value
    file = csv(tmp_path, frame)
    (note,) = prepared(tmp_path, file).info.notes
    assert re.search(word, note)
    clean = prepared(tmp_path, file, missing=[value])
    assert np.isnan(clean.target(0)).sum() in (1, 3)


def test_a_frequent_code_is_said(tmp_path: Path) -> None:
    frame = hourly(500).assign(load=10 + np.sin(np.arange(500)))
    frame.loc[::4, "load"] = -9999
    (note,) = prepared(tmp_path, csv(tmp_path, frame)).info.notes
    assert "data.missing=[-9999]" in note and "125 values" in note


@pytest.mark.parametrize("mark", ["1.7976931348623157e308", "-1e200"])
def test_marks_that_are_too_large_to_compute_with(tmp_path: Path, mark: str) -> None:
    """Their squares are infinite: a run would be done, and forecast nothing."""
    frame = hourly(60)
    frame["load"] = frame["load"].astype(str)
    frame.loc[7, "load"] = mark
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match=r"row 8 is .*e\+\d+, too large .* data\.missing"):
        prepared(tmp_path, file)
    series = prepared(tmp_path, file, missing=[mark])
    assert np.isnan(series.target(0)[0, 7]) and series.target(0)[0, 8] == 10.5


def test_an_interval_that_contradicts_the_times_is_told(tmp_path: Path) -> None:
    file = csv(tmp_path, hourly(60))
    [told] = prepared(tmp_path, file, freq="W").info.notes
    assert "another interval than data.freq=W" in told
    assert prepared(tmp_path, file, freq="h").info.notes == ()


def test_infinite_values(tmp_path: Path) -> None:
    frame = hourly()
    frame.loc[7, "load"] = np.inf
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match="column load, row 8 is infinite"):
        prepared(tmp_path, file)
    assert np.isnan(prepared(tmp_path, file, on_error="skip").target(0)).sum() == 1


def test_one_point(tmp_path: Path) -> None:
    frame = pd.concat([hourly(1).assign(unique_id="a"), hourly(30).assign(unique_id="b")])
    series = prepared(tmp_path, csv(tmp_path, frame))
    assert series.lengths.tolist() == [1, 30] and series.freq(0) is None
