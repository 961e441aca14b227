"""The progress of training: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.logs.log import log
from trainer.logs.metrics import Row


class TrainingProgress:
    """Shows the steps of a run to the user, where `shown`: on the main rank."""

    def __init__(self, steps: int, done: int, every: int, *, shown: bool) -> None:
        self._steps, self._every, self._shown = steps, every, shown
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
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
        if "validation_mse" in row:
            numbers += f"  validation MSE {row['validation_mse']:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=int(row["step"]), numbers=numbers)
        elif self._shown and (
            row["step"] % self._every == 0 or row["step"] == self._steps or "validation_mse" in row
        ):
            log.info("step %s/%s  %s", row["step"], self._steps, numbers)
