"""What is written into a set is read from it, and what is no whole set is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, hourly
from trainer.config.table_settings import TableConfig
from trainer.data.prepare_set import prepare_set
from trainer.data.series_set import SeriesSet
from trainer.data.set_format import Columns, Item, SetInfo
from trainer.data.set_writer import SetWriter

ONE = Columns(target=("load",))
SEVERAL = Columns(("load", "heat"), ("holiday",), ("wind", "rain"), ("area",), ("city", "kind"))


def made(number: int, columns: Columns, dtype: str = "float32") -> Item:
    """Return an item of some length, with values missing here and there."""
    random = np.random.default_rng(number)
    points = int(random.integers(1, 400))

    def values(rows: int) -> Any:
        drawn = random.normal(size=(rows, points))
        drawn[random.random((rows, points)) < 0.1] = np.nan
        return drawn.astype(dtype)

    return Item(
        f"series {number}",
        np.datetime64("2024-01-01T00:30") + np.timedelta64(number, "D"),
        "30min",
        values(len(columns.target)),
        values(len(columns.known)),
        values(len(columns.past)),
        tuple(random.normal(size=len(columns.static_numbers)).tolist()),
        tuple(f"{name} {number % 3}" for name in columns.static_categories),
    )


def write(
    folder: Path, items: Iterator[Item] | list[Item], columns: Columns, dtype: str = "float32"
) -> SetInfo:
    """Write a set of several shards."""
    with SetWriter(folder, columns, dtype, shard_bytes=20_000) as writer:
        for item in items:
            writer.add(item)
        return writer.finish()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [ONE, SEVERAL], ids=["one", "several"])
def test_items_are_read_as_they_were_written(tmp_path: Path, columns: Columns, dtype: str) -> None:
    items = [made(number, columns, dtype) for number in range(40)]
    info = write(tmp_path / "set", items, columns, dtype)
    opened = SeriesSet(tmp_path / "set")
    opened.verify()
    assert len(opened) == info.items == 40 and len(info.shards) >= 2
    assert info.points == sum(item.length for item in items)
    for number, item in enumerate(items):
        found = opened.item(number)
        assert found.target.dtype == np.dtype(dtype)
        for name in ("item_id", "start", "freq", "static_numbers", "static_categories"):
            assert getattr(found, name) == getattr(item, name)
        for role in ("target", "known", "past"):
            np.testing.assert_array_equal(getattr(found, role), getattr(item, role))
        present = item.target[~np.isnan(item.target)].astype(np.float64)
        assert opened.present[number] == present.size
        assert opened.statistics("deviation")[number] == pytest.approx(present.std(), rel=1e-12)


def test_points_without_times_stay_without(tmp_path: Path) -> None:
    none = np.empty((0, 3), np.float32)
    write(tmp_path / "set", [Item("a", None, None, np.ones((1, 3), np.float32), none, none)], ONE)
    item = SeriesSet(tmp_path / "set").item(0)
    assert item.start is None and item.freq is None


@pytest.mark.parametrize("columns", [ONE, SEVERAL], ids=["one", "several"])
def test_windows_are_slices_and_nan_outside(tmp_path: Path, columns: Columns) -> None:
    items = [made(number, columns) for number in range(60)]
    write(tmp_path / "set", items, columns)
    opened, random = SeriesSet(tmp_path / "set"), np.random.default_rng(0)
    numbers = random.integers(0, 60, 500)
    first = random.integers(-80, opened.lengths[numbers] + 20)
    windows = opened.windows(numbers, first, 50)
    for window, number, start in zip(windows, numbers, first, strict=True):
        around = np.pad(items[number].target, ((0, 0), (100, 100)), constant_values=np.nan)
        np.testing.assert_array_equal(window, around[:, start + 100 : start + 150])
    assert opened.windows(numbers[:0], first[:0], 50).shape == (0, len(columns.target), 50)


def test_other_programs_read_the_shards(tmp_path: Path) -> None:
    """As docs/data.md says: the columns of GluonTS, Chronos and HF datasets."""
    items = [made(number, SEVERAL) for number in range(20)]
    write(tmp_path / "set", items, SEVERAL)
    rows: list[dict[str, Any]] = []
    for shard in sorted((tmp_path / "set").glob("shard-*.arrow")):
        rows += pa.ipc.open_file(shard).read_all().to_pylist()
    for row, item in zip(rows, items, strict=True):
        assert (row["item_id"], row["freq"]) == (item.item_id, item.freq)
        np.testing.assert_array_equal(np.array(row["target"], np.float32), item.target)
        np.testing.assert_array_equal(np.array(row["feat_dynamic_real"], np.float32), item.known)
        assert row["feat_static_cat"] == list(item.static_categories)


def test_an_interrupted_writer_is_gone_on_with_to_the_byte(tmp_path: Path) -> None:
    items = [made(number, ONE) for number in range(80)]
    write(tmp_path / "straight", items, ONE)

    def attempt(origin: str, stop: int | None) -> int:
        with SetWriter(
            tmp_path / "set", ONE, "float32", origin=origin, shard_bytes=20_000
        ) as writer:
            for number, item in enumerate(items[writer.kept :], start=writer.kept):
                if number == stop:
                    return writer.kept
                writer.add(item)
            writer.finish()
            return writer.kept

    assert attempt("a", 50) == 0
    assert 0 < attempt("a", 70) < 50
    assert not (tmp_path / "set").exists()
    assert attempt("a", None) > 50
    files = sorted(file.name for file in (tmp_path / "straight").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "set").iterdir())
    for file in files:
        assert (tmp_path / "set" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


def test_what_another_origin_has_left_is_not_used(tmp_path: Path) -> None:
    with SetWriter(tmp_path / "set", ONE, "float32", origin="a", shard_bytes=1000) as writer:
        for number in range(30):
            writer.add(made(number, ONE))
    with SetWriter(tmp_path / "set", ONE, "float32", origin="b") as writer:
        assert writer.kept == 0
        writer.add(made(99, ONE))
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(SeriesSet(tmp_path / "set")) == 1


def test_a_name_comes_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'series 1' names two series"):
        write(tmp_path / "set", [made(1, ONE), made(1, ONE)], ONE)
    assert not (tmp_path / "set").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "set", [made(1, ONE)], ONE)
    with pytest.raises(UserError, match="no series is left to write: "):
        write(tmp_path / "other", [], ONE)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return a set."""
    write(tmp_path / "set", [made(number, ONE) for number in range(40)], ONE)
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["shard-00001.arrow", "index.arrow"])
def test_a_file_that_is_gone_or_cut_is_named(whole: Path, name: str) -> None:
    content = (whole / name).read_bytes()
    (whole / name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{name} has [\d,]+ bytes, and [\d,]+ were written"):
        SeriesSet(whole)
    (whole / name).unlink()
    with pytest.raises(UserError, match=f"{name}: No such file"):
        SeriesSet(whole)


@pytest.mark.parametrize("name", ["shard-00001.arrow", "index.arrow"])
def test_a_byte_that_has_changed_is_noticed(whole: Path, name: str) -> None:
    content = bytearray((whole / name).read_bytes())
    content[len(content) // 2] ^= 1
    (whole / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} has changed"):
        SeriesSet(whole).verify()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "is of version 2 of the format"),
        ({"items": -1}, "is no description of a set"),
        ({"index": {"name": "../index.arrow", "bytes": 1, "sha256": "0" * 64}}, "outside"),
        (None, "is no JSON"),
    ],
)
def test_a_broken_description_is_refused(
    whole: Path, changes: dict[str, Any] | None, sentence: str
) -> None:
    path = whole / "set.json"
    content = json.loads(path.read_text())
    path.write_text("{" if changes is None else json.dumps({**content, **changes}))
    with pytest.raises(UserError, match=sentence):
        SeriesSet(whole)


def test_the_digest_is_of_the_contents(tmp_path: Path) -> None:
    items = [made(number, ONE) for number in range(5)]
    for name, of in (("a", items), ("b", items), ("c", [*items[:4], made(7, ONE)])):
        write(tmp_path / name, of, ONE)
    a, b, c = (SeriesSet(tmp_path / name).digest for name in "abc")
    assert a == b != c


def test_a_folder_in_which_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    file = csv(tmp_path, hourly(48))
    with pytest.raises(UserError, match=r"^/proc/s: .*; name another folder$"):
        prepare_set([str(file)], Path("/proc/s"), TableConfig())
