"""Columns of a table, block after block: their cells as texts, numbers and times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.arrays import Doubles, Moments
from trainer.data.reading import number_format, time_format
from trainer.data.reading.number_format import LARGEST, NumberFormat, named
from trainer.data.reading.problems import Problems
from trainer.data.reading.time_format import TimeFormat, TimeKind
from trainer.data.reading.zoned_days import without_zone


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers and how they are written."""

    name: str
    key: str
    """Setting that gave the column its role."""
    source: str
    form: NumberFormat

    def read(self, cells: pa.Array, first: int, problems: Problems) -> Doubles:
        """Return the numbers [T] of a block whose first row is `first`, NaN where missing."""
        numbers, wrong = self._parsed(cells)
        where = f"data.{self.key}: {self.source}, column {self.name}"
        if wrong.any():
            rows = np.flatnonzero(wrong)
            found = named(rows, as_pandas(cells), first)
            problems.lose(
                f"column {self.name}: cells that are no numbers, read as missing",
                f"{where}, {found}, which is not a number",
                mend="correct it, name its mark in data.missing, or name other columns",
                count=len(rows),
            )
            numbers[rows] = np.nan
        infinite = np.flatnonzero(np.abs(numbers) > LARGEST)
        if len(infinite):
            value = numbers[infinite[0]]
            what = "infinite" if np.isinf(value) else f"{value:g}, too large to compute with"
            problems.lose(
                f"column {self.name}: infinite values, read as missing",
                f"{where}, row {infinite[0] + first} is {what}",
                mend="correct it, or name its mark in data.missing",
                count=len(infinite),
            )
            numbers[infinite] = np.nan
        return numbers

    def _parsed(self, cells: pa.Array) -> tuple[Doubles, npt.NDArray[np.bool_]]:
        """Return the numbers [T] of cells, and which are none; by Arrow where it can."""
        kind = cells.type
        if pa.types.is_null(kind):
            return np.full(len(cells), np.nan), np.zeros(len(cells), bool)
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not self.form.missing_numbers and not (is_text and self.form.decimal != "."):
            try:
                if is_text:
                    cells = pc.if_else(pc.equal(cells, ""), pa.scalar(None, kind), cells)
                numbers = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
                return numbers.copy(), np.zeros(len(cells), bool)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                pass  # not all are plain numbers
        numbers, wrong = number_format.parse(cells.to_pandas(), self.form)
        return numbers.copy(), wrong


@dataclass(frozen=True)
class TimeColumn:
    """A column of times and how they are written."""

    name: str
    source: str
    form: TimeFormat
    are_zoned_days: bool = False
    """Whether its times are days, written as the midnights of a zone."""

    def read(self, cells: pa.Array, first: int, problems: Problems) -> tuple[Moments, bool]:
        """Return the times [T] of a block, NaT where there is none, and whether they are UTC."""
        times, is_utc = self._parsed(cells)
        wrong = np.flatnonzero(np.isnat(times))
        if len(wrong):
            found = named(wrong, as_pandas(cells), first)
            problems.lose(
                f"column {self.name}: rows without a time, left out",
                f"data.time_column: {self.source}, column {self.name}, {found}, which is no time "
                f"as the others are",
                mend="name the zone of the times, as in data.timezone=Europe/Berlin"
                if self.are_zoned_days
                else "correct it, or set data.date_format",
                count=len(wrong),
            )
        return times, is_utc

    def _parsed(self, cells: pa.Array) -> tuple[Moments, bool]:
        kind = cells.type
        if self.are_zoned_days:
            days, _ = time_format.parse(without_zone(cells.to_pandas()), self.form)
            return days.to_numpy().astype("datetime64[us]"), False
        if self.form.kind is TimeKind.NUMBERED:
            numbers = pc.cast(cells, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            whole = np.where(np.isnan(numbers), 0, numbers).astype(np.int64)
            times = whole.astype("datetime64[us]")
            return np.where(np.isnan(numbers), np.datetime64("NaT", "us"), times), False
        if self.form.kind is TimeKind.ISO and pa.types.is_string(kind):
            try:
                return pc.cast(cells, pa.timestamp("us")).to_numpy(zero_copy_only=False), False
            except pa.ArrowInvalid:
                pass  # some carry an offset, or are something else
        if pa.types.is_timestamp(kind) and kind.tz is None:
            return (
                pc.cast(cells, pa.timestamp("us"), safe=False).to_numpy(zero_copy_only=False),
                False,
            )
        stamps, is_utc = time_format.parse(cells.to_pandas(), self.form)
        return stamps.to_numpy().astype("datetime64[us]"), is_utc


def texts(cells: pa.Array, missing: str = "") -> npt.NDArray[np.object_]:
    """Return each cell [T] as the text that names a thing: whole numbers without a point."""
    if pa.types.is_floating(cells.type):
        numbers = cells.to_pandas()
        whole = numbers.dropna()
        if (whole == np.floor(whole)).all():
            cells = pc.cast(cells, pa.int64())
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if not pa.types.is_string(cells.type):
        try:
            cells = pc.cast(cells, pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            cells = pa.array(
                [None if v is None else str(v) for v in cells.to_pylist()], pa.string()
            )
    return np.asarray(pc.fill_null(cells, missing).to_numpy(zero_copy_only=False))


def as_pandas(cells: pa.Array) -> pd.Series:
    """Return a column for looking at: a dictionary's values in place of their numbers."""
    return (cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells).to_pandas()
