"""The rank that the others wait for is named."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from parallel.layout import Layout
from tests import ranks
from tests.settings import train_rank
from trainer.faults.stragglers import slow_ranks
from trainer.logs.metrics import read_metrics

SETTINGS: dict[str, Any] = {
    "data.rows": 600,
    "data.split": [0.9, 0.1, 0.0],
    "logging.tensorboard": False,
    "train.steps": 100000,
    "checkpoint.every": 100000,
    "logging.every": 5,
    "faults.slow_factor": 2.0,
}


def _train(rank: int, world: int, run: Path, changes: dict[str, Any]) -> None:
    """Attention takes some milliseconds here, which are told apart all the same."""
    from trainer.faults import stragglers

    stragglers.MIN_SECONDS = 0.0
    train_rank(rank, world, run, changes)


def _slow_down(pid: int, until: threading.Event) -> None:
    """As if another program took most of the processor."""
    while not until.is_set():
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.005)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.002)


@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.tensor": 2},
        pytest.param({"parallel.zero_stage": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_slow_rank_is_named_until_it_recovers(tmp_path: Path, layout: dict[str, Any]) -> None:
    """Rank 3, its mate under tensor parallelism, waits for it in every layer: its own time shows
    nothing of that."""
    run, logs = tmp_path / "run", [tmp_path / f"rank-{rank}.log" for rank in range(4)]
    pipes = [Pipe(duplex=False) for _ in logs]
    processes = ranks.start(_train, (run, {**SETTINGS, **layout}), [w for _, w in pipes], logs)

    def wait_for(words: str) -> None:
        deadline = time.monotonic() + 60
        while not re.search(words, logs[0].read_text() if logs[0].exists() else ""):
            assert time.monotonic() < deadline, logs[0].read_text()
            time.sleep(0.1)

    healthy = threading.Event()
    try:
        wait_for(r"step 5/")
        victim = threading.Thread(target=_slow_down, args=(processes[2].pid, healthy))
        victim.start()
        wait_for(
            r"steps \d+-\d+: rank 2 \(\S+\) is slow, and the others wait for it: its "
            r"attention takes \d+\.\d times as long as the median of its stage"
        )
        healthy.set()
        victim.join()
        wait_for(r"steps \d+-\d+: rank 2 is slow no longer")
        (run / "stop").touch()
        wait_for("saved at step")
    finally:
        healthy.set()
        for process in processes:
            process.kill()
    named = re.findall(r"rank (\d) \(\S+\) is slow", logs[0].read_text())
    assert named[0] == "2", named  # a busy machine may slow down others later
    told = {
        row["step"]: row["attention_seconds"]
        for row in read_metrics(run / "metrics.jsonl")
        if "attention_seconds" in row
    }
    assert list(told) == [*range(5, 5 * len(told) + 1, 5)]
    assert {len(seconds) for seconds in told.values()} == {4}
    [recovered] = re.findall(r"steps (\d+)-\d+: rank 2 is slow no longer", logs[0].read_text())
    slowed = [seconds for step, seconds in told.items() if 5 < step < int(recovered)]
    means = [sum(rank) / len(slowed) for rank in zip(*slowed, strict=True)]
    assert all(1.5 * means[rank] < means[2] for rank in (0, 1, 3)), means


@pytest.mark.parametrize(
    ("seconds", "layout", "slow"),
    [
        ([1.0, 1.0, 1.0, 2.0], Layout(1, 4), {3: 2.0}),
        ([1.0, 2.0], Layout(1, 2), {1: 2.0}),
        ([1.0, 1.0, 3.0, 3.0], Layout(pipeline=2, data=2), {}),  # stages hold different layers
        ([1.0, 1.0, 3.0, 6.0], Layout(pipeline=2, data=2), {3: 2.0}),
        ([1.0, 5.0], Layout(pipeline=2, data=1), {}),  # nobody to compare with
        ([0.001, 0.009], Layout(1, 2), {}),  # the operating system's noise
    ],
)
def test_a_rank_is_held_to_its_stage(
    seconds: list[float], layout: Layout, slow: dict[int, float]
) -> None:
    assert slow_ranks(seconds, layout, 1.5) == slow
