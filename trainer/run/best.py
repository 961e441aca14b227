"""The best step of a run, by a score of its validations, and when none better will be waited for.

All is derived from the rows of metrics.jsonl, so that a resumed run goes on with the same best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from trainer.logs.metrics import Row


class Best:
    """The scores of a run's steps, of which the lowest is the best."""

    def __init__(self, score: str | None, patience: int = 0, rows: Iterable[Row] = ()) -> None:
        """`score` is its name in a row, None for none; `patience` counts validations, 0: no end."""
        self._score, self._patience = score, patience
        self.scores: dict[int, float] = {}
        """Step -> its score. Steps that were skipped have none: they left the weights as they were.
        """
        self.step: int | None = None
        """The first step of the lowest score."""
        self._since = 0
        self._last_step, self._skipped_before, self._skipped = 0, 0, 0
        for row in rows:
            self.see(row)

    def see(self, row: Row) -> bool:
        """Take in the row of a step, or a longer one of the last step.

        Return whether no step before had as low a score.
        """
        if row["step"] != self._last_step:
            self._last_step, self._skipped_before = row["step"], self._skipped
        self._skipped = row.get("skipped_steps", self._skipped_before)
        if self._score not in row or self._skipped > self._skipped_before:
            return False
        self._since += 1
        value = row[self._score]
        if value is None or not math.isfinite(value):  # the file has null for what is no number
            value = math.inf
        lowest = math.inf if self.step is None else self.scores[self.step]
        self.scores[row["step"]] = value
        if not value < lowest:
            return False
        self.step, self._since = row["step"], 0
        return True

    @property
    def is_final(self) -> bool:
        """Whether the best step has stood for as many validations as are waited for."""
        return bool(self._patience) and self._since >= self._patience
