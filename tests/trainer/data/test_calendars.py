"""What the network knows of the time of a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.trainer.data.tables import config, dataset, frame
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.data.calendars import calendar_values, calendar_waves


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
        frame(price=[1.0, 2.0] * 30),
        targets=["load"],
        covariates=["price"],
        calendar=["hour", "day_of_week"],
        calendar_encoding="embedding",
    )
    assert (data.shape.covariates, data.shape.calendar) == (1, (24, 7))
    assert data.batch(Split.TRAIN, np.array([3])).covariates[0, 0].tolist() == [1, 3, 0]
    with pytest.raises(ValueError, match="calendar: time_of_day has no values to embed"):
        config(tmp_path, calendar=["time_of_day"], calendar_encoding="embedding")


def test_season_lengths_come_from_the_interval(tmp_path: Path) -> None:
    data = DataConfig(source="", context_length=200, prediction_length=3)
    file = tmp_path / "s.csv"
    frame(400).to_csv(file, index=False)
    assert Dataset(data.model_copy(update={"source": str(file)})).season_lengths == [24, 168]
