"""What tests measure besides passing: kept here, gathered from all workers, shown at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

TIMES: list[str] = []
"""Seconds from one event to another, in words."""

WORST: dict[str, tuple[float, str]] = {}
"""Quantity -> the largest relative difference to plain torch, and in which layout."""

BYTES: list[str] = []
"""Rows of a table: bytes of a step counted and by formula, over all ranks of a layout."""


def note_time(what: str, seconds: float) -> None:
    """Keep how long something took."""
    TIMES.append(f"{what}: {seconds:.1f} s")


def note_difference(quantity: str, difference: float, name: str) -> None:
    """Keep a layout's difference to plain torch, if it is the largest."""
    WORST[quantity] = max(WORST.get(quantity, (0.0, "")), (difference, name))


def note_bytes(row: str) -> None:
    """Keep a row of the table of bytes."""
    BYTES.append(row)


def content() -> dict[str, Any]:
    """Return what was kept, for another process."""
    return {"times": TIMES, "worst": {k: list(v) for k, v in WORST.items()}, "bytes": BYTES}


def merge(other: dict[str, Any]) -> None:
    """Add what another process has kept."""
    TIMES.extend(other["times"])
    BYTES.extend(other["bytes"])
    for quantity, (difference, name) in other["worst"].items():
        note_difference(quantity, difference, name)


def show(terminal: pytest.TerminalReporter) -> None:
    """Write what was kept under titles of its own."""
    worst = [f"{name:10} {value:.1e}  ({layout})" for name, (value, layout) in WORST.items()]
    for title, lines in (
        ("times", TIMES),
        ("layouts: largest relative difference to plain torch", worst),
        ("layouts: bytes of a step over all ranks, counted / formula", BYTES),
    ):
        if lines:
            terminal.section(title)
            for line in lines:
                terminal.write_line(line)
