"""Files of every kind become the same set; what cannot be read is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, hourly, prepared, text_file
from trainer.config.table_settings import TableConfig
from trainer.data.prepare_set import prepare_set
from trainer.data.reading import long_table
from trainer.data.series_set import SeriesSet


def long_frame(points: int = 60) -> pd.DataFrame:
    """Return a table of three series of unequal length."""
    frames = [hourly(points + 7 * n, f"2024-0{n + 1}-01").assign(item_id=f"s{n}") for n in range(3)]
    frame = pd.concat(frames, ignore_index=True)
    frame["load"] = np.random.default_rng(0).normal(size=len(frame)).astype(np.float32)
    return frame[["item_id", "time", "load"]]


def single(series: SeriesSet, item: int) -> Any:
    """Return an item's values in single precision, which the table's are of."""
    return series.target(item).astype(np.float32)


def same(series: SeriesSet, other: SeriesSet) -> bool:
    """Return whether two sets hold the same."""
    return len(series) == len(other) and all(
        series.item_id(n) == other.item_id(n)
        and series.freq(n) == other.freq(n)
        and series.starts[n] == other.starts[n]
        and np.array_equal(single(series, n), single(other, n), equal_nan=True)
        for n in range(len(series))
    )


@pytest.fixture
def plain(tmp_path: Path) -> SeriesSet:
    """Return the set of `long_frame` by way of CSV."""
    return prepared(tmp_path, csv(tmp_path, long_frame(), "plain.csv"))


def in_format(frame: pd.DataFrame, folder: Path, kind: str) -> Path:
    """Write a table in a format, and return the path."""
    file = folder / f"table.{kind}"
    indexed = frame.set_index(["item_id", "time"])
    if kind in ("csv.gz", "CSV", "csv.bz2", "csv.xz", "csv.zip"):
        frame.to_csv(file, index=False)
    elif kind == "tsv":
        frame.to_csv(file, index=False, sep="\t")
    elif kind == "parquet":
        frame.to_parquet(file, index=False)
    elif kind == "index.parquet":
        indexed.to_parquet(file)
    elif kind == "unnamed.parquet":
        frame.set_index("time").rename_axis(None).to_parquet(file)
    elif kind == "categories.parquet":
        frame.astype({"item_id": "category"}).to_parquet(file)
    elif kind == "feather":
        pa.feather.write_feather(frame, str(file), compression="lz4")
    elif kind == "arrow":
        table = pa.Table.from_pandas(frame, preserve_index=False)
        with pa.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    elif kind == "jsonl":
        frame.assign(time=frame["time"].astype(str)).to_json(file, orient="records", lines=True)
    elif kind == "json":
        frame.assign(time=frame["time"].astype(str)).to_json(file, orient="records")
    elif kind == "folder":
        file.mkdir()
        for number in range(0, len(frame), 50):
            frame.iloc[number : number + 50].to_parquet(file / f"part-{number // 50}.parquet")
        (file / "_SUCCESS").touch()
    elif kind == "csvs":
        file.mkdir()
        for number in range(0, len(frame), 12):
            csv(file, frame.iloc[number : number + 12], f"part-{number // 12}.csv")
        (file / "README.md").write_text("not data")
    elif kind == "hive":
        for name, rows in frame.groupby("item_id"):
            part = file / f"item_id={name}"
            part.mkdir(parents=True)
            rows.drop(columns="item_id").to_parquet(part / "a.parquet", index=False)
    return file


KINDS = [
    *("csv.gz", "CSV", "csv.bz2", "csv.xz", "csv.zip", "tsv", "parquet", "index.parquet"),
    *("unnamed.parquet", "categories.parquet", "feather", "arrow", "jsonl", "json"),
    *("folder", "csvs", "hive"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_in_any_format_is_one_set(tmp_path: Path, plain: SeriesSet, kind: str) -> None:
    series = prepared(tmp_path, in_format(long_frame(), tmp_path, kind))
    binary = kind not in ("csv.gz", "CSV", "csv.bz2", "csv.xz", "csv.zip", "tsv", "csvs")
    assert series.info.dtype == ("float32" if binary and "json" not in kind else "float64")
    if kind in ("jsonl", "json"):  # which pandas writes with ten digits
        assert all(np.allclose(series.target(n), plain.target(n)) for n in range(3))
    else:
        assert same(series, plain)


def test_a_pattern_names_files(tmp_path: Path, plain: SeriesSet) -> None:
    folder = in_format(long_frame(), tmp_path, "csvs")
    assert same(prepared(tmp_path, str(folder / "*.csv")), plain)


def test_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    csv(tmp_path, hourly(), "mine.csv")
    assert len(prepared(tmp_path, "~/mine.csv")) == 1


@pytest.mark.parametrize("freq", ["M", "Q-DEC", "Y"])
@pytest.mark.parametrize("is_index", [True, False])
def test_periods_are_their_beginning(tmp_path: Path, freq: str, is_index: bool) -> None:
    periods = pd.period_range("1990-01", periods=40, freq=freq)
    frame = pd.DataFrame({"month": periods, "y": np.sin(np.arange(40))})
    if is_index:
        frame = frame.set_index("month")
    file = tmp_path / "periods.parquet"
    frame.to_parquet(file)
    series = prepared(tmp_path, file)
    assert series.freq(0) == {"M": "MS", "Q-DEC": "QS", "Y": "YS"}[freq]
    assert str(series.starts[0]).startswith("1990-01-01")


def test_files_that_are_a_series_each(tmp_path: Path) -> None:
    for town in ("berlin", "paris"):
        csv(tmp_path, hourly().assign(load=lambda f: np.sin(f["load"])), f"{town}.csv")
    (tmp_path / "paris.csv").write_text((tmp_path / "paris.csv").read_text().replace("0.", "1."))
    with pytest.raises(UserError, match=r"2 files.*data\.id_column=file"):
        prepared(tmp_path, str(tmp_path / "*.csv"))
    series = prepared(tmp_path, str(tmp_path / "*.csv"), id_column="file")
    assert [series.item_id(n) for n in range(2)] == ["berlin", "paris"]


def test_files_that_are_parts_of_one_series(tmp_path: Path) -> None:
    frame = hourly()
    csv(tmp_path, frame.iloc[:40], "load-9.csv")
    csv(tmp_path, frame.iloc[40:], "load-10.csv")
    series = prepared(tmp_path, str(tmp_path / "*.csv"), id_column="none")
    assert series.lengths.tolist() == [100] and not series.info.notes


def test_one_file_under_two_names(tmp_path: Path) -> None:
    file = csv(tmp_path, long_frame())
    (tmp_path / "copy.csv").write_bytes(file.read_bytes())
    for other in (tmp_path / "copy.csv", file):
        with pytest.raises(UserError, match="hold the same"):
            prepared(tmp_path, [str(file), str(other)])


def test_one_name_for_two_series(tmp_path: Path) -> None:
    csv(tmp_path, long_frame(60), "a.csv")
    csv(tmp_path, long_frame(61), "b.csv")
    sources = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    with pytest.raises(UserError, match=r"'s0' of .*b.csv names another series too"):
        prepared(tmp_path, sources)
    series = prepared(tmp_path, sources, on_error="skip")
    assert len(series) == 3 and any("whose name another has" in n for n in series.info.notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", "x", "is a spreadsheet; save it as CSV"),
        ("a.docx", "x", "none of CSV, TSV, Parquet"),
        ("a.parquet", "PAR1 cut", "cannot read .*a.parquet"),
        ("a.arrow", "ARROW1 cut", "cannot read .*a.arrow"),
        ("a.feather", "", "cannot read .*a.feather"),
        ("a.jsonl", "{\n", r"line 1 is no JSON"),
        ("a.jsonl", "3\n", r"line 1 is no JSON object"),
        ("a.jsonl", "", "has no series"),
        ("a.json", "[1, 2", "is no JSON"),
        ("a.csv", "time,load\n", "has no rows"),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, text_file(tmp_path, content, name))


@pytest.mark.parametrize("name", ["missing.csv", "*.csv", "folder", "s3://bucket/a.csv"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"data\.source: "):
        prepared(tmp_path, name if "://" in name else str(tmp_path / name))


def test_a_parquet_file_that_was_cut(tmp_path: Path) -> None:
    file = in_format(long_frame(), tmp_path, "parquet")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cannot read .*table\.parquet"):
        prepared(tmp_path, file)


def test_rows_that_do_not_fit_in_memory(
    tmp_path: Path, plain: SeriesSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are gathered in files, and the series are the same."""
    monkeypatch.setattr(long_table, "BUDGET", 100)
    folder = in_format(long_frame().sample(frac=1, random_state=0), tmp_path, "folder")
    series = prepared(tmp_path, folder)
    order = sorted(range(3), key=series.item_id)
    for number, at in enumerate(order):
        assert (single(series, at) == single(plain, number)).all()
    assert not list(tmp_path.glob(".rows-*"))


def test_an_interrupted_preparation_goes_on(
    tmp_path: Path, plain: SeriesSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.set_writer.SHARD_BYTES", 100)
    file = csv(tmp_path, long_frame())

    def stop(item: Any) -> None:
        if item.item_id == "s1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_set([str(file)], tmp_path / "out", TableConfig(), stop)
    assert (tmp_path / ".out.partial").exists() and not (tmp_path / "out").exists()
    prepare_set([str(file)], tmp_path / "out", TableConfig())
    assert same(SeriesSet(tmp_path / "out"), plain) and not (tmp_path / ".out.partial").exists()


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    file = csv(tmp_path, long_frame())
    first, second = prepared(tmp_path, file), prepared(tmp_path, file)
    assert first.digest == second.digest
    for one in sorted(first.folder.iterdir()):
        assert one.read_bytes() == (second.folder / one.name).read_bytes()


def test_a_folder_of_sets_names_them(tmp_path: Path) -> None:
    file = csv(tmp_path, hourly(30))
    for name in ("two", "one"):
        prepare_set([str(file)], tmp_path / "corpus" / name, TableConfig())
    with pytest.raises(UserError, match=r"corpus holds the sets one, two; name one, e\.g\. .*one"):
        prepared(tmp_path, tmp_path / "corpus")
