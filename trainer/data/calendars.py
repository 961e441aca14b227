"""Calendar features: numbers that a clock and a calendar give for any timestamp in advance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

Times = pd.DatetimeIndex

PERIODIC: dict[str, Callable[[Times], npt.NDArray[np.float64]]] = {
    "time_of_day": lambda t: _day_share(t),
    "day_of_week": lambda t: (t.day_of_week.to_numpy() + _day_share(t)) / 7,
    "day_of_year": lambda t: (t.day_of_year.to_numpy() - 1 + _day_share(t)) / 365.25,
    "minute": lambda t: t.minute.to_numpy() / 60,
    "hour": lambda t: t.hour.to_numpy() / 24,
    "day_of_month": lambda t: (t.day.to_numpy() - 1) / 31,
    "month": lambda t: (t.month.to_numpy() - 1) / 12,
}
"""Feature -> its values as shares of its period, 0 to 1."""

VALUES: dict[str, Callable[[Times], npt.NDArray[np.int64]]] = {
    "minute": lambda t: t.minute.to_numpy(),
    "hour": lambda t: t.hour.to_numpy(),
    "day_of_week": lambda t: t.day_of_week.to_numpy(),
    "day_of_month": lambda t: t.day.to_numpy() - 1,
    "month": lambda t: t.month.to_numpy() - 1,
}
"""Feature -> its values as whole numbers from 0 to less than `model.config.CALENDAR_SIZES`."""


OF_A_DAY = ("time_of_day", "minute", "hour")
"""Features that do not vary from day to day."""


def _day_share(times: Times) -> npt.NDArray[np.float64]:
    """Return the share of its day that has passed at each time."""
    seconds = times.hour * 3600 + times.minute * 60 + times.second
    return np.asarray(seconds, np.float64) / 86_400


def _local(times: Times, timezone: str | None) -> Times:
    """Return times that carry an offset in `timezone`, others as they are."""
    return times.tz_convert(timezone) if timezone is not None and times.tz is not None else times


def calendar_waves(
    times: Times, names: Sequence[str], timezone: str | None
) -> npt.NDArray[np.float32]:
    """Return [T, 2 * len(names)]: sine and cosine of each feature's phase in `timezone`."""
    times = _local(times, timezone)
    phases = [2 * np.pi * PERIODIC[name](times) for name in names]
    waves = [wave(phase) for phase in phases for wave in (np.sin, np.cos)]
    return np.stack([np.empty(len(times)), *waves], axis=1)[:, 1:].astype(np.float32)


def calendar_values(
    times: Times, names: Sequence[str], timezone: str | None
) -> npt.NDArray[np.float32]:
    """Return [T, len(names)]: each feature in `timezone` as a whole number."""
    times = _local(times, timezone)
    values = [VALUES[name](times) for name in names]
    return np.stack([np.zeros(len(times)), *values], axis=1)[:, 1:].astype(np.float32)
