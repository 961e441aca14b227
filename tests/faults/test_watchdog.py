"""A run that stands still says who waits for whom, and ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from torch.distributed.distributed_c10d import Store

from parallel.layout import Layout
from parallel.mesh import Mesh
from tests import ranks
from tests.settings import planned, train_rank
from trainer.checkpoint.tensor_files import Storage
from trainer.faults.activity import Activity
from trainer.faults.watchdog import Watchdog
from trainer.logs.log import shown
from trainer.logs.metrics import Row, read_metrics

SETTINGS: dict[str, Any] = {
    "data.rows": 600,
    "data.split": [0.9, 0.1, 0.0],
    "logging.tensorboard": False,
    "train.steps": 5000,
    "checkpoint.every": 10,
    "faults.hang_seconds": 3.0,
}


def _hang(rank: int, world: int, run: Path, changes: dict[str, Any]) -> None:
    """Train; rank 1 sleeps in step 12, as if it waited for data."""

    def step(number: int) -> None:
        if rank == 1 and number == 12:
            time.sleep(1000)

    train_rank(rank, world, run, changes, on_step=step)


def run_until_it_ends(
    function: Callable[..., Any],
    world: int,
    run: Path,
    changes: dict[str, Any],
    victims: Sequence[int] = (),
    disturb: Callable[[], None] = lambda: None,
    after: int = 11,
) -> tuple[list[int | None], str]:
    """Disturb a run after so many steps and stop its `victims`, who end no more by themselves.

    Returns exit codes, None for ranks that had to be killed, and what the ranks said.
    """
    pipes = [Pipe(duplex=False) for _ in range(world)]
    logs = [run.parent / f"rank-{rank}.log" for rank in range(world)]
    processes = ranks.start(function, (run, changes), [w for _, w in pipes], logs)
    deadline = time.monotonic() + 60
    while len(read_metrics(run / "metrics.jsonl")) < after:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    disturb()
    for rank in victims:
        os.kill(processes[rank].pid or 0, signal.SIGSTOP)
    quiet = time.monotonic() + 14
    for rank, process in enumerate(processes):
        if rank not in victims:
            process.join(max(0.1, quiet - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes, "".join(log.read_text() for log in logs if log.exists())


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (
            {},
            r"rank 0 \(.*\): all_to_all_single of [\d,]+ elements of rank 0-1, waits for rank 1; "
            r"step 12, stage 0, layer \w+\.layers\.\d",
        ),
        pytest.param(
            {"parallel.pipeline": 2},
            r"rank 0 .* rank 1.*; step 12, stage 0, layer encoder\.layers\.\d",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_who_waits_for_whom_is_told(tmp_path: Path, layout: dict[str, Any], words: str) -> None:
    run = tmp_path / "run"
    codes, said = run_until_it_ends(_hang, 2, run, {**SETTINGS, **layout})
    assert None not in codes, said
    assert "training stands still: no progress for 3 s" in said
    assert re.search(words, said), said
    assert re.search(r"rank 1 \(.*\): is in step, test_watchdog\.py:\d+; step 12", said), said
    assert "time.sleep(1000)" in (run / "hang" / "rank-00001.txt").read_text()
    assert (run / "hang" / "report.txt").read_text() in said


def _hang_asynchronously(rank: int, world: int, run: Path, changes: dict[str, Any]) -> None:
    """Train; in step 12 rank 0 starts a collective and goes on, as it does with a GPU's."""

    def step(number: int) -> None:
        if number == 12:
            if rank == 0:
                torch.distributed.all_reduce(torch.ones(7), async_op=True)
            time.sleep(1000)

    train_rank(rank, world, run, changes, on_step=step)


def test_an_unfinished_collective_of_a_device_is_told(tmp_path: Path) -> None:
    """The stack of a host that does not wait for its collectives does not tell them."""
    run = tmp_path / "run"
    codes, said = run_until_it_ends(_hang_asynchronously, 2, run, SETTINGS)
    assert None not in codes, said
    assert re.search(
        r"rank 0 \(.*\): is in step, test_watchdog\.py:\d+, unfinished: all_reduce of 7 elements "
        r"of rank 0-1, waits for rank 1; step 12",
        said,
    ), said
    assert re.search(r"rank 1 \(.*\): is in step, test_watchdog\.py:\d+; step 12", said), said
    recorded = json.loads((run / "hang" / "rank-00000.json").read_text())
    assert [[7]] in [e["input_sizes"] for e in recorded["entries"] if not e["retired"]]


def _train_held(
    rank: int, world: int, run: Path, changes: dict[str, Any], hold: Callable[[], None]
) -> list[Row]:
    """Train; rank 1 builds its engine after `hold`."""
    import deepspeed

    build = deepspeed.initialize

    def initialize(**options: Any) -> Any:
        if rank == 1:
            hold()
        return build(**options)

    with patch.object(deepspeed, "initialize", initialize):
        return train_rank(rank, world, run, changes)


def _sleep_while_loading(rank: int, world: int, run: Path, changes: dict[str, Any]) -> None:
    def sleep() -> None:
        time.sleep(1000)

    _train_held(rank, world, run, changes, sleep)


def _sleep_in_the_first_step(rank: int, world: int, run: Path, changes: dict[str, Any]) -> None:
    def step(number: int) -> None:
        if rank == 1:
            time.sleep(1000)

    train_rank(rank, world, run, changes, on_step=step)


@pytest.mark.parametrize(
    ("function", "where"),
    [
        (_sleep_while_loading, "before the first step, building the network, stage 0"),
        (_sleep_in_the_first_step, "step 1, stage 0, layer none yet"),
    ],
)
def test_a_hang_before_the_second_step_is_told(
    tmp_path: Path, function: Callable[..., None], where: str
) -> None:
    """As soon as the ranks have met; the folder can be used again."""
    run = tmp_path / "run"
    codes, said = run_until_it_ends(function, 2, run, SETTINGS, after=0)
    assert None not in codes, said
    assert "training stands still: no rank has moved for 3 s" in said
    assert re.search(rf"rank 1 \(.*\): is in \w+, test_watchdog\.py:\d+; {where}", said), said
    assert "time.sleep(1000)" in (run / "hang" / "rank-00001.txt").read_text()
    assert planned(run, SETTINGS, 2).start.steps_done == 0


def _compute_while_loading(rank: int, world: int, run: Path, changes: dict[str, Any]) -> list[Row]:
    def compute() -> None:
        until = time.thread_time() + 3.0
        while time.thread_time() < until:
            pass

    return _train_held(rank, world, run, changes, compute)


def test_slow_loading_is_no_hang(tmp_path: Path) -> None:
    """One rank loads for longer than the watchdog's patience, and the other waits for it."""
    changes = {**SETTINGS, "train.steps": 2, "faults.hang_seconds": 1.0}
    rows = ranks.run(_compute_while_loading, 2, tmp_path / "run", changes)[0]
    assert [row["step"] for row in rows] == [1, 2]


def _active(rank: int, world: int, folder: Path) -> list[bool]:
    """Return what another thread finds of this one: computing, idle, reading, in a collective."""
    torch.distributed.init_process_group("gloo")
    found: list[bool] = []
    activity = Activity()

    def look() -> None:
        thread = threading.Thread(target=lambda: found.append(activity.has_moved()))
        thread.start()
        thread.join()

    def compute() -> None:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    look()
    compute()
    look()
    time.sleep(0.5)
    look()
    with open(folder / "data", "rb", buffering=0) as file:
        time.sleep(0.5)
        file.read(10)
        look()
    looker = threading.Timer(0.5, lambda: found.append(activity.has_moved()))
    if rank == 0:
        compute()
        looker.start()
    else:
        time.sleep(1.0)
    torch.distributed.barrier()
    return found[1:]


def test_computing_and_reading_are_activity_and_waiting_is_none(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"0" * 1000)
    found, _ = ranks.run(_active, 2, tmp_path)
    assert found == [True, False, True, False]


@pytest.mark.parametrize(
    ("victims", "writable"),
    [
        pytest.param([0], True, marks=pytest.mark.slow),
        ([1, 3], True),
        pytest.param([2], False, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_rank_is_named(tmp_path: Path, victims: list[int], writable: bool) -> None:
    run = tmp_path / "run"

    def occupy() -> None:
        if not writable:
            (run / "hang").touch()  # where the stacks' folder would be

    codes, said = run_until_it_ends(train_rank, 4, run, SETTINGS, victims, occupy)
    assert [rank for rank, code in enumerate(codes) if code is None] == victims, said
    if 0 in victims:
        assert "rank 0, at which the ranks meet, has not answered for 3 s; here: step" in said
    else:
        assert ("its stacks cannot be written" in said) != writable
        who = ", ".join(map(str, victims))
        assert f"rank {who}: does not answer: stopped, dead or cut off" in said, said


class SlowDisk(Storage):
    def write(self, *arguments: Any) -> Any:
        time.sleep(3)
        return super().write(*arguments)


def _train_on_a_slow_disk(rank: int, world: int, run: Path, changes: dict[str, Any]) -> list[Row]:
    return train_rank(rank, world, run, changes, storage=SlowDisk())


def test_a_slow_disk_is_no_hang(tmp_path: Path) -> None:
    """Saves take longer than the watchdog's patience."""
    rows = ranks.run(
        _train_on_a_slow_disk,
        2,
        tmp_path / "run",
        {**SETTINGS, "train.steps": 4, "checkpoint.every": 2, "faults.hang_seconds": 1.0},
    )[0]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def _watch_without_a_store(rank: int, world: int, run: Path, message: str) -> str:
    """Watch where the store cannot be reached; return what is printed until the thread ends."""

    def connect() -> Store:
        raise RuntimeError(message)

    mesh = Mesh(Layout(pipeline=1, data=1), rank, torch.device("cpu"))
    watchdog = Watchdog(mesh, 1.0, run / "hang", connect)
    with contextlib.redirect_stdout(io.StringIO()) as text, shown():
        watchdog.start()
        while any(thread.name == "watchdog" for thread in threading.enumerate()):
            time.sleep(0.01)
    return text.getvalue()


@pytest.mark.parametrize(
    ("message", "said"), [("", "RuntimeError"), ("refused\nat 10.0.0.1", "refused")]
)
def test_a_watchdog_without_a_store_says_so_and_the_rank_lives(
    tmp_path: Path, message: str, said: str
) -> None:
    """Also where the error has no message."""
    [printed] = ranks.run(_watch_without_a_store, 1, tmp_path, message)
    assert printed == f"rank 0 has no watchdog: {said}\n"


def test_a_closed_watchdog_is_out_of_the_store(tmp_path: Path) -> None:
    """Python may end as soon as it is closed, which aborts a process inside C++ code."""
    inside, left = threading.Event(), threading.Event()

    class SlowStore:
        def set(self, *_: str) -> None:
            inside.set()
            time.sleep(0.5)

        def check(self, _: list[str]) -> bool:
            left.set()
            return False

    mesh = Mesh(Layout(1, 2), 1, torch.device("cpu"))
    watchdog = Watchdog(mesh, 1.0, tmp_path / "hang", lambda: cast(Store, SlowStore()))
    watchdog.start()
    assert inside.wait(10)
    watchdog.close()
    assert left.is_set()
    watchdog.close()  # again, after the thread has ended
