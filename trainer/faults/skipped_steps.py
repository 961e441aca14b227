"""Skipped steps: those whose loss or gradient is no number or a spike.

All ranks skip them by one rule and count them. Too many of them in a row end the run. A skipped
step changes nothing, so checkpoints are of the last good step: the last one that was not skipped.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from model.errors import DivergedError, NonFiniteError
from trainer.config.settings import FaultsConfig

MIN_NORMS, MAX_NORMS = 16, 64
"""Fewest and most gradient norms of past steps whose median a spike is measured by."""


class SkippedSteps:
    """The record of a run's steps, of which some were skipped.

    It depends only on numbers that are equal on all ranks. Checkpoints keep it.
    """

    def __init__(self, config: FaultsConfig, content: dict[str, Any] | None = None) -> None:
        self._config = config
        content = content or {}
        self.total = int(content.get("skipped", 0))
        """Skipped steps since the run began."""
        self.in_a_row = 0
        """Skipped steps since the last good one."""
        self._norms: list[float] = list(content.get("norms", []))

    def content(self) -> dict[str, Any]:
        """Return the record as it was at the last good step, for a checkpoint of it, as JSON."""
        return {"skipped": self.total - self.in_a_row, "norms": self._norms}

    def limit(self) -> float:
        """Return the largest gradient norm that the next step may have."""
        if not self._config.spike_factor or len(self._norms) < MIN_NORMS:
            return math.inf
        return self._config.spike_factor * median(self._norms)

    def discard(self) -> int:
        """Return to the last good step: forget those skipped since, and return how many they were.

        Weights and moments are what they were before these steps.
        """
        discarded, self.in_a_row = self.in_a_row, 0
        self.total -= discarded
        return discarded

    def record(self, step: int, loss: float, norm: float, applied: bool) -> str | None:
        """Record a step that was made; return a sentence about it where it was skipped.

        Raises DivergedError where too many in a row were skipped, and NonFiniteError where a step
        was applied though its loss is no number.
        """
        if applied and not math.isfinite(loss):
            raise NonFiniteError(f"step {step}: the loss is {loss}, and so are the weights by now")
        if applied:
            self._norms = [*self._norms, norm][-MAX_NORMS:]
            self.in_a_row = 0
            return None
        self.total += 1
        self.in_a_row += 1
        what = f"the loss is {loss:.6g}, the gradient's norm {norm:.6g}"
        if self.in_a_row > self._config.max_skipped_steps:
            raise DivergedError(
                f"step {step}: {what}, after {self.in_a_row - 1} skipped steps in a row "
                f"(faults.max_skipped_steps); {self._way_out(step)}"
            )
        return f"step {step} is skipped: {what}; {self.total} skipped in all"

    def check_last(self, step: int) -> None:
        """Raise DivergedError where `step`, the run's last one, was skipped."""
        if self.in_a_row:
            last = step - self.in_a_row
            count = "step was" if self.in_a_row == 1 else f"{self.in_a_row} steps were"
            raise DivergedError(
                f"step {step}: the last {count} skipped; {self._way_out(step)}"
                + (f"; train.steps={last} ends the run there" if last else "")
            )

    def _way_out(self, step: int) -> str:
        """Return what is left of a run that skipped steps up to `step`, and what to do."""
        return (
            f"the run stands at its last good step, {step - self.in_a_row}: look at the data that "
            "comes next, or lower train.learning_rate in a new run"
        )
