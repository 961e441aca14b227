"""Days that are written as the midnights of a zone: 2024-07-01 00:00:00+02:00 is July the first.

Taken for moments, those of one zone would be at 22:00 or 23:00 of the day before, as summer and
winter have it.
"""

from __future__ import annotations

import re

import pandas as pd

_MIDNIGHT = re.compile(
    r"(?P<day>.*\d.*?)[T ]+0?0:00(?::00(?:[.,]0+)?)? ?(?:Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)"
)


def are_zoned_days(column: pd.Series) -> bool:
    """Return whether all times of a column carry an offset and are midnights by it."""
    values = column.dropna()
    if values.empty:
        return False
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return bool((values == values.dt.normalize()).all())
    if column.dtype.kind in "Mmiufb" or not isinstance(values.iloc[0], str):
        return False
    return bool(values.str.strip().str.fullmatch(_MIDNIGHT).all())


def without_zone(column: pd.Series) -> pd.Series:
    """Return the days of such a column, as texts without a clock, or as times without a zone.

    What is no midnight becomes missing.
    """
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        local = column.dt.tz_localize(None)
        return local.where(local == local.dt.normalize())
    return column.str.strip().str.extract(_MIDNIGHT)["day"]
