"""A sink of metrics: what a place for the numbers of a run must be able to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunDescription:
    """What a sink is told of a run."""

    folder: Path
    settings: Mapping[str, Any]
    """All settings, by dotted key."""


class Sink(Protocol):
    """A place for the metrics of one run. Its methods are called by one thread and may raise."""

    def open(self, run: RunDescription, identifier: str | None) -> str:
        """Begin a run, or continue the one with `identifier`; return its identifier."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step. After a resume a step may be written again."""

    def close(self, *, failed: bool) -> None:
        """End the run."""


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row's numbers by name, a list's under names of their own: name/0, name/1."""
    numbers: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, list):
            numbers |= {f"{name}/{index}": part for index, part in enumerate(value)}
        elif name != "step":
            numbers[name] = value
    return numbers
