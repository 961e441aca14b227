"""The best step of a run while it trains: found by the main rank, acted upon by all."""

from __future__ import annotations

from pathlib import Path

from parallel.collectives import any_of, any_rank, join_records
from parallel.mesh import Mesh
from trainer.config.settings import Settings
from trainer.logs.log import log
from trainer.logs.metrics import Row, read_metrics
from trainer.logs.names import has_validation
from trainer.run.best import Best


class BestStep:
    """The best step by checkpoint.best, and whether training ends by train.patience."""

    def __init__(self, settings: Settings, mesh: Mesh) -> None:
        self._score, self._patience = settings.checkpoint.best, settings.train.patience
        self._mesh = mesh
        self._best = Best(self._score, self._patience)
        self.is_final = False
        """Whether training ends here, the same on all ranks."""

    @property
    def step(self) -> int | None:
        """The best step on the main rank."""
        return self._best.step

    def recall(self, metrics_file: Path) -> None:
        """Take in the rows of the steps done. Collective."""
        if self._score is None:
            return
        if self._mesh.is_main:
            self._best = Best(self._score, self._patience, read_metrics(metrics_file))
        self.is_final = any_rank(self._mesh, self._best.is_final)

    def compare(self, row: Row) -> bool:
        """Take in a step's row; return whether its score is the best so far. Collective."""
        if self._score is None:
            return False
        is_best = self._mesh.is_main and self._best.see(row)
        if not has_validation(row):
            return False
        is_best, self.is_final = any_of(self._mesh, (is_best, self._best.is_final))
        if self.is_final:
            many = self._patience
            log.info("train.patience: no better score in %s validations; training ends", many)
        return is_best

    def before(self, step: int) -> int | None:
        """Return the best step where it is one before `step`, and say so. Collective."""
        best = self._best.step
        is_before = best is not None and best < step
        known = join_records(self._mesh, {"step": str(best)} if is_before else {})
        if is_before and best is not None:
            value = self._best.scores[best]
            log.info("step %s is scored, the best by %s=%.6g", best, self._score, value)
        return int(known["step"]) if known else None
