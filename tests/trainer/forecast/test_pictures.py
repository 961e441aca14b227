"""Pictures and reports show times by the clock of their zone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.trainer.data.sets import csv
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.forecast.pictures import window_clock


@pytest.mark.parametrize(
    ("times", "timezone", "first"),
    [
        (pd.date_range("2024-01-01", periods=100, freq="h", tz="UTC"), "Asia/Tokyo", 9),
        (pd.date_range("2024-01-01", periods=100, freq="h", tz="UTC"), None, 0),
        (pd.date_range("2024-01-01", periods=100, freq="h"), None, 0),
    ],
)
def test_a_window_has_the_times_of_its_zone(
    tmp_path: Path, times: pd.DatetimeIndex, timezone: str | None, first: int
) -> None:
    frame = pd.DataFrame({"time": times, "load": np.sin(np.arange(100.0))})
    options = {"context_length": 12, "prediction_length": 3, "timezone": timezone}
    data = Dataset(DataConfig(source=str(csv(tmp_path, frame)), **options))
    shown = window_clock(data, Split.TRAIN, 0)
    wanted = pd.date_range(f"2024-01-01 {first:02}:00", periods=15, freq="h")
    np.testing.assert_array_equal(shown, wanted.to_numpy())
