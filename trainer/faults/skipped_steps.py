"""Steps whose numbers go wrong: skipped by one rule on all ranks, counted, and too many of them end
the run."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from trainer.config.settings import FaultsConfig
from trainer.faults.failures import DivergedError, NonFiniteError

LEAST, MOST = 16, 64
"""Gradient norms of the past that a spike is told by."""


class SkippedSteps:
    """What is known of a run's past steps. It depends on numbers that are equal on all ranks, and
    is kept in checkpoints."""

    def __init__(self, config: FaultsConfig, known: dict[str, Any] | None = None) -> None:
        self._config = config
        known = known or {}
        self.skipped = int(known.get("skipped", 0))
        """Since the run began."""
        self._norms: list[float] = list(known.get("norms", []))
        self._in_a_row = 0

    def content(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"skipped": self.skipped, "norms": self._norms}

    def limit(self) -> float:
        """The largest gradient norm that the next step may have."""
        if not self._config.spike_factor or len(self._norms) < LEAST:
            return math.inf
        return self._config.spike_factor * median(self._norms)

    def rewind(self) -> int:
        """Forget the steps skipped in a row, and how many they were: weights and moments are what
        they were before them."""
        forgotten, self._in_a_row = self._in_a_row, 0
        self.skipped -= forgotten
        return forgotten

    def see(self, step: int, loss: float, norm: float, applied: bool) -> str | None:
        """A sentence about a step that was skipped.

        Raises DivergedError where there are too many, and NonFiniteError where a loss that is no
        number has been applied.
        """
        if applied and not math.isfinite(loss):
            raise NonFiniteError(f"step {step}: the loss is {loss}, and so are the weights by now")
        if applied:
            self._norms = [*self._norms, norm][-MOST:]
            self._in_a_row = 0
            return None
        self.skipped += 1
        self._in_a_row += 1
        what = f"the loss is {loss:.6g}, the gradient's norm {norm:.6g}"
        if self._in_a_row > self._config.max_skipped_steps:
            raise DivergedError(
                f"step {step}: {what}, after {self._in_a_row - 1} skipped steps in a row "
                "(faults.max_skipped_steps); the run stands at its last good step: look at the "
                "data that comes next, or lower train.learning_rate in a new run"
            )
        return f"step {step} is skipped: {what}; {self.skipped} skipped in all"
