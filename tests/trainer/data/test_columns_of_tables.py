"""What each column of a table is: found by name and content and said, or asked for by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, hourly, prepared, text_file

TIMES = pd.date_range("2024-01-01", periods=100, freq="h")


@pytest.mark.parametrize(
    "name", ["time", "Date", "utc_timestamp", "Datum", "Date Time", "timestamp ", "Monat", ""]
)
def test_times_are_found_by_content(tmp_path: Path, name: str) -> None:
    """Also where their column has no name, as df.to_csv() writes an index."""
    series = prepared(tmp_path, csv(tmp_path, hourly().rename(columns={"time": name})))
    assert series.info.columns.target == ("load",) and series.freq(0) == "h"
    assert series.starts[0] == np.datetime64("2024-01-01")


@pytest.mark.parametrize("usual", ["time", "ds"])
def test_a_usual_name_is_taken_before_others(tmp_path: Path, usual: str) -> None:
    frame = hourly()
    frame.insert(0, "created", frame["time"] + pd.Timedelta(days=400))
    series = prepared(tmp_path, csv(tmp_path, frame.rename(columns={"time": usual})))
    assert series.starts[0] == np.datetime64("2024-01-01")
    assert series.info.columns.target == ("load",)
    unusual = csv(tmp_path, frame.rename(columns={"time": "taken"}), "unusual.csv")
    (note, *_) = prepared(tmp_path, unusual).info.notes
    assert "times are in created, not in taken" in note


@pytest.mark.parametrize("name", ["year", "Year", "yr"])
def test_years(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({name: range(1850, 1950), "y": np.sin(np.arange(100))})
    series = prepared(tmp_path, csv(tmp_path, frame))
    assert series.freq(0) == "YS" and str(series.starts[0]).startswith("1850-01-01")


def test_times_over_several_columns_are_to_be_joined(tmp_path: Path) -> None:
    frame = pd.DataFrame({"year": TIMES.year, "month": TIMES.month, "day": TIMES.day, "y": 0.5})
    frame["y"] = np.sin(np.arange(100))
    with pytest.raises(UserError, match="spread over year, month, day; join them"):
        prepared(tmp_path, csv(tmp_path, frame))


@pytest.mark.parametrize("name", ["unique_id", "item_id", "series_id", "Unique_ID"])
@pytest.mark.parametrize("ids", [[1, 2], ["007", "NA"], ["a b", "ü"], [1.5, 2.5]])
@pytest.mark.parametrize("with_time", [True, False])
def test_series_are_told_apart(
    tmp_path: Path, name: str, ids: list[object], with_time: bool
) -> None:
    frames = [hourly(50).assign(**{name: one}) for one in ids]
    frame = pd.concat(frames)
    frame["load"] = np.sin(np.arange(100) ** 2)
    if not with_time:
        frame = frame.drop(columns="time")
    series = prepared(tmp_path, csv(tmp_path, frame))
    assert [series.item_id(n) for n in range(2)] == [str(one) for one in ids]
    assert series.info.columns.target == ("load",) and series.lengths.tolist() == [50, 50]
    assert any(f"told apart by {name}" in note for note in series.info.notes)


@pytest.mark.parametrize("name", ["id", "store", "Sensor", "ticker"])
def test_a_likely_name_is_taken_where_times_repeat(tmp_path: Path, name: str) -> None:
    frame = pd.concat([hourly(50).assign(**{name: one}) for one in ("a", "b")])
    assert len(prepared(tmp_path, csv(tmp_path, frame))) == 2
    one = hourly(50).assign(**{name: "a"})
    alone = prepared(tmp_path, csv(tmp_path, one, "one.csv"))
    assert len(alone) == 1 and alone.info.columns.target == ("load",)


def test_the_column_that_tells_series_apart_is_asked_for(tmp_path: Path) -> None:
    frame = pd.concat([hourly(50).assign(town=one) for one in ("a", "b")])
    with pytest.raises(UserError, match=r"times of .* repeat.*data\.id_column=town"):
        prepared(tmp_path, csv(tmp_path, frame))
    assert len(prepared(tmp_path, csv(tmp_path, frame), id_column="town")) == 2


def test_two_columns_that_tell_series_apart_are_asked_for(tmp_path: Path) -> None:
    pairs = [(town, part) for town in "ab" for part in "xyz"]
    frame = pd.concat([hourly(20).assign(town=t, part=p) for t, p in pairs])
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match=r"data\.id_column=\[town,part\]"):
        prepared(tmp_path, file)
    series = prepared(tmp_path, file, id_column=["town", "part"])
    assert [series.item_id(n) for n in range(6)] == [f"{t}/{p}" for t, p in pairs]


def test_names_without_numbers_are_asked_for(tmp_path: Path) -> None:
    frame = pd.concat([hourly(50), hourly(50)])
    with pytest.raises(UserError, match=r"several series.*data.id_column"):
        prepared(tmp_path, csv(tmp_path, frame.assign(load=np.sin(np.arange(100)))))


@pytest.mark.parametrize("name", ["t", "step", "time_idx", "index", ""])
def test_a_counter_gives_the_order_and_is_not_forecast(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({name: range(60), "y": np.sin(np.arange(60))}).drop(index=[5, 6])
    series = prepared(tmp_path, csv(tmp_path, frame.iloc[::-1]))
    assert series.info.columns.target == ("y",) and series.lengths[0] == 60
    assert np.isnan(series.target(0)[0]).nonzero()[0].tolist() == [5, 6]
    assert np.allclose(series.target(0)[0][7:], np.sin(np.arange(7, 60)))


def test_a_counter_that_begins_again_is_several_series(tmp_path: Path) -> None:
    frame = pd.DataFrame({"t": [*range(30), *range(30)], "y": np.sin(np.arange(60))})
    with pytest.raises(UserError, match=r"data.id_column: t of .* counts several times"):
        prepared(tmp_path, csv(tmp_path, frame))
    frame["group"] = ["a"] * 30 + ["b"] * 30
    assert prepared(tmp_path, csv(tmp_path, frame), id_column="group").lengths.tolist() == [30, 30]


def test_only_measurements_are_forecast_without_being_named(tmp_path: Path) -> None:
    frame = hourly().assign(
        No=range(100),
        hour=lambda f: f["time"].dt.hour,
        Year=2024,
        flag=lambda f: (f["time"].dt.hour > 6).astype(int),
        open=lambda f: f["time"].dt.hour > 7,
        flat=3.5,
        word="x",
        nothing=None,
    )
    series = prepared(tmp_path, csv(tmp_path, frame))
    assert series.info.columns.target == ("load",)
    (note,) = [note for note in series.info.notes if "forecasting" in note]
    for name in ("No", "hour", "Year", "flag", "open", "flat", "word", "nothing"):
        assert f"{name} (" in note or "more" in note


@pytest.mark.parametrize("name", ["flag", "flat"])
def test_what_is_alone_is_forecast(tmp_path: Path, name: str) -> None:
    frame = hourly().assign(flag=[0, 1] * 50, flat=3.5)[["time", name]]
    assert prepared(tmp_path, csv(tmp_path, frame)).info.columns.target == (name,)


def test_no_column_to_forecast(tmp_path: Path) -> None:
    frame = hourly().assign(load=[f"word {n}" for n in range(100)])
    with pytest.raises(UserError, match=r"no column of numbers to forecast.*load \(text\)"):
        prepared(tmp_path, csv(tmp_path, frame))


def test_a_column_that_is_mostly_numbers_is_refused_by_name(tmp_path: Path) -> None:
    frame = hourly().assign(load=lambda f: f["load"].astype(str))
    frame.loc[17, "load"] = "off"
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match=r"column load, row 18 has 'off', which is not a number"):
        prepared(tmp_path, file)
    skipped = prepared(tmp_path, file, on_error="skip")
    assert np.isnan(skipped.target(0)).sum() == 1
    assert any("cells that are no numbers" in note for note in skipped.info.notes)
    named = prepared(tmp_path, file, missing=["OFF"])
    assert np.isnan(named.target(0)).sum() == 1 and not named.info.notes


@pytest.mark.parametrize("key", ["targets", "covariates", "past_covariates", "static"])
def test_a_column_that_is_not_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}: .* no column 'laod'; did you mean 'load'"):
        prepared(tmp_path, csv(tmp_path, hourly()), **{key: ["laod"]})


def test_roles_that_are_named(tmp_path: Path) -> None:
    frames = [
        hourly(40).assign(
            store=one,
            price=lambda f: f["load"] / 2,
            seen=lambda f: f["load"] * 3,
            size=float(n),
            region=f"r{n}",
        )
        for n, one in enumerate("ab")
    ]
    series = prepared(
        tmp_path,
        csv(tmp_path, pd.concat(frames)),
        targets=["load"],
        covariates=["price"],
        past_covariates=["seen"],
        static=["size", "region"],
    )
    item = series.item(1)
    assert item.static_numbers == (1.0,) and item.static_categories == ("r1",)
    assert np.allclose(item.known, item.target / 2) and np.allclose(item.past, item.target * 3)


def test_a_static_that_is_none(tmp_path: Path) -> None:
    frame = pd.concat([hourly(20).assign(store=one) for one in "ab"])
    frame["size"] = np.arange(40.0)
    file = csv(tmp_path, frame)
    with pytest.raises(UserError, match=r"data.static: size of series a .* has 20 values"):
        prepared(tmp_path, file, static=["size"])


@pytest.mark.parametrize(
    ("mark", "cell"), [(",", "1.234,5"), (".", "1,234.5"), (",", "1 234,5"), (".", "1'234.5")]
)
def test_thousands_and_decimals(tmp_path: Path, mark: str, cell: str) -> None:
    rows = "".join(f"2024-01-{day:02};{cell}\n" for day in range(1, 29))
    file = text_file(tmp_path, f"date;y;z\n{rows.replace(chr(10), ';1' + mark + '5' + chr(10))}")
    series = prepared(tmp_path, file)
    assert set(series.target(0)[0].tolist()) == {1234.5}
    assert set(series.target(0)[1].tolist()) == {1.5}


def test_a_comma_that_could_be_either_is_asked_about(tmp_path: Path) -> None:
    rows = "".join(f'2024-01-{day:02},"10,{day * 17 % 29:03}",{day}\n' for day in range(1, 29))
    file = text_file(tmp_path, f"date,y,z\n{rows}")
    with pytest.raises(UserError, match=r"column y: the comma in '10,017'.*data\.decimal"):
        prepared(tmp_path, file)
    assert prepared(tmp_path, file, decimal=".").target(0)[0, 0] == 10_017
    assert prepared(tmp_path, file, decimal=",").target(0)[0, 0] == 10.017


def test_yes_and_no_are_a_text(tmp_path: Path) -> None:
    frame = hourly().assign(open=["yes", "no"] * 50)
    file = csv(tmp_path, frame)
    assert prepared(tmp_path, file).info.columns.target == ("load",)
    with pytest.raises(UserError, match=r"data.covariates: .*column open, row 1 has 'yes'"):
        prepared(tmp_path, file, covariates=["open"])


def test_booleans_are_numbers(tmp_path: Path) -> None:
    frame = hourly().assign(open=[True, False] * 50)
    series = prepared(tmp_path, csv(tmp_path, frame), covariates=["open"])
    assert series.known(0)[0, :4].tolist() == [1, 0, 1, 0]
