"""Times as a column writes them, so that what is forecast can be joined with what was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from trainer.data.reading.time_format import QUARTER, UNITS, WEEK, TimeFormat, TimeKind


def written(times: pd.DatetimeIndex, form: TimeFormat) -> Any:
    """Return times [T] as numbers or texts where the column has such, else as they are.

    They are years, numbers since 1970, dates such as 20240131, quarters and weeks.
    """
    if form.kind is TimeKind.YEARS:
        return times.year.to_numpy()
    if form.kind is TimeKind.EPOCH:
        utc = times if times.tz is None else times.tz_convert("UTC").tz_localize(None)
        per_second = {unit: 1000**n for n, unit in enumerate(UNITS)}
        micros = utc.to_numpy().astype("datetime64[us]").astype(np.int64)
        factor = per_second[str(form.pattern)]
        return micros * (factor // 10**6) if factor >= 10**6 else micros // (10**6 // factor)
    if form.kind is TimeKind.PATTERN and form.pattern in ("%Y%m%d", "%Y%m"):
        return times.strftime(form.pattern).astype(np.int64)
    if form.kind is TimeKind.QUARTERS:
        return pd.Index([_quarter(str(form.example), t.year, t.quarter) for t in times])
    if form.kind is TimeKind.WEEKS:
        return pd.Index([_week(str(form.example), *time.isocalendar()) for time in times])
    return times


def _quarter(example: str, year: int, quarter: int) -> str:
    """Return a quarter as the example is written: 2024Q1, 2024-Q1, Q1 2024."""
    found = QUARTER.match(example)
    assert found is not None
    groups = (1, 2) if found[1] else (3, 4)
    numbers = (year, quarter) if found[1] else (quarter, year)
    return _replaced(example, [(found.span(g), n) for g, n in zip(groups, numbers, strict=True)])


def _week(example: str, year: int, week: int, day: int) -> str:
    """Return a week as the example is written: 2024-W05, 2024W05, 2024-W05-1."""
    found = WEEK.match(example)
    assert found is not None
    places = [(found.span(1), year), (found.span(2), f"{week:02}")]
    return _replaced(example, [*places, (found.span(3), day)] if found[3] else places)


def _replaced(text: str, places: list[tuple[tuple[int, int], object]]) -> str:
    """Return a text with what is given at some places, in their order."""
    answer, end = "", 0
    for (start, stop), value in places:
        answer += text[end:start] + str(value)
        end = stop
    return answer + text[end:]
