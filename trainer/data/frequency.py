"""Intervals between the points of a series: durations, months and business days.

Their names are pandas' offsets: s, 30min, h, D, B, W-SUN, MS, ME, QS, QE, YS, YE.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.data.arrays import Indices, Moments

MICROSECONDS = {"us": 1, "ms": 1_000, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6}
HOUR = MICROSECONDS["h"]
DAY = 24 * HOUR
WEEK = 7 * DAY

_ALIASES = {"T": "min", "H": "h", "S": "s", "L": "ms", "U": "us", "M": "ME", "Q": "QE"}
_ALIASES |= {"A": "YE", "Y": "YE", "AS": "YS"}
_MONTHS = {"M": 1, "Q": 3, "Y": 12}
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_NAME = re.compile(r"^(\d+)?([A-Za-z]+)(?:-([A-Z]{3}))?$")


@dataclass(frozen=True)
class Frequency:
    """An interval between points."""

    kind: Literal["fixed", "months", "business"]
    count: int
    """Microseconds, months or business days."""
    at_end: bool = False
    """Whether each point of an interval in months is the last day of its month."""

    @property
    def length(self) -> tuple[str, int]:
        """How long it is: months are the same from either end."""
        return self.kind, self.count

    @classmethod
    def parse(cls, name: str) -> Frequency:
        """Return the interval that has this name. Raises ValueError where none has."""
        found = _NAME.match(name.strip())
        if found is None:
            raise ValueError(f"there is no interval {name!r}")
        count, unit = int(found[1] or 1), _ALIASES.get(found[2], found[2])
        if count < 1:
            raise ValueError(f"an interval must be longer than {name!r}")
        if unit in MICROSECONDS:
            return cls("fixed", count * MICROSECONDS[unit])
        if unit in ("D", "W"):
            return cls("fixed", count * (DAY if unit == "D" else WEEK))
        if unit == "B":
            return cls("business", count)
        if unit[0] in _MONTHS and unit[1:] in ("S", "E"):
            return cls("months", count * _MONTHS[unit[0]], unit[1:] == "E")
        raise ValueError(f"there is no interval {name!r}")

    def name(self, start: np.datetime64) -> str:
        """Return the interval's name; that of weeks has the day of `start`."""
        if self.kind == "months":
            unit, months = next(
                (u, m) for u, m in (("Y", 12), ("Q", 3), ("M", 1)) if not self.count % m
            )
            return _counted(self.count // months, unit + ("E" if self.at_end else "S"))
        if self.kind == "business":
            return _counted(self.count, "B")
        if self.count % WEEK == 0:
            return _counted(self.count // WEEK, f"W-{_WEEKDAYS[int(_weekday(start))]}")
        if self.count % DAY == 0:
            return _counted(self.count // DAY, "D")
        unit = next(u for u in reversed(MICROSECONDS) if self.count % MICROSECONDS[u] == 0)
        return _counted(self.count // MICROSECONDS[unit], unit)

    @classmethod
    def named(cls, name: str, start: np.datetime64 | None) -> str:
        """Return the interval `name` as a series from `start` has it: weeks have the start's day.

        An interval in months whose points are not the last days of theirs is dated by its
        beginnings. Raises ValueError where there is no such interval.
        """
        frequency = cls.parse(name)
        anchor = np.datetime64("1970-01-04", "us") if start is None else start
        if frequency.at_end and not _is_end_of_month(anchor):
            frequency = cls(frequency.kind, frequency.count)
        return frequency.name(anchor)

    def times(self, start: np.datetime64, first: int, stop: int) -> Moments:
        """Return the times of points first..stop-1 of a series that begins at `start`."""
        numbers = np.arange(first, stop) * self.count
        begin = start.astype("datetime64[us]")
        if self.kind == "fixed":
            return np.asarray(begin + numbers.astype("timedelta64[us]"))
        day = begin.astype("datetime64[D]")
        clock = begin - day
        if self.kind == "business":
            return np.asarray(np.busday_offset(day, numbers, roll="forward") + clock)
        month = begin.astype("datetime64[M]")
        months = month + numbers.astype("timedelta64[M]")
        if self.at_end:
            last = (months + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(
                1, "D"
            )
            return np.asarray(last + clock)
        return np.asarray(months.astype("datetime64[us]") + (begin - month))

    def seasons(self) -> list[int]:
        """Return the usual periods in points: day and week, the business week, or the year."""
        if self.kind == "business":
            return [5 // self.count] if self.count in (1,) else []
        if self.kind == "months":
            return [12 // self.count] if self.count < 12 and 12 % self.count == 0 else []
        if self.count == WEEK:
            return [52]
        periods = [(DAY, self.count), (WEEK, self.count)]
        return [p // step for p, step in periods if p > step and p % step == 0]

    @property
    def has_clock(self) -> bool:
        """Whether points lie within days, so that a zone's clock changes move them."""
        return self.kind == "fixed" and self.count < DAY


@dataclass(frozen=True)
class Grid:
    """Where the points of a series lie on a regular grid of time."""

    frequency: Frequency
    position: Indices
    """Number of the point on the grid for each time."""
    moved: int = 0
    """Times that were moved to the nearest point of the grid."""


TOLERANCE = 0.1
"""Share of an interval by which a time may lie beside the grid."""


def commonest(names: Iterable[str | None]) -> str | None:
    """Return the interval that most series have; None where none has one."""
    known = Counter(name for name in names if name is not None)
    return known.most_common(1)[0][0] if known else None


def find_grid(times: Moments) -> Grid | None:
    """Return the grid of ascending, distinct times; None for fewer than two, or without one."""
    if len(times) < 2:
        return None
    times = times.astype("datetime64[us]")
    days = times.astype("datetime64[D]")
    steps: Indices = np.diff(times.astype(np.int64)).astype(np.int64)
    if ((times - days) == (times[0] - days[0])).all():
        grid = _monthly(days, steps) or _business(days, steps)
        if grid is not None:
            return grid
    return _fixed(times.astype(np.int64), steps)


def _monthly(days: Moments, steps: Indices) -> Grid | None:
    """Return the grid of times that are whole months apart."""
    if steps.min() < 28 * DAY:
        return None
    months = days.astype("datetime64[M]")
    of_month = (days - months).astype(np.int64)
    is_same_day = bool(of_month.min() == of_month.max() < 28)
    is_end = bool(((days + np.timedelta64(1, "D")).astype("datetime64[M]") != months).all())
    if not is_same_day and not is_end:
        return None
    numbers = months.astype(np.int64) - int(months[0].astype(np.int64))
    count = int(np.gcd.reduce(np.diff(numbers)))
    return Grid(Frequency("months", count, not is_same_day), numbers // count)


def _business(days: Moments, steps: Indices) -> Grid | None:
    """Return the grid of daily times without weekends, over at least one."""
    if _commonest(steps) != DAY or (days[-1] - days[0]).astype(np.int64) < 7:
        return None
    if not np.is_busday(days).all():
        return None
    return Grid(Frequency("business", 1), np.busday_count(days[0], days).astype(np.int64))


def _fixed(times: Indices, steps: Indices) -> Grid | None:
    """Return the grid of times that are multiples of one duration apart, or nearly."""
    interval, since = _commonest(steps), times - times[0]
    if not (since % interval).any():
        return Grid(Frequency("fixed", interval), since // interval)
    common = int(np.gcd.reduce(steps))
    if interval // common <= 4 and int(since[-1]) // common < 4 * len(times):
        return Grid(Frequency("fixed", common), since // common)
    position = np.rint(since / interval).astype(np.int64)
    beside = np.abs(since - position * interval)
    if beside.max() > TOLERANCE * interval or (np.diff(position) < 1).any():
        return None
    return Grid(Frequency("fixed", interval), position, int(np.count_nonzero(beside)))


def _is_end_of_month(time: np.datetime64) -> bool:
    month = time.astype("datetime64[M]")
    return bool((time + np.timedelta64(1, "D")).astype("datetime64[M]") != month)


def _commonest(steps: Indices) -> int:
    """Return the step that most points are apart by; of several, the shortest."""
    values, counts = np.unique(steps, return_counts=True)
    return int(values[counts.argmax()])


def _weekday(moment: np.datetime64) -> np.int64:
    """Return the day of the week, Monday 0; 1970-01-01 was a Thursday."""
    return (moment.astype("datetime64[D]").astype(np.int64) + 3) % 7


def _counted(count: int, unit: str) -> str:
    return unit if count == 1 else f"{count}{unit}"
