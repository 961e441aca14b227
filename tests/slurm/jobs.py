"""Jobs of slurm/train_large.sh on a cluster, as tests submit and watch them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.slurm.cluster import Cluster
from trainer.logs.metrics import Row, read_metrics

QUICK = ("data.rows=600", "logging.tensorboard=false", "data.split=[0.9,0.1,0.0]")
"""Settings of a small run."""

LONG = (
    "train.steps=200",
    "checkpoint.every=10",
    "model.dropout=0.1",
    "faults.hang_seconds=5.0",
)
"""Settings of a run that is long enough to be interrupted."""

FEW = ("--ntasks-per-node=1",)
"""Flags of a job of two ranks, for tests of what more of them would not change."""


@dataclass
class Job:
    """A job of slurm/train_large.sh on the cluster."""

    cluster: Cluster
    number: str
    run: Path
    log: Path

    def rows(self) -> list[Row]:
        return read_metrics(self.run / "metrics.jsonl")

    def said(self) -> str:
        """Return the job's log, which all of its starts append to."""
        return self.log.read_text() if self.log.exists() else ""

    def facts(self) -> dict[str, str]:
        """Return what Slurm knows of it."""
        return self.cluster.job(self.number)

    def limit(self, minutes: int) -> None:
        """Move its time limit."""
        self.cluster.run("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 120) -> float:
        """Wait until the condition holds; return the seconds that it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                state = self.facts().get("JobState")
                raise TimeoutError(f"waited for {what}; the job is {state}\n{self.said()}")
            time.sleep(0.05)
        return time.monotonic() - began

    def wait_for_step(self, step: int, seconds: float = 120) -> float:
        return self.wait(lambda: len(self.rows()) >= step, f"step {step}", seconds)

    def wait_until_done(self, seconds: float = 180) -> float:
        """Wait for the job's end, which must be in order."""

        def ended() -> bool:
            return self.facts().get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

        took = self.wait(ended, "the job to end", seconds)
        assert self.facts()["JobState"] == "COMPLETED", self.said()
        assert (self.run / "done").exists(), self.said()
        return took

    def starts(self) -> int:
        """Return how many starts the log has."""
        return len(re.findall(r"^train_large: job \d+, start \d+,", self.said(), re.MULTILINE))


class Submit(Protocol):
    """The fixture `submit`."""

    def __call__(self, *settings: str, flags: tuple[str, ...] = (), **variables: str) -> Job:
        """Submit a job of 2 nodes with 2 tasks each, with flags and variables for sbatch."""
