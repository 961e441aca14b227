"""Pieces of the sentences that users read."""

from __future__ import annotations

import pytest

from model.sentences import MAX_NAMED, first_line, nearest, ranges, shortened


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no room"), "no room"),
        (ValueError("no room\n  in the\ninn"), "no room"),
        (ValueError("\n\n  \nno room\n"), "no room"),
        (RuntimeError(), "RuntimeError"),
        (OSError(""), "OSError"),
        (TimeoutError(" \n\t\n"), "TimeoutError"),
        ("no error\nbut a text", "no error"),
    ],
)
def test_the_first_line_says_something_whatever_the_message(error: object, line: str) -> None:
    assert first_line(error) == line


def test_a_long_list_is_shortened() -> None:
    names = [f"x{number}" for number in range(MAX_NAMED + 2)]
    assert shortened([]) == ""
    assert shortened(names[:2]) == "x0, x1"
    assert shortened(names[:MAX_NAMED]) == ", ".join(names[:MAX_NAMED])
    assert shortened(names) == ", ".join(names[:MAX_NAMED]) + " and 2 more"
    assert shortened(names[:3], "; ") == "x0; x1; x2"


def test_a_word_that_was_mistyped_is_recognised() -> None:
    known = ["encoder", "decoder", "encoder_decoder"]
    assert nearest("encodr", known) == "encoder"
    assert nearest("decoder", iter(known)) == "decoder"
    assert nearest("transformer", known) is None
    assert nearest("encoder", []) is None
    assert nearest(2, ["1", "2"]) == "2"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1], "0-1"),
        ([0, 1, 2, 3, 8], "0-3, 8"),
        ([1, 3, 5], "1, 3, 5"),
        ([0, 2, 3, 7, 8, 9], "0, 2-3, 7-9"),
    ],
)
def test_numbers_in_a_row_are_a_range(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
