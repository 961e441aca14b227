"""Calendar features: what a clock and a calendar know of a moment in advance."""

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
}
"""Each feature as a share of its period, 0 to 1."""


def _day_share(times: Times) -> npt.NDArray[np.float64]:
    seconds = times.hour * 3600 + times.minute * 60 + times.second
    return np.asarray(seconds, np.float64) / 86_400


def calendar_features(
    times: Times, names: Sequence[str], timezone: str | None
) -> npt.NDArray[np.float32]:
    """[T, 2 * len(names)]: sine and cosine of each feature's phase, read in `timezone`."""
    if not names:
        return np.empty((len(times), 0), np.float32)
    if timezone is not None and times.tz is not None:
        times = times.tz_convert(timezone)
    phases = [2 * np.pi * PERIODIC[name](times) for name in names]
    waves = [wave(phase) for phase in phases for wave in (np.sin, np.cos)]
    return np.stack(waves, axis=1).astype(np.float32)
