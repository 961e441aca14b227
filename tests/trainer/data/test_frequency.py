"""Intervals: their names, their times, and the grid that times lie on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from trainer.data.frequency import Frequency, find_grid

NAMES = [
    "us",
    "10ms",
    "s",
    "4s",
    "min",
    "5min",
    "15min",
    "30min",
    "h",
    "6h",
    "D",
    "2D",
    "B",
    "W-SUN",
    "W-WED",
    "2W-MON",
    "MS",
    "ME",
    "2MS",
    "QS",
    "QE",
    "YS",
    "YE",
    "5YS",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", ["1650-03-01", "1969-12-30", "2023-11-05 03:30"])
def test_times_are_those_of_pandas(name: str, first: str) -> None:
    anchored = "QS-MAR" if name == "QS" else "YE-DEC" if name == "YE" else name
    anchored = {"YS": "YS-MAR", "5YS": "5YS-MAR", "QE": "QE-DEC"}.get(name, anchored)
    expected = pd.date_range(first, periods=40, freq=anchored, unit="us").to_numpy()
    frequency = Frequency.parse(name)
    assert (frequency.times(expected[0], 0, 40) == expected).all()
    assert (frequency.times(expected[0], 7, 12) == expected[7:12]).all()
    assert Frequency.parse(frequency.name(expected[0])) == frequency


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_of_times_is_found(name: str) -> None:
    start = pd.date_range("2023-11-05", periods=1, freq=name)[0]
    frequency = Frequency.parse(name)
    times = frequency.times(start.to_datetime64(), 0, 60)
    grid = find_grid(times)
    assert grid is not None and grid.frequency.name(times[0]) == frequency.name(times[0])
    assert grid.position.tolist() == list(range(60)) and not grid.moved


@pytest.mark.parametrize("name", ["s", "15min", "h", "D", "W-SUN", "MS", "ME", "QS", "YE"])
def test_missing_times_leave_holes(name: str) -> None:
    start = pd.date_range("2023-11-05", periods=1, freq=name)[0].to_datetime64()
    kept = np.sort(np.random.default_rng(0).choice(100, 70, replace=False))
    kept[0] = 0
    grid = find_grid(Frequency.parse(name).times(start, 0, 100)[kept])
    assert grid is not None and grid.frequency == Frequency.parse(name)
    assert grid.position.tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("old", "new"),
    [("T", "min"), ("15T", "15min"), ("H", "h"), ("M", "ME"), ("Q-DEC", "QE"), ("A", "YE")],
)
def test_older_names_are_known(old: str, new: str) -> None:
    assert Frequency.parse(old) == Frequency.parse(new)


@pytest.mark.parametrize("name", ["", "x", "0h", "-1h", "hourly", "1.5h", "XS", "h h"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="interval"):
        Frequency.parse(name)


def test_business_days() -> None:
    days = pd.bdate_range("2024-01-01", periods=30).to_numpy()
    grid = find_grid(np.delete(days, [7, 8]))  # holidays
    assert grid is not None and grid.frequency.name(days[0]) == "B"
    assert grid.position[-1] == 29 and 7 not in grid.position


def test_a_week_without_its_end_is_daily() -> None:
    grid = find_grid(pd.bdate_range("2024-01-01", periods=5).to_numpy())
    assert grid is not None and grid.frequency.name(np.datetime64("2024-01-01")) == "D"


def test_times_a_little_beside_the_grid_are_moved() -> None:
    hours = pd.date_range("2024-01-01", periods=50, freq="h").to_numpy()
    late = hours + np.random.default_rng(0).integers(0, 300, 50).astype("timedelta64[s]")
    late[[1, 2]] = hours[[1, 2]]
    grid = find_grid(np.concatenate([hours, late + np.timedelta64(50, "h")]))
    assert grid is not None and grid.position.tolist() == list(range(100)) and grid.moved > 40


def test_times_without_a_grid() -> None:
    times = np.datetime64("2024-01-01", "us") + np.cumsum(
        np.random.default_rng(0).integers(10**6, 10**10, 50)
    ).astype("timedelta64[us]")
    assert find_grid(times) is None
    assert find_grid(times[:1]) is None


def test_an_interval_that_changes_has_the_finer_grid() -> None:
    hours = pd.date_range("2024-01-01", periods=50, freq="h")
    halves = pd.date_range(hours[-1], periods=41, freq="30min")[1:]
    grid = find_grid(hours.append(halves).to_numpy())
    assert grid is not None and grid.frequency.name(hours[0].to_datetime64()) == "30min"
    assert grid.position[49] == 98 and grid.position[-1] == 138


@pytest.mark.parametrize(
    ("name", "seasons"),
    [
        ("15min", [96, 672]),
        ("30min", [48, 336]),
        ("h", [24, 168]),
        ("7h", [24]),
        ("D", [7]),
        ("B", [5]),
        ("W-SUN", [52]),
        ("MS", [12]),
        ("QS", [4]),
        ("YS", []),
    ],
)
def test_seasons(name: str, seasons: list[int]) -> None:
    assert Frequency.parse(name).seasons() == seasons
