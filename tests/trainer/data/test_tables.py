"""Tables are read as they are meant; a file that cannot be trusted is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.trainer.data.sets import prepared
from tests.trainer.data.tables import config, dataset, frame, mistake, words
from trainer.data import Dataset, Split


def test_series_of_a_long_file_are_told_apart(tmp_path: Path) -> None:
    short, long = frame(20), frame(40)
    both = pd.concat([short.assign(id="a"), long.assign(id="b", load=1000 + long["load"])])
    data = dataset(
        tmp_path,
        both.sample(frac=1, random_state=0).sort_values("date"),
        id_column="id",
        scaling="none",
        split=[1.0, 0.0, 0.0],
    )
    assert data.windows(Split.TRAIN) == (20 - 8) + (40 - 8)
    everything = data.batch(Split.TRAIN, np.arange(44))
    series = everything.context[:, 0, 0] >= 1000
    assert (np.diff(everything.context[:, :, 0]) == 1).all()
    assert series.sum() == 32


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "series.parquet")
    ours = Dataset(config(tmp_path / "series.parquet"))
    theirs = dataset(tmp_path, frame())
    index = np.arange(ours.windows(Split.TRAIN))
    assert np.array_equal(
        ours.batch(Split.TRAIN, index).context, theirs.batch(Split.TRAIN, index).context
    )
    assert ours.digest == theirs.digest
    assert ours.channels == theirs.channels == ["load", "heat"]


def test_rows_without_timestamps_are_series_too(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame()[["load"]])
    assert data.shape.covariates == 0 and data.season_lengths == []
    numbered = dataset(tmp_path, frame().assign(date=range(60)), time_column="none")
    assert numbered.channels == ["load", "heat"]
    assert numbered.window_times(Split.TRAIN, 0) is None


def test_timestamps_with_daylight_saving_are_read(tmp_path: Path) -> None:
    hours = pd.date_range("2024-04-06", periods=60, freq="h", tz="Australia/Melbourne")
    data = dataset(
        tmp_path,
        frame().assign(date=hours.map(str)),
        calendar=["time_of_day"],
        timezone="Australia/Melbourne",
    )
    known = data.batch(Split.TRAIN, np.array([0])).covariates[0]
    np.testing.assert_allclose(known[:7], known[0:7])
    times = data.window_times(Split.TRAIN, 20)
    assert times is not None and (np.diff(times.asi8) > 0).all()


def test_a_date_index_of_a_parquet_file_is_its_time(tmp_path: Path) -> None:
    frame().set_index("date").to_parquet(tmp_path / "series.parquet")
    assert Dataset(config(tmp_path / "series.parquet")).window_times(Split.TRAIN, 0) is not None


def test_columns_that_play_no_part_are_told(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(name="x", flag=True).reset_index(names=""))
    assert data.channels == ["load", "heat"]
    assert data.notes[-1].endswith(
        "forecasting load, heat; left out: column 1 (counts rows), name (text), flag (does not "
        "vary)"
    )


def test_missing_rows_are_told_and_masked(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame().drop(index=[10, 11, 30]))
    assert data.shape.missing and data.channels == ["load", "heat"]
    assert any("missing rows, filled in as missing values" in note for note in data.notes)
    assert "load: 3 of 60 values are missing; they are masked" in data.notes


def test_a_table_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again where it has changed, or is read in another way."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FORESCALE_CACHE", str(cache))
    first = dataset(tmp_path, frame())
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    before = made.stat().st_mtime_ns
    assert dataset(tmp_path, frame()).digest == first.digest
    assert made.stat().st_mtime_ns == before
    assert dataset(tmp_path, frame(), targets=["heat"]).channels == ["heat"]
    assert dataset(tmp_path, words(frame(), "heat", 59, 0.0)).digest != first.digest
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3


def test_a_set_is_read_as_its_table_is(tmp_path: Path) -> None:
    table = dataset(tmp_path, frame())
    set_folder = prepared(tmp_path, tmp_path / "series.csv").folder
    assert Dataset(config(set_folder)).digest == table.digest


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (
            words(frame(), "load", 7, "n/a?"),
            {},
            "data.targets: series.csv, column load, row 8 has 'n/a?', which is not a number; "
            "correct it",
        ),
        (
            words(frame(), "load", 7, np.inf),
            {},
            "data.targets: series.csv, column load, row 8 is infinite; correct it, or name its "
            "mark in data.missing",
        ),
        (
            words(frame(), "date", 7, "yesterday"),
            {},
            "data.time_column: series.csv, column date, row 8 has 'yesterday', which is no time",
        ),
        (
            frame().iloc[[0, 1, 2, 3]].assign(date=frame()["date"][1]),
            {},
            "data.time_column: series.csv, rows 1 and 2 are both of 2024-01-01 01:00:00, and "
            "differ; several series? Name the column that tells them apart as data.id_column",
        ),
        (
            frame(8),
            {},
            "data.context_length: no series is long enough: a window takes context_length + "
            "prediction_length = 9 rows, the longest training part has 5; shorten them, or give "
            "training more of the rows in data.split",
        ),
        (frame()[["date"]], {}, "data.targets: series.csv has no column of numbers to forecast"),
        (frame().head(0), {}, "data.source: series.csv has no rows"),
        (
            frame(),
            {"targets": ["lod"]},
            "data.targets: series.csv has no column 'lod'; did you mean 'load'?",
        ),
        (
            frame(),
            {"time_column": "when"},
            "data.time_column: series.csv has no column 'when'; it has date, load, heat",
        ),
        (
            frame().assign(load=lambda f: f["load"] / 3),
            {"time_column": "load"},
            "data.time_column: series.csv, column load holds numbers such as 0, not times; set "
            "data.time_unit (s, ms, us or ns since 1970), name another column, or "
            "data.time_column=none",
        ),
        (
            words(frame(id="a"), "id", 4, None),
            {"id_column": "id"},
            "data.id_column: series.csv, row 5 has no id; say which series it belongs to",
        ),
        (
            frame()[["load"]],
            {"calendar": ["time_of_day"]},
            "data.calendar: series has no column of timestamps; name it as data.time_column "
            "or set data.calendar=[]",
        ),
        (
            frame(price=[np.nan, *range(59)]),
            {"covariates": ["price"]},
            "data.covariates: series.csv, row 1: price is missing, but covariates must be known "
            "for every row; fill it, or leave the column out",
        ),
        (
            frame(none=[np.nan] * 55 + [1.0, 2.0, 4.0, 2.0, 3.0]),
            {},
            "data.targets: none has no value in the training part; leave it out of data.targets",
        ),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(
    tmp_path: Path, table: pd.DataFrame, changes: dict[str, Any], message: str
) -> None:
    assert mistake(tmp_path, table, **changes).startswith(message)
