"""Series, splits, windows and their order; files that cannot be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from trainer.config.settings import DataConfig
from trainer.data import Dataset, Split
from trainer.data.calendars import calendar_values, calendar_waves


def frame(rows: int = 60, **columns: Any) -> pd.DataFrame:
    hours = pd.date_range("2024-01-01", periods=rows, freq="h")
    wave = np.arange(rows, dtype=float)
    return pd.DataFrame({"date": hours, "load": wave, "heat": 2 * wave, **columns})


def dataset(tmp_path: Path, table: pd.DataFrame, **changes: Any) -> Dataset:
    file = tmp_path / "series.csv"
    table.to_csv(file, index=False)
    return Dataset(config(file, **changes))


def config(file: Path, **changes: Any) -> DataConfig:
    return DataConfig(source=str(file), context_length=6, prediction_length=3, **changes)


def mistake(tmp_path: Path, table: pd.DataFrame, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        dataset(tmp_path, table, **changes)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_parts_meet_in_time_and_only_context_reaches_back(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100), scaling="none")
    assert [data.windows(split) for split in Split] == [70 - 8, 10 - 2, 20 - 2]
    for split, first, last in (
        (Split.TRAIN, 6, 69),
        (Split.VALIDATION, 70, 79),
        (Split.TEST, 80, 99),
    ):
        everything = data.batch(split, np.arange(data.windows(split)))
        assert everything.target[0, 0, 0] == first
        assert everything.target[-1, -1, 0] == last
        assert (everything.context[:, -1, 0] + 1 == everything.target[:, 0, 0]).all()


def test_split_by_rows_leaves_the_rest_unused(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100), split=[40, 20, 20], scaling="none")
    assert data.batch(Split.TEST, np.array([data.windows(Split.TEST) - 1])).target[0, -1, 0] == 79
    assert mistake(tmp_path, frame(60), split=[40, 20, 20]).startswith(
        "data.split: the parts add to 80 rows, but"
    )


def test_scaling_knows_the_training_part_only(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100))
    training = np.arange(70.0)
    assert data.mean.tolist() == pytest.approx([training.mean(), 2 * training.mean()])
    assert data.deviation.tolist() == pytest.approx([training.std(), 2 * training.std()])


def test_order_is_a_pure_function_of_seed_and_index(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(100))
    whole = data.draw(3, 0, 64)
    parts = [data.draw(3, start, start + size) for start, size in ((0, 1), (1, 7), (8, 56))]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, data.draw(4, 0, 64))
    counts = np.bincount(data.draw(0, 0, 62_000), minlength=62)
    assert counts.min() > 800 and counts.max() < 1200 and len(counts) == 62


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


def test_missing_targets_are_masked_counted_and_told(tmp_path: Path) -> None:
    table = frame()
    table.loc[[3, 50], "load"] = np.nan
    data = dataset(tmp_path, table)
    assert data.notes == ["load: 2 of 60 values are missing; they are masked"]
    assert np.isnan(data.batch(Split.TRAIN, np.array([0])).context[0, 3, 0])
    assert np.isfinite(data.mean).all()


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


def test_a_small_deviation_around_a_large_mean_is_kept(tmp_path: Path) -> None:
    wave = np.sin(np.arange(60))
    data = dataset(tmp_path, frame().assign(load=1e9 + wave))
    expected = (wave - wave[:42].mean()) / wave[:42].std()
    np.testing.assert_allclose(data.values[0][:, 0], expected, atol=1e-5)
    raw = dataset(tmp_path, frame().assign(load=1e9 + wave), scaling="none")
    assert raw.notes == ["load: fp32 loses much of its variation; use data.scaling=train"]


def test_columns_that_play_no_part_are_told(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame(name="x", flag=True).reset_index(names="Unnamed: 0"))
    assert data.channels == ["load", "heat"]
    assert data.notes == ["forecasting load, heat; left out: Unnamed: 0, name, flag"]


def test_a_digest_changes_with_any_value(tmp_path: Path) -> None:
    first = dataset(tmp_path, frame()).digest
    assert first == dataset(tmp_path, frame()).digest
    assert first != dataset(tmp_path, words(frame(), "heat", 59, 0.0)).digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["load", "load"]}, "targets: load stands twice"),
        ({"targets": ["load"], "covariates": ["load"]}, "covariates: load is a target"),
        ({"timezone": "Nowhere/City"}, "timezone: there is no 'Nowhere/City'"),
        ({"season_lengths": [24]}, "season_lengths: 24 is longer than context_length=6"),
        ({"season_lengths": [5, 3]}, r"season_lengths: \[5, 3\] must ascend"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path / "series.csv", **changes)


def test_gaps_between_timestamps_are_told(tmp_path: Path) -> None:
    data = dataset(tmp_path, frame().drop(index=[10, 11, 30]))
    assert data.notes == [
        f"{tmp_path}/series.csv: 2 gaps between timestamps; windows count rows across them"
    ]


def test_padding_repeats_windows_with_weight_zero(tmp_path: Path) -> None:
    batch = dataset(tmp_path, frame()).batch(Split.TRAIN, np.array([4, 5]), size=4)
    assert batch.weight.tolist() == [1, 1, 0, 0]
    assert batch.context.shape == (4, 6, 2)


def test_season_lengths_come_from_the_interval(tmp_path: Path) -> None:
    data = DataConfig(source="", context_length=200, prediction_length=3)
    file = tmp_path / "s.csv"
    frame(400).to_csv(file, index=False)
    assert Dataset(data.model_copy(update={"source": str(file)})).season_lengths == [24, 168]


def test_calendar_is_read_in_the_timezone() -> None:
    times = pd.DatetimeIndex(["2024-01-01T00:00Z", "2024-01-01T06:00Z"])
    utc = calendar_waves(times, ["time_of_day"], None)
    np.testing.assert_allclose(utc, [[0, 1], [1, 0]], atol=1e-6)
    east = calendar_waves(times, ["time_of_day"], "Etc/GMT-6")
    np.testing.assert_allclose(east, [[1, 0], [0, -1]], atol=1e-6)
    week = calendar_waves(times[:1], ["day_of_week", "day_of_year"], None)
    np.testing.assert_allclose(week, [[0, 1, 0, 1]], atol=1e-6)


def test_calendar_values_count_from_zero() -> None:
    times = pd.DatetimeIndex(["2024-12-31T23:45Z"])
    names = ["minute", "hour", "day_of_week", "day_of_month", "month"]
    assert calendar_values(times, names, None).tolist() == [[45, 23, 1, 30, 11]]
    assert calendar_values(times, names, "Etc/GMT-1").tolist() == [[45, 0, 2, 0, 0]]


def test_an_embedded_calendar_comes_last(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        frame(price=1.5),
        targets=["load"],
        covariates=["price"],
        calendar=["hour", "day_of_week"],
        calendar_encoding="embedding",
    )
    assert (data.shape.covariates, data.shape.calendar) == (1, (24, 7))
    assert data.batch(Split.TRAIN, np.array([3])).covariates[0, 0].tolist() == [1.5, 3, 0]
    with pytest.raises(ValueError, match="calendar: time_of_day has no values to embed"):
        config(tmp_path, calendar=["time_of_day"], calendar_encoding="embedding")


def test_covariates_are_known_for_context_and_future(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        frame(holiday=[i % 2 == 0 for i in range(60)]),
        targets=["load"],
        covariates=["holiday"],
        calendar=["time_of_day"],
    )
    assert data.shape.covariates == 3
    assert data.batch(Split.TRAIN, np.array([0])).covariates[0, :, 2].tolist() == [1, 0] * 4 + [1]


def words(table: pd.DataFrame, column: str, row: int, word: Any) -> pd.DataFrame:
    return table.assign(**{column: [*table[column][:row], word, *table[column][row + 1 :]]})


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
            "data.time_column: series.csv, row 4: timestamp 2024-01-01 02:00:00 (several "
            "series? name "
            "data.id_column) comes after 2024-01-01 03:00:00; sort the file by time",
        ),
        (
            frame().iloc[[0, 1, 1, 2]],
            {},
            "data.time_column: series.csv, row 3: timestamp 2024-01-01 01:00:00 (several "
            "series? name "
            "data.id_column) repeats the row before; remove the repetition",
        ),
        (
            frame(8),
            {},
            "data.source: no series is long enough: a window takes context_length + "
            "prediction_length "
            "= 9 rows, the longest training part has 5",
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
            "data.source: no series is long enough: a window takes context_length + "
            "prediction_length "
            "= 9 rows, the longest training part has 0",
        ),
        (
            frame()[["load"]],
            {"calendar": ["time_of_day"]},
            "data.calendar: series.csv has no column of timestamps; name it as data.time_column "
            "or set "
            "data.calendar=[]",
        ),
        (
            frame(price=[np.nan] * 60),
            {"covariates": ["price"]},
            "data.covariates: series.csv, row 1: price is missing, but covariates must be known "
            "for "
            "every row; fill it or leave the column out",
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


@pytest.mark.parametrize(
    ("horizon", "mse", "mae"),
    [
        (96, 1.294, 0.713),
        (192, 1.325, 0.733),
        (336, 1.330, 0.746),
        (720, 1.335, 0.755),
    ],
)
def test_repeating_the_last_value_scores_on_etth1_what_the_literature_says(
    real_data: Path, horizon: int, mse: float, mae: float
) -> None:
    from trainer.forecast.evaluate import evaluate

    data = Dataset(
        DataConfig(
            source=str(real_data / "ETTh1.csv.gz"),
            context_length=96,
            prediction_length=horizon,
            split=[8640, 2880, 2880],
            season_lengths=[24],
        )
    )
    assert data.windows(Split.TEST) == 2880 - horizon + 1
    scores = evaluate(
        data, Split.TEST, lambda batches: ((b, _zeros(b, horizon)) for b in batches), batch_size=256
    ).scores()
    assert scores["last value"]["mse"] == pytest.approx(mse, abs=5e-4)
    assert scores["last value"]["mae"] == pytest.approx(mae, abs=5e-4)


def _zeros(batch: Any, horizon: int) -> Any:
    import torch

    return torch.zeros(len(batch.context), horizon, 7)


def test_vic_elec_baselines_are_those_that_were_computed_elsewhere() -> None:
    from trainer.forecast.evaluate import evaluate

    data = Dataset(DataConfig(source="vic_elec", targets=["Demand", "Temperature"]))
    assert data.season_lengths == [48, 336] and data.windows(Split.TEST) == 10_474
    scores = evaluate(
        data,
        Split.TEST,
        lambda batches: ((b, _zeros(b, 48)[..., :2]) for b in batches),
        batch_size=256,
    ).scores()
    assert scores["seasonal naive (48)"]["mse"] == pytest.approx(0.3515, abs=5e-5)
    assert scores["seasonal naive (336)"]["mse"] == pytest.approx(0.3531, abs=5e-5)
    assert scores["seasonal naive (48)"]["mae"] == pytest.approx(0.4074, abs=5e-5)
