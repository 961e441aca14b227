"""Skipped steps: those whose loss or gradient is no number or a spike.

All ranks skip them by one rule and count them. Too many of them in a row end the run.
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
        self._norms: list[float] = list(content.get("norms", []))
        self._in_a_row = 0

    def content(self) -> dict[str, Any]:
        """Return the record for a checkpoint, as JSON."""
        return {"skipped": self.total, "norms": self._norms}

    def limit(self) -> float:
        """Return the largest gradient norm that the next step may have."""
        if not self._config.spike_factor or len(self._norms) < MIN_NORMS:
            return math.inf
        return self._config.spike_factor * median(self._norms)

    def discard(self) -> int:
        """Forget the steps skipped in a row, and return how many they were.

        Weights and moments are what they were before these steps.
        """
        discarded, self._in_a_row = self._in_a_row, 0
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
            self._in_a_row = 0
            return None
        self.total += 1
        self._in_a_row += 1
        what = f"the loss is {loss:.6g}, the gradient's norm {norm:.6g}"
        if self._in_a_row > self._config.max_skipped_steps:
            raise DivergedError(
                f"step {step}: {what}, after {self._in_a_row - 1} skipped steps in a row "
                "(faults.max_skipped_steps); the run stands at its last good step: look at the "
                "data that comes next, or lower train.learning_rate in a new run"
            )
        return f"step {step} is skipped: {what}; {self.total} skipped in all"
