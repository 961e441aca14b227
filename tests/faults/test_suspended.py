"""Ranks that are stopped and continued: a suspended run goes on, a late rank accuses nobody."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.layout import Layout
from parallel.mesh import Mesh
from tests import ranks
from tests.settings import train_rank
from trainer.faults.watchdog import Watchdog
from trainer.logs.metrics import Row, read_metrics, without_machine

SETTINGS: dict[str, Any] = {
    "data.rows": 600,
    "data.split": [0.9, 0.1, 0.0],
    "logging.tensorboard": False,
    "train.steps": 12,
    "checkpoint.every": 10,
    "faults.hang_seconds": 3.0,
}


def _train_slowly(rank: int, world: int, run: Path) -> list[Row]:
    """Train; step 6 says when the watchdog has seen that it began."""

    def compute(share: float) -> None:
        """Compute for a share of that patience: a sleep would be over in a continued rank."""
        until = time.thread_time() + share * SETTINGS["faults.hang_seconds"]
        while time.thread_time() < until:
            pass

    def step(number: int) -> None:
        if number == 6:
            compute(0.3)
            (run / f"in-step-6-of-{rank}").touch()
            compute(0.05)

    return train_rank(rank, world, run, SETTINGS, on_step=step)


@pytest.mark.slow
def test_a_suspended_run_goes_on(tmp_path: Path) -> None:
    """As `scontrol suspend` and `resume` do: all ranks are stopped for longer than a hang lasts."""
    [expected, _] = ranks.run(train_rank, 2, tmp_path / "undisturbed", SETTINGS)
    run, logs = tmp_path / "run", [tmp_path / f"rank-{rank}.log" for rank in range(2)]
    pipes = [Pipe(duplex=False) for _ in logs]
    processes = ranks.start(_train_slowly, (run,), [w for _, w in pipes], logs)
    deadline = time.monotonic() + 60
    while len(list(run.glob("in-step-6-of-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in processes:
        os.kill(process.pid or 0, signal.SIGSTOP)
    time.sleep(2 * SETTINGS["faults.hang_seconds"])
    for process in processes:
        os.kill(process.pid or 0, signal.SIGCONT)
    for process in processes:
        process.join(60)
    said = "".join(log.read_text() for log in logs if log.exists())
    assert [process.exitcode for process in processes] == [0, 0], said
    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == 12 and without_machine(rows) == without_machine(expected)


class LeavingStore:
    """A store with an alarm, whose process ends while a rank's report is gathered."""

    def set(self, key: str, _: str) -> None:
        if key.startswith("report"):
            raise RuntimeError("connection closed by the other side")

    def check(self, _: list[str]) -> bool:
        return True

    def get(self, _: str) -> bytes:
        return b"nothing heard of rank 1 for 5 s"


def _come_late(rank: int, world: int, run: Path) -> None:
    mesh = Mesh(Layout(pipeline=1, data=2), 1, torch.device("cpu"))
    Watchdog(mesh, 1.0, run / "hang", lambda: LeavingStore()).start()  # type: ignore[arg-type]
    threading.Event().wait()


def test_a_rank_that_comes_late_to_the_report_leaves_it_as_it_is(tmp_path: Path) -> None:
    """Slurm continues a stopped rank to end it, when the others have said who waits for whom."""
    (tmp_path / "hang").mkdir()
    (tmp_path / "hang" / "report.txt").write_text("rank 0: waits for rank 1\n")
    log = tmp_path / "log"
    [process] = ranks.start(_come_late, (tmp_path,), [Pipe(duplex=False)[1]], [log])
    process.join(30)
    assert process.exitcode == 1
    said = log.read_text()
    assert "rank 0, at which the ranks meet, is not reached any more; here: " in said
    assert "waits for" not in said
    assert (tmp_path / "hang" / "report.txt").read_text() == "rank 0: waits for rank 1\n"
