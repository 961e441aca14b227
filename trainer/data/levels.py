"""Values of a series that are probably none: codes for missing, and what lies far outside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.data.reading.problems import Problems
from trainer.data.set_format import Columns, Item

CODES = (-9999.0, -999.0, -99.0, -9.0, 9999.0, 99999.0, 999999.0, -99999.0, -32768.0)
"""Numbers that stand for a missing value in many files."""
FAR = 10.0
"""Multiples of the range of 90 % of the values at which one lies far outside."""
LOOKED_AT = 10_000
"""Values of a channel by which its range is told."""


def note_levels(item: Item, columns: Columns, problems: Problems) -> None:
    """Report channels that do not vary, and values that are probably codes or mistakes."""
    for name, channel in zip(columns.target, item.target, strict=True):
        present = channel[~np.isnan(channel)]
        if not len(present):
            problems.note(f"{name}: series without a value of it", item.item_id)
            continue
        low, high = float(present.min()), float(present.max())
        if low == high:
            if len(present) > 1:
                problems.note(f"{name}: series in which it does not vary", item.item_id)
            continue
        _note_outliers(present, low, high, name, item.item_id, problems)


def _note_outliers(
    present: npt.NDArray[np.floating],
    low: float,
    high: float,
    name: str,
    item_id: str,
    problems: Problems,
) -> None:
    sample = present[:: max(1, len(present) // LOOKED_AT)]
    usual = sample[~np.isin(sample, CODES)]  # a code may be more frequent than any value
    if not len(usual):
        return
    bottom, top = np.percentile(usual, [5, 95]).tolist()
    spread = top - bottom
    for value, beyond in ((low, bottom - low), (high, high - top)):
        if spread <= 0 or beyond <= FAR * spread:
            continue
        count = int(np.count_nonzero(present == value))
        times = f"{count:,} values of {value:g}" if count > 1 else f"a value of {value:g}"
        where = f"{item_id} has {times}, and most lie within {bottom:g} to {top:g}"
        if value in CODES or count > 2:
            problems.note(f"{name}: a code for missing? Then set data.missing=[{value:g}]", where)
        else:
            problems.note(f"{name}: series with values far outside the others", where)
