"""Saves that fail or wait."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests import ranks
from tests.faults.saves import SETTINGS, committed
from tests.settings import told, train_rank, words_of
from trainer.checkpoint.tensor_files import Storage, Writer
from trainer.logs.metrics import Row, read_metrics


class FullDisk(Storage):
    """A disk that is full at the saves with some numbers, from 1."""

    def __init__(self, saves: list[int]) -> None:
        self._saves, self._count = saves, 0

    def writer(self, folder: Path) -> Writer:
        self._count += 1
        return _FailingWriter(folder) if self._count in self._saves else super().writer(folder)


class _FailingWriter(Writer):
    def write_data(self, *_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _train_on_a_full_disk(
    rank: int, world: int, run: Path, changes: dict[str, Any], saves: list[int]
) -> str:
    """Train; rank 1 finds its disk full at some saves."""
    storage = FullDisk(saves) if rank == 1 else None
    return words_of(rank, world, run, changes, storage=storage)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return ranks.run(train_rank, 2, tmp_path_factory.mktemp("whole") / "run", SETTINGS)[0]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_is_told_and_training_goes_on(
    tmp_path: Path, undisturbed: list[Row], asynchronous: bool
) -> None:
    run = tmp_path / "run"
    changes = {**SETTINGS, "checkpoint.asynchronous": asynchronous, "checkpoint.keep": 9}
    said = ranks.run(_train_on_a_full_disk, 2, run, changes, [2])
    assert (
        "the checkpoint of step 4 failed at writing the tensors: rank 1: OSError: [Errno 28] "
        "No space left on device; the checkpoints before it are as they were"
    ) in said[0]
    assert "failed" not in said[1]
    assert committed(run) == [2, 6, 8]
    assert told(read_metrics(run / "metrics.jsonl")) == told(undisturbed)
    assert (run / "done").exists() and not list((run / "checkpoints").glob(".*"))


def test_two_failed_saves_in_a_row_stop_the_run(tmp_path: Path, undisturbed: list[Row]) -> None:
    run = tmp_path / "run"
    said = ranks.run(_train_on_a_full_disk, 2, run, SETTINGS, [2, 3])
    for text in said:
        assert text.strip().endswith("as did the one before; the run stops")
        assert "SaveFailedError: the checkpoint of step 6 failed at writing the tensors" in text
    assert committed(run) == [2]
    assert not (run / "done").exists()
    resumed = ranks.run(train_rank, 2, run, SETTINGS)[0]
    assert told(resumed) == told(undisturbed)


def test_the_last_checkpoint_is_tried_once_more(tmp_path: Path) -> None:
    said = ranks.run(_train_on_a_full_disk, 2, tmp_path / "run", SETTINGS, [4])
    assert "the checkpoint of step 8 failed" in said[0]
    assert committed(tmp_path / "run")[-1] == 8 and (tmp_path / "run" / "done").exists()


def _slow_disk(rank: int, world: int, run: Path, changes: dict[str, Any]) -> list[int]:
    """The first save is not written before step 5 has begun: a save that blocked would hang."""
    from trainer.checkpoint.tensor_files import Storage

    begun = threading.Event()
    in_flight: list[int] = []

    class SlowDisk(Storage):
        def write(self, *arguments: Any) -> Any:
            in_flight.append(threading.active_count())
            assert begun.wait(timeout=60)
            return super().write(*arguments)

    def on_step(step: int) -> None:
        if step == 5:
            begun.set()

    train_rank(rank, world, run, changes, on_step=on_step, storage=SlowDisk())
    return in_flight


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, undisturbed: list[Row]
) -> None:
    """And what is written is the state as it was: the steps since have not touched it."""
    run = tmp_path / "run"
    changes = {**SETTINGS, "checkpoint.every": 4, "checkpoint.keep": 9}
    ranks.run(_slow_disk, 2, run, changes)
    assert committed(run) == [4, 8]
    plain = tmp_path / "plain"
    ranks.run(train_rank, 2, plain, {**changes, "checkpoint.asynchronous": False})
    for name in ("__0_0.distcp", "__1_0.distcp"):
        files = [(r / "checkpoints/step-00000004" / name).read_bytes() for r in (run, plain)]
        assert files[0] == files[1]
    assert told(read_metrics(run / "metrics.jsonl")) == told(undisturbed)


def _train_untidily(rank: int, world: int, run: Path, changes: dict[str, Any]) -> str:
    """Train where no folder can be removed, as where others read them over the network."""
    busy = OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    with patch("shutil.rmtree", side_effect=busy):
        return words_of(rank, world, run, changes)


def test_a_commit_counts_whatever_becomes_of_older_ones(
    tmp_path: Path, undisturbed: list[Row]
) -> None:
    run = tmp_path / "run"
    said = ranks.run(_train_untidily, 2, run, {**SETTINGS, "checkpoint.keep": 1})
    assert "older checkpoints cannot be tidied away: [Errno 39] Directory not empty" in said[0]
    assert "the checkpoint of" not in said[0]
    assert committed(run) == [8] and (run / "done").exists()
    more = ranks.run(_train_untidily, 2, run, {**SETTINGS, "train.steps": 9})
    assert "cannot be removed: Directory not empty" in more[0]
