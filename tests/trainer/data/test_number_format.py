"""What a column of numbers is, by the ways that people write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from trainer.data.reading.number_format import decide, named, parse, share_of_numbers

NAN = float("nan")


def read(cells: list[Any], **options: Any) -> list[float]:
    """Return the numbers of a column in which nothing is wrong."""
    column = pd.Series(cells)
    numbers, wrong = parse(column, decide(column, "a.csv, column load", **options))
    assert not wrong.any()
    return numbers.tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.5", " 2 ", "-3e2", "+.5", "7."], [1.5, 2, -300, 0.5, 7]),
        (["1,5", "2", "-3,25"], [1.5, 2, -3.25]),
        (["1.234,5", "2,0", "1.000.000,0"], [1234.5, 2, 1e6]),
        (["1,234.5", "2.0", "1,000,000"], [1234.5, 2, 1e6]),
        (["1,234,567", "2"], [1234567, 2]),
        (["1 234,5", "12\u00a0345,0", "1\u202f000,25"], [1234.5, 12345, 1000.25]),
        (["1'234.5", "2"], [1234.5, 2]),
        (["12%", "3.5 %".replace(" ", "")], [12, 3.5]),
        (["\u22121.5", "2"], [-1.5, 2]),
        (["true", "False", "TRUE"], [1, 0, 1]),
    ],
)
def test_numbers_are_read_however_they_are_written(cells: list[str], expected: list[float]) -> None:
    assert read(cells) == expected


@pytest.mark.parametrize("mark", ["", "NA", "n/a", "NaN", "null", "None", "-", "?", ".", None, NAN])
def test_marks_for_missing(mark: Any) -> None:
    np.testing.assert_array_equal(read(["1.5", mark, "2"]), [1.5, NAN, 2])


def test_own_marks_for_missing() -> None:
    np.testing.assert_array_equal(
        read(["1", "x", "-9999", "2"], missing=["X", -9999]), [1, NAN, NAN, 2]
    )
    np.testing.assert_array_equal(read([1.0, -9999.0], missing=[-9999]), [1, NAN])


@pytest.mark.parametrize("cells", [["10,038", "9,871"], ["1,234", "12"]])
def test_a_comma_that_could_be_either_is_asked_for(cells: list[str]) -> None:
    with pytest.raises(UserError, match=r"set data.decimal=',' or data.decimal='\.'"):
        read(cells)
    numbers = [float(cell.replace(",", ".")) for cell in cells]
    assert read(cells, decimal=",") == numbers
    assert read(cells, comma_is_likely=True) == numbers
    assert read(cells, decimal=".") == [float(cell.replace(",", "")) for cell in cells]


@pytest.mark.parametrize(
    "cells", [["1.5", "north"], ["1.5", "1.2.3"], ["1,2,3", "4"], ["12:30", "1"]]
)
def test_what_is_no_number_is_told(cells: list[str]) -> None:
    column = pd.Series(cells)
    _, wrong = parse(column, decide(column, "a.csv"))
    assert wrong.any()
    assert 0 <= share_of_numbers(column) < 1


def test_types_of_tables() -> None:
    for column in (
        pd.Series([1, 2, None], dtype="Int64"),
        pd.Series([1.0, 2.0, NAN], dtype="float32"),
        pd.Series([True, True, None], dtype="boolean"),
    ):
        numbers, wrong = parse(column, decide(column, "a.parquet"))
        assert numbers[0] == 1 and np.isnan(numbers[2]) and not wrong.any()


def test_long_cells_are_cut_in_messages() -> None:
    column = pd.Series(["a", "b" * 500, "c"])
    assert named([1], column) == f"row 2 has '{'b' * 39}..."
    assert named([0, 2], column) == "row 1 has 'a' (and 1 more row)"
