"""Reports how near the layouts came to plain torch."""

from __future__ import annotations

import pytest

WORST: dict[str, tuple[float, str]] = {}
"""Quantity -> the largest relative difference seen, and in which layout."""


BYTES: list[str] = []
"""Rows of a table: bytes of a step counted and by formula, over all ranks of a layout."""


def note(quantity: str, difference: float, name: str) -> None:
    WORST[quantity] = max(WORST.get(quantity, (0.0, "")), (difference, name))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if WORST:
        terminalreporter.section("layouts: largest relative difference to plain torch")
        for quantity, (difference, name) in WORST.items():
            terminalreporter.write_line(f"{quantity:10} {difference:.1e}  ({name})")
    if BYTES:
        terminalreporter.section("layouts: bytes of a step over all ranks, counted / formula")
        for row in BYTES:
            terminalreporter.write_line(row)
