"""The progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.logs.log import log
from trainer.logs.metrics import Row
from trainer.logs.names import VALIDATION, ZERO_SHOT, has_validation

SCORING_SECONDS = 10.0
"""Seconds between lines of a log while windows are scored: where that is quick there is none."""


def _has_bar() -> bool:
    """Return whether a bar may be drawn: on a terminal, and not with --quiet."""
    return sys.stdout.isatty() and log.isEnabledFor(logging.INFO)


class TrainingProgress:
    """Shows the steps of a run to the user, where `shown`: on the main rank."""

    def __init__(self, steps: int, done: int, every: int, *, shown: bool) -> None:
        self._steps, self._every, self._shown = steps, every, shown
        self._bar: Progress | None = None
        if shown and _has_bar():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=Console(),
            )
            self._task = self._bar.add_task("", total=steps, completed=done, numbers="")

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, row: Row) -> None:
        """Show a step by its row of metrics."""
        numbers = (
            f"loss {row['loss']:.4f}  grad norm {row['grad_norm']:.3f}  "
            f"{row['tokens_per_second']:,.0f} tokens/s"
        )
        if VALIDATION in row:
            numbers += f"  validation MSE {row[VALIDATION]:.4f}"
        for name, score in row.items():
            if name.startswith(ZERO_SHOT) and name.endswith("/mase"):
                numbers += f"  MASE of {name.split('/')[1]} {score:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=int(row["step"]), numbers=numbers)
        elif self._shown and (
            row["step"] % self._every == 0 or row["step"] == self._steps or has_validation(row)
        ):
            log.info("step %s/%s  %s", row["step"], self._steps, numbers)


class ScoringProgress:
    """Shows how many windows are scored, where `shown`: on the main rank.

    Without `with_bar` it prints lines on a terminal, too: where another bar is drawn there.
    """

    def __init__(self, what: str, *, shown: bool = True, with_bar: bool = True) -> None:
        self._what, self._shown = what, shown
        self._said_at = time.monotonic()
        self._bar: Progress | None = None
        if shown and with_bar and _has_bar():
            self._bar = Progress(
                TextColumn("scoring"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> ScoringProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` windows are scored."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif self._shown and time.monotonic() - self._said_at >= SCORING_SECONDS:
            self._said_at = time.monotonic()
            log.info("scored %s of %s %s windows", f"{done:,}", f"{total:,}", self._what)


class CountingProgress:
    """Shows how many things are done where nobody knows how many there are, and of what size."""

    def __init__(self, doing: str, things: str, size: str) -> None:
        self._doing, self._things, self._size = doing, things, size
        self._count, self._total = 0, 0
        self._shown_at = time.monotonic()
        self._status = Console().status(doing) if _has_bar() else None

    def __enter__(self) -> CountingProgress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def advance(self, count: int, size: int) -> None:
        """Count some more things, and their size."""
        self._count, self._total = self._count + count, self._total + size
        now = time.monotonic()
        if now - self._shown_at < (0.2 if self._status is not None else SCORING_SECONDS):
            return
        self._shown_at = now
        text = f"{self._count:,} {self._things}, {self._total:,} {self._size}"
        if self._status is not None:
            self._status.update(f"{self._doing}: {text}")
        else:
            log.info("%s: %s", self._doing, text)
