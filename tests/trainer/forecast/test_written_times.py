"""Times of forecasts are written as the table's are, so that both can be joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.trainer.forecast.test_future import HORIZON, MANY, shops, trained, waves
from trainer.forecast.forecaster import Forecaster


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    folder = tmp_path_factory.mktemp("general")
    shops(a=200, bb=150).to_csv(folder / "shops.csv", index=False)
    return trained(folder, {**MANY, "data.source": str(folder / "shops.csv")})


DAYS = pd.date_range("2024-01-01", periods=60, freq="D")
QUARTERS = pd.period_range("1990Q1", periods=72, freq="Q")
WEEKS = [time.isocalendar() for time in pd.date_range("2023-01-02", periods=72, freq="7D")]

KINDS: dict[str, Any] = {
    "years": range(1950, 2022),
    "seconds": DAYS.as_unit("s").astype(np.int64),
    "milliseconds": DAYS.as_unit("ms").astype(np.int64),
    "microseconds": DAYS.as_unit("us").astype(np.int64),
    "nanoseconds": DAYS.as_unit("ns").astype(np.int64),
    "dates as numbers": DAYS.strftime("%Y%m%d").astype(np.int64),
    "months as numbers": pd.period_range("2015-01", periods=72, freq="M")
    .strftime("%Y%m")
    .astype(np.int64),
    "quarters": [f"{q.year}-Q{q.quarter}" for q in QUARTERS],
    "quarters without a dash": [f"{q.year}q{q.quarter}" for q in QUARTERS],
    "quarters first": [f"Q{q.quarter} {q.year}" for q in QUARTERS],
    "weeks": [f"{year}-W{week:02}" for year, week, _ in WEEKS],
    "weeks without a dash": [f"{year}W{week:02}" for year, week, _ in WEEKS],
    "days of weeks": [f"{year}-W{week:02}-{day}" for year, week, day in WEEKS],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_file", [False, True])
def test_forecasts_join_what_came(
    general: Forecaster, tmp_path: Path, kind: str, is_file: bool
) -> None:
    times = list(KINDS[kind])
    name = "year" if kind == "years" else "date"
    frame = pd.DataFrame({name: times, "y": waves(len(times))})
    known: Any = frame[:-HORIZON]
    if is_file:
        known.to_csv(tmp_path / "known.csv", index=False)
        known = str(tmp_path / "known.csv")
    made = general.predict(known, targets=["y"])
    assert made[name].tolist() == times[-HORIZON:]
    assert len(made.merge(frame, on=name)) == HORIZON
    tested = general.backtest(known, targets=["y"])
    assert tested[name].tolist() == times[-2 * HORIZON : -HORIZON]
    assert set(tested["cutoff"]) == {times[-2 * HORIZON - 1]}
