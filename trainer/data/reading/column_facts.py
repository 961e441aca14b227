"""What the columns of a table hold, told by a sample of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from trainer.data.arrays import Doubles
from trainer.data.reading import number_format, time_format
from trainer.data.reading.number_format import MISSING, NumberFormat, share_of_numbers

MISTAKEN = 0.05
"""Share of rows that may repeat another by mistake."""

LOOKED_AT = 4096
"""Rows of a sample by which a column's kind is told."""


class ColumnFacts:
    """Facts about the columns of `sample`, the first rows of a table."""

    def __init__(self, sample: pd.DataFrame, decimal: str | None = None) -> None:
        self.sample = sample
        self._decimal = decimal
        rows = np.unique(np.linspace(0, len(sample) - 1, LOOKED_AT).astype(np.int64))
        self._looked_at = sample.iloc[rows] if len(sample) else sample
        self.is_numbers = cache(self._is_numbers)
        self.values = cache(self._values)

    def _is_numbers(self, name: str) -> bool:
        """Return whether most of a column's cells are numbers."""
        column = self._looked_at[name]
        if isinstance(column.dtype, pd.PeriodDtype) or column.dtype.kind == "M":
            return False
        decimals = (".", ",") if self._decimal is None else (self._decimal,)
        return any(share_of_numbers(column, NumberFormat(mark)) > 0.5 for mark in decimals)

    def _values(self, name: str) -> Doubles:
        """Return a column's numbers, NaN for what is none."""
        form = NumberFormat(self._decimal or ".")
        if share_of_numbers(self._looked_at[name], form) <= 0.5:
            form = NumberFormat(",")
        return number_format.parse(self.sample[name], form)[0]

    def is_times(self, name: str) -> bool:
        """Return whether a column holds nothing but times, by how they are written."""
        return time_format.looks_like_times(self._looked_at[name])

    def is_empty(self, name: str) -> bool:
        """Return whether a column has no cell with something in it but marks of what is missing."""
        column = self._looked_at[name].dropna()
        return bool(column.astype("str").str.strip().str.lower().isin(MISSING).all())

    def is_whole(self, name: str) -> bool:
        """Return whether a column holds whole numbers alone."""
        if not self.is_numbers(name):
            return False
        values = self.values(name)
        known = values[~np.isnan(values)]
        return bool(len(known) and (known == np.floor(known)).all())

    def is_flag(self, name: str) -> bool:
        """Return whether a column holds nothing but 0 and 1, and both."""
        values = self.values(name)
        return set(np.unique(values[~np.isnan(values)])[:3].tolist()) == {0.0, 1.0}

    def counts_rows(self, name: str, ids: Sequence[str] = ()) -> bool:
        """Return whether a column ascends by 1, but where a series begins."""
        if not self.is_numbers(name) or len(self.sample) < 3 or self._has_decimals(name):
            return False
        steps = np.diff(self.values(name))
        if ids:
            steps = steps[np.diff(self._series(ids)) == 0]
            return bool(len(steps) and (steps == 1).all())
        return bool((steps == 1).mean() > 0.5 and (steps[steps != 1] < 0).all())

    def _has_decimals(self, name: str) -> bool:
        """Return whether a column's numbers are written with decimals, as counts are not."""
        column = self._looked_at[name]
        if pd.api.types.is_numeric_dtype(column):
            return column.dtype.kind == "f"
        return bool(column.astype("str").str.contains("[.,eE]", regex=True).any())

    def numbers_rows(self, name: str) -> bool:
        """Return whether a column gives rows numbers of their own, most numbers of a range."""
        if not self.is_whole(name) or not self.is_unique([name]):
            return False
        values = self.values(name)
        return bool(np.nanmax(values) - np.nanmin(values) < 2 * len(values))

    def varies(self, name: str, ids: Sequence[str] = ()) -> bool:
        """Return whether a column varies within some series."""
        values = pd.Series(self.values(name))
        if not ids:
            return bool(values.nunique() > 1)
        return bool((values.groupby(self._series(ids)).nunique() > 1).any())

    def is_unique(self, names: Sequence[str]) -> bool:
        """Return whether no two rows have the same cells in these columns."""
        return not bool(self.sample.duplicated(list(names)).any())

    def is_nearly_unique(self, names: Sequence[str]) -> bool:
        """Return whether few rows have the cells of another in these columns, as by mistake."""
        return float(self.sample.duplicated(list(names)).mean()) < MISTAKEN

    def repeats(self, name: str) -> bool:
        """Return whether a column has each of its cells in two rows, on average at least."""
        return bool(self.sample[name].nunique(dropna=False) <= len(self.sample) / 2)

    def stands_together(self, name: str) -> bool:
        """Return whether each cell of a column stands in several rows, one below the other."""
        codes = pd.factorize(self.sample[name])[0]
        changes = int(np.count_nonzero(np.diff(codes)))
        return bool(len(codes) > codes.max() + 1 and changes == codes.max())

    def _series(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the number of the series that each row is of."""
        groups = self.sample.groupby(list(ids), sort=False, dropna=False).ngroup()
        return groups.to_numpy().astype(np.int64)
