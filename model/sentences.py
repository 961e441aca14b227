"""Pieces of the sentences that users read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import groupby

MAX_NAMED = 8


def first_line(error: object) -> str:
    """Return the first line of an error's message, or the error's type where it has none."""
    lines = (line for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)


def shortened(texts: Sequence[str], between: str = ", ") -> str:
    """Join the first of `texts`, and say how many more there are."""
    more = f" and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return between.join(texts[:MAX_NAMED]) + more


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number of things: `1 window`, `2,000 windows`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def drawn(text: str) -> str:
    """Return a text as matplotlib draws it letter by letter: dollars would begin a formula."""
    return text.replace("$", r"\$")


def nearest(word: object, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `word` was probably meant to be."""
    near = difflib.get_close_matches(str(word), list(known), 1)
    return near[0] if near else None


def ranges(numbers: Sequence[int]) -> str:
    """Shorten ascending numbers: 0, 1, 2, 3, 8 is `0-3, 8`."""
    groups = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)
