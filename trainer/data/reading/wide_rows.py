"""A table with a series in each row, as those of the M4 competition: a name, then its values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from trainer.data.frequency import find_grid
from trainer.data.reading import time_format
from trainer.data.reading.cells import NumberColumn, texts
from trainer.data.reading.column_facts import ColumnFacts
from trainer.data.reading.number_format import NumberFormat
from trainer.data.reading.problems import Problems
from trainer.data.reading.records import ID_NAMES, Record

FEWEST = 12
"""Columns of numbers from which a table without times has its series in rows."""

_NUMBERED = re.compile(r"^(?:[A-Za-z_]*[ _-]?)(\d+)$")


def find_values(
    sample: pd.DataFrame, facts: ColumnFacts, ids: str | Sequence[str] | None = None
) -> list[str] | None:
    """Return the columns of values where each row is a series; None where it is a point.

    Then the first column names the series, none holds times, and the others are named by times or
    by numbers one after another. `ids` are the columns that name the series where that was said.
    """
    columns = [str(column) for column in sample.columns]
    if len(columns) < 3 or any(facts.is_times(name) for name in columns):
        return None
    texts_first = [name for name in columns if not facts.is_numbers(name)]
    if not texts_first:
        return _after_numbered_names(columns, facts, [ids] if isinstance(ids, str) else ids)
    values = columns[columns.index(texts_first[-1]) + 1 :] if texts_first else []
    values = [name for name in values if not facts.is_empty(name)] if values else values
    if not values or not facts.is_unique([texts_first[0]]):
        return None
    if times_of(values) is not None:
        return values
    numbers = [_NUMBERED.match(name) for name in values]
    if len(values) < FEWEST or not all(numbers):
        return None
    order = [int(found[1]) for found in numbers if found is not None]
    return values if (np.diff(order) == 1).all() else None


def _after_numbered_names(
    columns: list[str], facts: ColumnFacts, ids: Sequence[str] | None
) -> list[str] | None:
    """Return the columns of values where the series are named by numbers.

    Weeks in rows and years in columns look alike: those are points, unless it was said otherwise.
    """
    names = list(ids) if ids else columns[:1]
    values = columns[len(names) :]
    if columns[: len(names)] != names or len(values) < 2 or not facts.is_unique(names):
        return None
    is_said = bool(ids) or names[0].lower() in ID_NAMES
    if times_of(values) is None or not (is_said or _are_dates(values)):
        return None
    return values


def _are_dates(names: list[str]) -> bool:
    """Return whether names are times that are more than a number."""
    return bool(pd.to_numeric(pd.Series(names), errors="coerce").isna().all())


def times_of(names: list[str]) -> pd.DatetimeIndex | None:
    """Return the times that columns are named by; None where they are not."""
    column = pd.Series(names)
    numbers = pd.to_numeric(column, errors="coerce")
    years = bool(numbers.between(1500, 2200).all()) and bool((numbers.diff().dropna() > 0).all())
    if not years and not time_format.looks_like_times(column):
        return None
    form = time_format.decide(column, "the header")
    times, _ = time_format.parse(column, form)
    is_regular = not times.hasnans and find_grid(times.to_numpy()) is not None
    return times if is_regular else None


def read_records(
    blocks: Iterable[pa.RecordBatch],
    values: list[str],
    names: tuple[str, ...],
    form: NumberFormat,
    source: str,
    problems: Problems,
) -> Iterator[Record]:
    """Yield a record for each row; what is missing at its ends is no part of the series."""
    columns = [NumberColumn(name, "targets", source, form) for name in values]
    times = times_of(values)
    row = 1
    for block in blocks:
        read = [column.read(block.column(column.name), row, problems) for column in columns]
        numbers = np.stack(read, axis=1)
        ids = [texts(block.column(name)) for name in names]
        for at in range(block.num_rows):
            known = np.flatnonzero(~np.isnan(numbers[at]))
            first, last = (int(known[0]), int(known[-1]) + 1) if len(known) else (0, 0)
            record = {name: cells[at] for name, cells in zip(names, ids, strict=True)}
            record["target"] = numbers[at, first:last]
            if times is not None:
                record["timestamp"] = times[first:last].to_numpy()
            yield record
        row += block.num_rows
