"""What a column of times is: how it is written is decided first, and then it is read strictly."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pandas as pd

from model.errors import UserError
from model.sentences import first_line

Times = pd.DatetimeIndex

WAY_OUT = "set data.date_format, e.g. data.date_format='%d/%m/%Y %H:%M'"

_SEPARATED = re.compile(r"^(\d{1,4})([-/.])(\d{1,2})(?:\2(\d{1,4}))?$")
_MONTHS = "|".join([*calendar.month_name[1:], *calendar.month_abbr[1:]])
_NAMED = re.compile(
    rf"^(?:(\d{{1,2}})([- /]))?({_MONTHS})\.?([- /])(\d{{1,2}},? )?(\d{{4}}|\d{{2}})$",
    re.IGNORECASE,
)
_CLOCK = re.compile(
    r"^(?P<date>.*?\d.*?)"
    r"(?:(?P<t>[T ]+)(?P<h>\d{1,2})(?P<m>:\d{2})?(?P<s>:\d{2})?(?P<f>[.,]\d{1,9})?"
    r"(?P<p> ?[AaPp]\.?[Mm]\.?)?)(?P<z> ?(?:Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?))?$"
)
QUARTER = re.compile(r"^(?:(\d{4})[- ]?Q([1-4])|Q([1-4])[- /]?(\d{4}))$", re.IGNORECASE)
WEEK = re.compile(r"^(\d{4})-?W(\d{2})(?:-?([1-7]))?$", re.IGNORECASE)


class TimeKind(StrEnum):
    """How times are written."""

    TIMESTAMPS = "timestamps"
    PATTERN = "pattern"
    ISO = "ISO 8601"
    QUARTERS = "quarters"
    WEEKS = "ISO weeks"
    YEARS = "years"
    EPOCH = "epoch"
    NUMBERED = "numbered"


@dataclass(frozen=True)
class TimeFormat:
    """How a column of times is written."""

    kind: TimeKind
    pattern: str | None = None
    """Pattern of strptime, or the unit of epochs: s, ms, us or ns."""
    note: str | None = None
    """A sentence for the user on what was assumed, where it could have been otherwise."""
    example: str | None = None
    """A quarter or week as it is written there."""


UNITS = {
    "s": ("seconds", 1e9),
    "ms": ("milliseconds", 1e12),
    "us": ("microseconds", 1e15),
    "ns": ("nanoseconds", 1e18),
}
"""Unit of an epoch -> its name, and what a time of 2001 to 2286 is at least in it."""


def decide(
    column: pd.Series, where: str, *, date_format: str | None = None, time_unit: str | None = None
) -> TimeFormat:
    """Return how the times in `column` are written; missing ones say nothing.

    `where` names file and column in messages. Raises UserError for values that are no times, and
    where two readings fit.
    """
    values = column.dropna()
    if isinstance(column.dtype, pd.PeriodDtype) or column.dtype.kind == "M":
        return TimeFormat(TimeKind.TIMESTAMPS)
    if date_format is not None:
        _check_pattern(date_format)
        return TimeFormat(TimeKind.PATTERN, date_format)
    if values.empty:
        raise UserError(f"data.time_column: {where} has no time")
    if pd.api.types.is_numeric_dtype(values):
        return _decide_numbers(values.to_numpy(np.float64), where, time_unit)
    texts = values.astype(str).str.strip()
    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().all():
        return _decide_numbers(numbers.to_numpy(np.float64), where, time_unit)
    if isinstance(values.iloc[0], pd.Timestamp | pd.Period):  # a column of objects
        return TimeFormat(TimeKind.TIMESTAMPS)
    for kind, expression in ((TimeKind.QUARTERS, QUARTER), (TimeKind.WEEKS, WEEK)):
        if expression.match(texts.iloc[0]):
            return TimeFormat(kind, example=texts.iloc[0])
    return _decide_texts(texts, where)


def _check_pattern(pattern: str) -> None:
    """Raise UserError where no time can be read by a pattern of strptime."""
    try:
        pd.to_datetime(pd.Series(["1"]), format=pattern, errors="coerce")
    except ValueError as error:
        raise UserError(
            f"data.date_format: {pattern!r}: {first_line(error)}; weeks such as 2024-W05 and "
            "quarters such as 2024Q1 are read without a format"
        ) from None


def looks_like_times(column: pd.Series) -> bool:
    """Return whether a column holds nothing but times, by how they are written.

    Numbers do not say so: whether they are times is told by the column's name alone.
    """
    if isinstance(column.dtype, pd.PeriodDtype) or column.dtype.kind == "M":
        return True
    values = column.dropna()
    if values.empty or pd.api.types.is_numeric_dtype(values):
        return False
    if isinstance(values.iloc[0], pd.Timestamp | pd.Period):
        return True
    texts = values.astype(str).str.strip()
    texts = texts[texts != ""]
    if texts.empty:
        return False
    spread = texts.iloc[:: max(1, len(texts) // 50)]
    return float(np.mean([_is_written_as_time(text) for text in spread])) > 0.9


def _is_written_as_time(text: str) -> bool:
    if re.fullmatch(r"[\d.]+", text) and not _SEPARATED.match(text):
        return False
    return bool(QUARTER.match(text) or WEEK.match(text) or next(_patterns(text), None))


def parse(column: pd.Series, form: TimeFormat) -> tuple[Times, bool]:
    """Return the times [T] of a column, NaT where there is none, and whether they are UTC.

    Others are clock times of a zone that the column does not name. Of years, quarters, weeks and
    periods the time is their beginning.
    """
    if form.kind is TimeKind.TIMESTAMPS:
        if isinstance(column.dtype, pd.PeriodDtype):
            return Times(column.dt.start_time), False
        if column.dtype == object:
            return _utc(pd.DatetimeIndex([_start(value) for value in column]))
        return _utc(pd.DatetimeIndex(column))
    if form.kind in (TimeKind.YEARS, TimeKind.EPOCH):
        return _parse_numbers(column, form)
    texts = column.astype("str").str.strip().where(column.notna())
    if form.kind is TimeKind.QUARTERS:
        found = texts.str.extract(QUARTER)
        year, quarter = found[0].fillna(found[3]), found[1].fillna(found[2])
        months = (pd.to_numeric(quarter) - 1) * 3 + 1
        text = year.str.cat(months.map("{:02.0f}".format, na_action="ignore"), sep="-")
        return Times(pd.to_datetime(text, format="%Y-%m", errors="coerce")), False
    if form.kind is TimeKind.WEEKS:
        found = texts.str.extract(WEEK)
        text = found[0] + "-" + found[1] + "-" + found[2].fillna("1").where(found[0].notna())
        return Times(pd.to_datetime(text, format="%G-%V-%u", errors="coerce")), False
    return _parse_texts(texts, form)


def _start(value: object) -> object:
    return value.start_time if isinstance(value, pd.Period) else value


def _utc(times: Times) -> tuple[Times, bool]:
    if times.tz is None:
        return times, False
    return times.tz_convert("UTC").tz_localize(None), True


def _decide_numbers(
    numbers: npt.NDArray[np.float64], where: str, time_unit: str | None
) -> TimeFormat:
    """Return what numbers are: epochs, dates such as 20240131, years, or only an order."""
    low, high = float(numbers.min()), float(numbers.max())
    whole = bool((numbers == np.floor(numbers)).all())
    if time_unit is not None:
        return TimeFormat(TimeKind.EPOCH, time_unit)
    if whole and low >= 1e7 and high < 1e8 and _is_date(numbers):
        return TimeFormat(TimeKind.PATTERN, "%Y%m%d")
    if whole and low >= 180_001 and high <= 220_012 and _is_date(numbers * 100 + 1):
        return TimeFormat(TimeKind.PATTERN, "%Y%m")
    if whole and low >= 1000 and high < 3000:
        return TimeFormat(TimeKind.YEARS, note=f"{where}: whole numbers are taken for years")
    for unit, (name, least) in UNITS.items():
        if least / 10 <= low and high < least * 10:
            note = f"{where}: numbers are taken for {name} since 1970 (data.time_unit={unit})"
            return TimeFormat(TimeKind.EPOCH, unit, note)
    if whole:
        return TimeFormat(TimeKind.NUMBERED)
    raise UserError(
        f"data.time_column: {where} holds numbers such as {low:g}, not times; set data.time_unit "
        "(s, ms, us or ns since 1970), name another column, or data.time_column=none"
    )


def _is_date(numbers: npt.NDArray[np.float64]) -> bool:
    month, day = numbers // 100 % 100, numbers % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _parse_numbers(column: pd.Series, form: TimeFormat) -> tuple[Times, bool]:
    numbers = pd.to_numeric(column, errors="coerce")
    if form.kind is TimeKind.YEARS:
        years = np.where(numbers.notna(), numbers.fillna(0), 0).astype(np.int64) - 1970
        times = years.astype("datetime64[Y]").astype("datetime64[us]")
        return Times(np.where(numbers.notna(), times, np.datetime64("NaT", "us"))), False
    assert form.pattern is not None
    factor = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[form.pattern]
    known = numbers.notna().to_numpy()
    values = numbers.to_numpy(np.float64, na_value=0.0)
    if numbers.dtype.kind in "iu":  # exact, where a float would round nanoseconds
        whole = numbers.to_numpy(np.int64)
        micros = whole * int(factor) if factor >= 1 else whole // round(1 / factor)
    else:
        micros = np.rint(values * factor).astype(np.int64)
    times = micros.astype("datetime64[us]")
    return Times(np.where(known, times, np.datetime64("NaT", "us"))), True


def _decide_texts(texts: pd.Series, where: str) -> TimeFormat:
    """Return the pattern that fits all texts."""
    first = texts.iloc[0]
    patterns = list(_patterns(first))
    distinct = texts.drop_duplicates()
    for other in distinct.iloc[1:200]:
        patterns += [pattern for pattern in _patterns(other) if pattern not in patterns]
    if not patterns:
        raise UserError(
            f"data.time_column: {where}: {first!r} is not a time such as 2024-01-31 13:00; "
            f"{WAY_OUT}, or name another column"
        )
    if all(pattern.startswith("%Y-%m-%d") and "%p" not in pattern for pattern in patterns):
        return TimeFormat(TimeKind.ISO)
    read = [_share_read(distinct, pattern) for pattern in patterns]
    fitting = [pattern for pattern, share in zip(patterns, read, strict=True) if share == max(read)]
    month_first = next((p for p in fitting if "%d" in p.partition("%m")[2]), None)
    day_first = next((p for p in fitting if "%m" in p.partition("%d")[2]), None)
    if month_first is None or day_first is None:
        return TimeFormat(TimeKind.PATTERN, fitting[0])
    if _is_regular(distinct, month_first) and not _is_regular(distinct, day_first):
        return TimeFormat(TimeKind.PATTERN, month_first)
    raise UserError(
        f"data.time_column: {where}: {first!r} could begin with the month or with the day; "
        f"set data.date_format='{month_first}' or data.date_format='{day_first}'"
    )


def _share_read(texts: pd.Series, pattern: str) -> float:
    times, _ = _parse_texts(texts, TimeFormat(TimeKind.PATTERN, pattern))
    return float(np.mean(~np.isnat(times.to_numpy())))


def _is_regular(texts: pd.Series, pattern: str) -> bool:
    """Return whether most times follow each other at one interval, or are months apart."""
    times, _ = _parse_texts(texts, TimeFormat(TimeKind.PATTERN, pattern))
    times = times.dropna().sort_values()
    if len(times) < 3:
        return False
    _, counts = np.unique(np.diff(times.asi8), return_counts=True)
    months = np.diff((times.year * 12 + times.month).to_numpy())
    monthly: npt.NDArray[np.bool_] = (
        (months > 0) & (months == np.median(months)) & (np.diff(times.day.to_numpy()) == 0)
    )
    return bool(counts.max() > 0.9 * len(months) or monthly.mean() > 0.9)


def _patterns(text: str) -> Iterator[str]:
    """Yield the patterns of strptime that a text could be written by."""
    clock = _CLOCK.match(text)
    ending = ""
    if clock is not None:
        text = clock["date"]
        hour = "%I" if clock["p"] else "%H"
        ending = f"{clock['t']}{hour}"
        ending += ":%M" if clock["m"] else ""
        ending += ":%S" if clock["s"] else ""
        ending += f"{clock['f'][0]}%f" if clock["f"] else ""
        ending += (" %p" if clock["p"].startswith(" ") else "%p") if clock["p"] else ""
        ending += (" %z" if clock["z"].startswith(" ") else "%z") if clock["z"] else ""
    for date in _date_patterns(text):
        yield date + ending


def _date_patterns(text: str) -> Iterator[str]:
    if re.fullmatch(r"\d{8}", text):
        yield "%Y%m%d"
    found = _SEPARATED.match(text)
    if found is not None:
        first, separator, _, third = found.groups()
        if len(first) == 4:
            yield f"%Y{separator}%m" + (f"{separator}%d" if third else "")
        elif third is None:
            return
        elif len(third) in (2, 4):
            year = "%Y" if len(third) == 4 else "%y"
            if separator != ".":  # with points the day is first wherever they are used
                yield separator.join(("%m", "%d", year))
            yield separator.join(("%d", "%m", year))
    month_year = re.fullmatch(r"\d{1,2}([-/.])\d{4}", text)
    if month_year:
        yield f"%m{month_year[1]}%Y"
    named = _NAMED.match(text)
    if named is not None:
        day, before, month, after, later_day, year = named.groups()
        name = "%b" if len(month) == 3 else "%B"
        ends = "%Y" if len(year) == 4 else "%y"
        if day is not None:
            yield f"%d{before}{name}{after}{ends}"
        elif later_day is not None:
            yield f"{name}{after}%d{', ' if ',' in later_day else ' '}{ends}"
        else:
            yield f"{name}{after}{ends}"


def _parse_texts(texts: pd.Series, form: TimeFormat) -> tuple[Times, bool]:
    """Return the times that texts are, NaT for those that are written in another way."""
    pattern = "ISO8601" if form.kind is TimeKind.ISO else form.pattern
    assert pattern is not None
    midnight = texts.str.contains(r"[T ]24:00(?::00)?$", regex=True, na=False)
    if midnight.any():  # the end of a day, as meters write it
        texts = texts.where(~midnight, texts.str.replace(r"([T ])24:00", r"\g<1>00:00", regex=True))
    zoned = pattern.endswith("%z") or (
        pattern == "ISO8601"
        and bool(texts.str.contains(r"(?:Z|UTC|GMT|[+-]\d{2}:?\d{2})$", na=False).any())
    )
    if zoned:
        texts = texts.str.replace(r" ?(?:UTC|GMT)$", "Z", regex=True)
        pattern = pattern.replace(" %z", "%z")
        texts = texts.str.replace(r" (?=[+-]\d{2}:?\d{2}$)", "", regex=True)
    times = Times(pd.to_datetime(texts, format=pattern, errors="coerce", utc=zoned))
    times, _ = _utc(times)
    return times + pd.to_timedelta(midnight.to_numpy().astype(np.int64), unit="D"), zoned
