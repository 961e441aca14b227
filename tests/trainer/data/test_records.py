"""Files with a record or a row for each series: JSON lines, list columns, .tsf, M4."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, hourly, prepared, text_file
from trainer.config.table_settings import TableConfig
from trainer.data.prepare_set import prepare_set
from trainer.data.prepared import open_set, unused_settings
from trainer.data.series_set import SeriesSet

RECORDS = [
    {"item_id": "a", "start": "2024-01-01 05:00", "freq": "h", "target": [0.5, 1.5, None, 3.5]},
    {"item_id": "b", "start": "2024-02-01", "freq": "D", "target": [1.0, 2.0, 4.0]},
]


def record_file(folder: Path, kind: str) -> Path:
    """Write RECORDS, and return the path."""
    file = folder / f"records.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), file)
    elif kind == "jsonl":
        lines = [json.dumps(record).replace("null", "NaN") for record in RECORDS]
        file.write_text("\n".join(lines) + "\n")
    elif kind == "jsonl.gz":
        file.write_bytes(gzip.compress("\n".join(map(json.dumps, RECORDS)).encode()))
    elif kind == "hf":  # as Dataset.save_to_disk leaves it
        file.mkdir()
        table = pa.Table.from_pylist(RECORDS)
        with pa.ipc.new_stream(str(file / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        (file / "state.json").write_text("{}")
        (file / "dataset_info.json").write_text("{}")
    return file


@pytest.mark.parametrize("freq", ["?", "", None, "unknown"])
def test_an_interval_that_is_none(tmp_path: Path, freq: str | None) -> None:
    file = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist([{**RECORDS[0], "freq": freq}, RECORDS[1]]), file)
    if freq == "unknown":
        with pytest.raises(UserError, match=r"data\.freq: record 1 \(a\) .* no interval 'unknown'"):
            prepared(tmp_path, file)
    else:
        assert prepared(tmp_path, file).freqs() == [None, "D"]


def test_two_fields_tell_series_apart(tmp_path: Path) -> None:
    records = [{**record, "source": source} for source in ("m3", "m4") for record in RECORDS]
    file = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist(records), file)
    series = prepared(tmp_path, file)
    assert [series.item_id(n) for n in range(4)] == ["m3/a", "m3/b", "m4/a", "m4/b"]
    assert any("told apart by source and item_id" in note for note in series.info.notes)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "hf"])
def test_a_record_for_each_series(tmp_path: Path, kind: str) -> None:
    series = prepared(tmp_path, record_file(tmp_path, kind))
    assert [series.item_id(n) for n in range(2)] == ["a", "b"] and series.freqs() == ["h", "D"]
    assert series.starts[0] == np.datetime64("2024-01-01T05:00")
    assert np.array_equal(series.target(0), [[0.5, 1.5, np.nan, 3.5]], equal_nan=True)


def test_what_gluonts_and_chronos_write(tmp_path: Path) -> None:
    record = {
        "item_id": "a",
        "start": pd.Timestamp("2024-01-01"),
        "target": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        "feat_dynamic_real": [[1.0, 2.0, 3.0, 4.0, 5.0]],  # goes on into the future
        "past_feat_dynamic_real": [[7.0, 8.0, 9.0]],
        "feat_static_real": [0.5],
        "feat_static_cat": [3, 1],
    }
    file = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist([record]), file)
    series = prepared(tmp_path, file, freq="M")
    item = series.item(0)
    assert item.freq == "MS" and item.target.tolist() == record["target"]
    assert item.known.tolist() == [[1, 2, 3]] and item.past.tolist() == [[7, 8, 9]]
    assert item.static_numbers == (0.5,) and item.static_categories == ("3", "1")
    unsaid = prepared(tmp_path, file)
    assert unsaid.freq(0) is None and any("data.freq" in note for note in unsaid.info.notes)


def test_lists_of_times_and_several_lists_of_values(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=5, freq="D").delete(2).tolist()
    record = {"id": "a", "timestamp": times, "y": [1.0, 2.0, 3.0, 4.0], "z": [5, 6, 7, 8]}
    file = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist([record]), file)
    series = prepared(tmp_path, file)
    assert series.info.columns.target == ("y", "z") and series.freq(0) == "D"
    assert np.array_equal(series.target(0)[1], [5, 6, np.nan, 7, 8], equal_nan=True)


MONASH = """# A comment
@relation test
@attribute series_name string
@attribute state string
@attribute start_timestamp date
@frequency half_hourly
@horizon 48
@missing true
@equallength false
@data
T1:NSW:2002-01-01 00-30-00:1.5,2.5,?,4.5
T2:VIC:2003-06-01 00-00-00:5,6
"""


def test_monash(tmp_path: Path) -> None:
    series = prepared(tmp_path, text_file(tmp_path, MONASH, "a.tsf"), static=["state"])
    assert series.freqs() == ["30min"] * 2 and series.lengths.tolist() == [4, 2]
    assert series.starts[0] == np.datetime64("2002-01-01T00:30")
    assert series.item(1).static_categories == ("VIC",)
    assert np.array_equal(series.target(0), [[1.5, 2.5, np.nan, 4.5]], equal_nan=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("half_hourly", "often", r"line 6: there is no frequency 'often'"),
        ("T1:NSW:", "T1:", r"line 11 has 2 attributes, and the header 3"),
        ("2002-01-01 00-30-00", "yesterday", r"line 11: 'yesterday' is no time"),
        ("1.5,2.5", "1.5,x", r"line 11: could not convert"),
        ("@horizon 48", "horizon 48", r"line 7: 'horizon 48' is no header"),
    ],
)
def test_a_broken_tsf(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, text_file(tmp_path, MONASH.replace(old, new), "a.tsf"))


def test_a_series_in_each_row(tmp_path: Path) -> None:
    """As M4 has them, ragged at the end."""
    rows = [[f"H{n}", *np.round(np.sin(np.arange(20 + n)), 3)] for n in range(30)]
    rows = [row + [None] * (50 - len(row)) for row in rows]
    frame = pd.DataFrame(rows, columns=[f"V{n}" for n in range(1, 51)])
    series = prepared(tmp_path, csv(tmp_path, frame, "m4.csv"), freq="h")
    assert series.lengths.tolist() == list(range(20, 50)) and series.item_id(3) == "H3"
    assert np.allclose(series.target(3)[0], rows[3][1:24]) and series.freq(3) == "h"


def test_series_that_go_on_in_another_file(tmp_path: Path) -> None:
    """As M4's test file does; where there are times, it begins where the other ends."""
    names = [f"V{n}" for n in range(1, 22)]
    first = pd.DataFrame([[f"H{n}", *range(n, n + 20)] for n in range(3)], columns=names)
    second = pd.DataFrame([[f"H{n}", *range(n + 20, n + 35)] for n in range(3)], columns=names[:16])
    csv(tmp_path, first, "train.csv")
    csv(tmp_path, second, "test.csv")
    out = tmp_path / "out"
    then = [str(tmp_path / "test.csv")]
    prepare_set([str(tmp_path / "train.csv")], out, TableConfig(), then=then)
    series = SeriesSet(out)
    assert series.target(2)[0].tolist() == list(range(2, 37)) and len(series) == 3
    other = csv(tmp_path, second.assign(V1=["H0", "H1", "X"]), "other.csv")
    with pytest.raises(UserError, match=r"'X' continues no series"):
        prepare_set([str(tmp_path / "train.csv")], tmp_path / "b", TableConfig(), then=[str(other)])
    hours = [
        {"item_id": "a", "start": f"2024-01-01 0{hour}:00", "freq": "h", "target": [1.0, 2.0, 4.0]}
        for hour in (0, 3, 4)
    ]
    for number, record in enumerate(hours):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(record))
    files = [str(tmp_path / f"{number}.jsonl") for number in range(3)]
    prepare_set(files[:1], tmp_path / "c", TableConfig(), then=files[1:2])
    assert SeriesSet(tmp_path / "c").lengths.tolist() == [6]
    with pytest.raises(UserError, match=r"goes on at 2024-01-01T03"):
        prepare_set(files[:1], tmp_path / "d", TableConfig(), then=files[2:])


@pytest.mark.parametrize("header", ["years", "months"])
def test_columns_that_are_times(tmp_path: Path, header: str) -> None:
    times = pd.date_range("1990", periods=30, freq="YS" if header == "years" else "MS")
    names = times.strftime("%Y" if header == "years" else "%Y-%m")
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 30)), columns=names)
    frame.insert(0, "country", list("ABCDE"))
    frame.iloc[2, 1:6] = np.nan  # begins later
    series = prepared(tmp_path, csv(tmp_path, frame))
    assert series.freq(0) == ("YS" if header == "years" else "MS") and len(series) == 5
    assert series.lengths.tolist() == [30, 30, 25, 30, 30]
    assert series.starts[2] == times[5].to_numpy()


@pytest.mark.parametrize("names", [["north", "south", "west"], ["000", "001", "010"]])
@pytest.mark.parametrize(
    ("column", "settings"), [("shop", {}), ("shop", {"id_column": "shop"}), ("item_id", {})]
)
def test_series_in_rows_whose_columns_are_days(
    tmp_path: Path, names: list[str], column: str, settings: dict[str, str]
) -> None:
    """Whatever the series are called: names of digits keep their zeros."""
    days = pd.date_range("2022-01-01", periods=30).strftime("%Y-%m-%d")
    frame = pd.DataFrame(np.arange(90.0).reshape(3, 30) + 0.5, columns=days)
    frame.insert(0, column, names)
    series = prepared(tmp_path, csv(tmp_path, frame), **settings)
    assert [series.item_id(item) for item in range(3)] == names
    assert series.lengths.tolist() == [30, 30, 30] and series.freq(0) == "D"
    assert series.target(1)[0].tolist() == (np.arange(30.0) + 30.5).tolist()


def test_weeks_in_rows_and_years_in_columns_are_points(tmp_path: Path) -> None:
    """Unless the column that names the series is told."""
    frame = pd.DataFrame({str(year): np.arange(40) * 0.5 + year % 7 for year in range(2015, 2024)})
    frame.insert(0, "week", np.arange(1, 41))
    assert len(prepared(tmp_path, csv(tmp_path, frame))) == 1
    told = prepared(tmp_path, csv(tmp_path, frame), id_column="week")
    assert len(told) == 40 and told.lengths[0] == 9


def test_settings_that_say_something_else_than_a_set_are_refused(tmp_path: Path) -> None:
    """They were in force when it was prepared."""
    frame = hourly(60).assign(price=np.arange(60) % 7 + 0.5)
    out = prepared(tmp_path, csv(tmp_path, frame), targets=["load"], covariates=["price"]).folder
    for key, wrong, held in (
        ("targets", ["nonsense"], "the set holds load"),
        ("targets", ["load", "price"], "the set holds load"),
        ("covariates", ["load"], "the set holds price"),
        ("past_covariates", ["price"], "the set holds none"),
        ("static", ["price"], "the set holds none"),
        ("timezone", "UTC", "its times are clock times of no known zone"),
    ):
        with pytest.raises(UserError, match=rf"data\.{key}: .* was prepared, and {held}"):
            open_set(str(out), TableConfig(**{key: wrong}), tmp_path)
    same = TableConfig(targets=["load"], covariates=["price"], id_column="nope")
    assert len(open_set(str(out), same, tmp_path)) == 1
    assert unused_settings([str(out)], same) == [
        f"data.id_column: not used, for {out} is prepared already"
    ]
    assert unused_settings([str(out), "load.csv"], same) == []


def test_an_interval_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Also where the times tell their own."""
    file = csv(tmp_path, hourly(60))
    with pytest.raises(UserError, match=r"data\.freq: there is no interval 'banana'; it is named"):
        prepared(tmp_path, file, freq="banana")
