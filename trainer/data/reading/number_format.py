"""What a column of numbers is: decimal marks, thousands, percent signs, and marks for missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from model.errors import UserError

LARGEST = 1e150
"""Magnitude above which a number is taken for infinite: its square is."""

MISSING = (
    "",
    "na",
    "n/a",
    "#n/a",
    "nan",
    "null",
    "none",
    "nil",
    "missing",
    "-",
    "--",
    "?",
    ".",
    "*",
)
"""Texts that stand for a missing number, in small letters."""

TRUTHS = {"true": "1", "false": "0"}
"""Texts that are read as the numbers 1 and 0."""

_POINT = re.compile(r"^[+-]?(\d{1,3}(?:[,' \u00a0\u202f]\d{3})+|\d+)?(\.\d*)?(?:[eE][+-]?\d+)?$")
_COMMA = re.compile(r"^[+-]?(\d{1,3}(?:[.' \u00a0\u202f]\d{3})+|\d+)?(,\d*)?(?:[eE][+-]?\d+)?$")
_THOUSANDS = r"(?<=\d)[{}' \u00a0\u202f](?=\d{{3}}(?!\d))"


@dataclass(frozen=True)
class NumberFormat:
    """How a column of numbers is written."""

    decimal: str = "."
    missing: frozenset[str] = field(default_factory=lambda: frozenset(MISSING))
    """Texts, in small letters, that stand for a missing number."""
    missing_numbers: tuple[float, ...] = ()
    """Numbers that stand for a missing one, such as -9999."""
    note: str | None = None
    """A sentence for the user on what was assumed."""


def decide(
    column: pd.Series,
    where: str,
    *,
    decimal: str | None = None,
    missing: Iterable[str | float] = (),
    comma_is_likely: bool = False,
) -> NumberFormat:
    """Return how the numbers in `column` are written.

    `where` names file and column in messages; `comma_is_likely` says that the file's cells are
    divided by something else than commas. Raises UserError where a comma could be a decimal mark or
    divide thousands.
    """
    marks = [str(mark).strip().lower() for mark in missing if isinstance(mark, str)]
    base = NumberFormat(
        decimal or ".",
        frozenset([*MISSING, *marks]),
        tuple(number for number in map(_number, missing) if number is not None),
    )
    if decimal is not None or pd.api.types.is_numeric_dtype(column):
        return base
    texts = column.dropna().astype("str").str.strip().str.removesuffix("%")
    marked = texts[texts.str.contains("[.,]", regex=True)].drop_duplicates()
    commas = marked[marked.str.contains(",", regex=False)]
    if commas.empty or not marked.str.match(_COMMA).all():
        return base
    if not marked.str.match(_POINT).all() or comma_is_likely:
        note = f"{where}: the comma is taken for the decimal mark (data.decimal=',')"
        return replace(base, decimal=",", note=note)
    raise UserError(
        f"data.targets: {where}: the comma in {commas.iloc[0]!r} could be the decimal mark or "
        "divide thousands; set data.decimal=',' or data.decimal='.'"
    )


def _number(mark: str | float) -> float | None:
    """Return the number that a mark is, also as a text: YAML takes 1e308 for one."""
    try:
        return float(mark)
    except ValueError:
        return None


def parse(
    column: pd.Series, form: NumberFormat
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the numbers [T] of a column, NaN where missing, and where it is something else [T]."""
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        wrong = np.zeros(len(column), bool)
    elif form.decimal == ",":
        numbers, wrong = _parse_texts(column, form)
    else:
        plain = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        numbers, wrong = plain.copy(), np.zeros(len(column), bool)
        others = np.flatnonzero(np.isnan(plain))  # the slow way is for what is no plain number
        if len(others):
            numbers[others], wrong[others] = _parse_texts(column.iloc[others], form)
    for code in form.missing_numbers:
        numbers = np.where(numbers == code, np.nan, numbers)
    return numbers, wrong


def _parse_texts(
    column: pd.Series, form: NumberFormat
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    texts = column.astype("str").str.strip().where(column.notna(), "")
    lowered = texts.str.lower()
    is_missing = lowered.isin(form.missing).to_numpy()
    texts = texts.where(~lowered.isin(TRUTHS.keys()), lowered.map(TRUTHS))
    other = "." if form.decimal == "," else ","
    texts = texts.str.replace(_THOUSANDS.format(re.escape(other)), "", regex=True)
    texts = texts.str.removesuffix("%").str.replace("\u2212", "-", regex=False)
    if form.decimal == ",":
        texts = texts.where(~texts.str.contains(".", regex=False), "not a number")
        texts = texts.str.replace(",", ".", regex=False)
    parsed = pd.to_numeric(texts.where(~is_missing, None), errors="coerce")
    numbers = parsed.to_numpy(np.float64, na_value=np.nan)
    return numbers, np.isnan(numbers) & ~is_missing


def share_of_numbers(column: pd.Series, form: NumberFormat | None = None) -> float:
    """Return which share of a column's cells that are not missing are numbers; 0 where all are."""
    numbers, wrong = parse(column, form or NumberFormat())
    known = np.count_nonzero(~np.isnan(numbers))
    cells = known + int(np.count_nonzero(wrong))
    return known / cells if cells else 0.0


def named(rows: Sequence[int] | npt.NDArray[np.int64], column: pd.Series, first: int = 1) -> str:
    """Return `row 7 has 'x'`, and how many more rows there are; they are counted from `first`."""
    text = repr(column.iloc[int(rows[0])])
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    others = len(rows) - 1
    more = f" (and {others:,} more {'rows' if others > 1 else 'row'})" if others else ""
    return f"row {int(rows[0]) + first} has {shown}{more}"
