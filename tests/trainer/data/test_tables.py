"""Tables are read as they are meant; a file that cannot be trusted is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
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
    assert np.array_equal(ours.values[0], theirs.values[0])
    assert ours.digest == theirs.digest
    assert ours.channels == theirs.channels == ["load", "heat"]


def test_rows_without_timestamps_are_series_too(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame()[["load"]])
    assert data.shape.covariates == 0 and data.season_lengths == []
    numbered = dataset(tmp_path, frame().assign(date=range(60)), time_column="none")
    assert numbered.channels == ["date", "load", "heat"]
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
    data = dataset(tmp_path, frame(name="x", flag=True).reset_index(names="Unnamed: 0"))
    assert data.channels == ["load", "heat"]
    assert data.notes == ["forecasting load, heat; left out: Unnamed: 0, name, flag"]


def test_gaps_between_timestamps_are_told(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame().drop(index=[10, 11, 30]))
    assert data.notes == [
        f"{tmp_path}/series.csv: 2 gaps between timestamps; windows count rows across them"
    ]


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (
            words(frame(), "load", 7, "n/a?"),
            {},
            "data.targets: series.csv, row 8, column load: 'n/a?' is not a number",
        ),
        (
            words(frame(), "load", 7, np.inf),
            {},
            "data.targets: series.csv, row 8, column load is infinite",
        ),
        (
            words(frame(), "date", 7, "yesterday"),
            {},
            "data.time_column: series.csv, row 8, column date: 'yesterday' is not a timestamp",
        ),
        (
            frame().iloc[[0, 1, 3, 2, 4]],
            {},
            "data.time_column: series.csv, row 4: timestamp 2024-01-01 02:00:00 (several series? "
            "name data.id_column) comes after 2024-01-01 03:00:00; sort the file by time",
        ),
        (
            frame().iloc[[0, 1, 1, 2]],
            {},
            "data.time_column: series.csv, row 3: timestamp 2024-01-01 01:00:00 (several series? "
            "name data.id_column) repeats the row before; remove the repetition",
        ),
        (
            frame(8),
            {},
            "data.context_length: no series is long enough: a window takes context_length + "
            "prediction_length = 9 rows, the longest training part has 5; shorten them, or give "
            "training more of the rows in data.split",
        ),
        (frame()[["date"]], {}, "data.targets: series.csv has no numeric column to forecast"),
        (frame().head(0), {}, "data.source: series.csv has no rows"),
        (
            frame(),
            {"targets": ["lod"]},
            "data.targets: series.csv has no column lod; it has date, load, heat",
        ),
        (
            frame(),
            {"time_column": "when"},
            "data.time_column: series.csv has no column when; it has date, load, heat",
        ),
        (
            frame(),
            {"time_column": "load"},
            "data.time_column: series.csv, column load holds numbers, not timestamps such as "
            "2024-01-31 13:00; name another column, or data.time_column=none",
        ),
        (
            words(frame(id="a"), "id", 4, None),
            {"id_column": "id"},
            "data.id_column: series.csv, row 5 has no id; say which series it belongs to, or "
            "remove it",
        ),
        (
            frame().head(1),
            {},
            "data.context_length: no series is long enough: a window takes context_length + "
            "prediction_length = 9 rows, the longest training part has 0; shorten them, or give "
            "training more of the rows in data.split",
        ),
        (
            frame()[["load"]],
            {"calendar": ["time_of_day"]},
            "data.calendar: series.csv has no column of timestamps; name it as data.time_column "
            "or set data.calendar=[]",
        ),
        (
            frame(price=[np.nan] * 60),
            {"covariates": ["price"]},
            "data.covariates: series.csv, row 1: price is missing, but covariates must be known "
            "for every row; fill it or leave the column out",
        ),
        (
            frame(none=[np.nan] * 60),
            {},
            "data.targets: none has no value in the training part; leave it out of data.targets",
        ),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(
    tmp_path: Path, table: pd.DataFrame, changes: dict[str, Any], message: str
) -> None:
    assert mistake(tmp_path, table, **changes) == message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.csv", None, "data.source: there is no file no.csv"),
        ("empty.csv", "", "data.source: empty.csv is empty"),
        (
            "series.txt",
            "a,b\n1,2\n",
            "data.source: series.txt is neither .csv, .csv.gz nor .parquet",
        ),
        ("broken.parquet", "PAR1", "data.source: cannot read broken.parquet: "),
        ("twice.csv", "a,a\n1,2\n", "data.source: twice.csv has two columns called a; rename one"),
        ("long.csv", "a,b\n1,2,3\n", "data.source: long.csv has rows longer than its header"),
        ("broken.csv.gz", "no gzip", "data.source: cannot read broken.csv.gz: "),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        Dataset(config(tmp_path / name))
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)
