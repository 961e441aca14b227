"""Batches are made ahead in a thread, in their order, and what making them raises is raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from tests.settings import UNSCORED, planned, train_plan
from trainer.data import Dataset
from trainer.data.feeding import Feeder
from trainer.data.windows import WindowBatch
from trainer.logs.metrics import read_metrics


def batches(step: int) -> Iterator[tuple[int, int]]:
    """Yield three batches of a step."""
    yield from ((step, number) for number in range(3))


@pytest.mark.parametrize("ahead", [0, 1, 5, 100])
@pytest.mark.parametrize("first", [1, 4])
def test_steps_come_in_their_order(ahead: int, first: int) -> None:
    feeder = Feeder(batches, 9, ahead=ahead)
    taken = [batch for step in range(first, 10) for batch in feeder.step(step, 3)]
    assert taken == [batch for step in range(first, 10) for batch in batches(step)]
    assert feeder.take_wait() > 0 and feeder.take_wait() == 0
    feeder.close()


def test_no_more_is_made_than_wanted() -> None:
    made: list[tuple[int, int]] = []

    def make(step: int) -> Iterator[tuple[int, int]]:
        for batch in batches(step):
            made.append(batch)
            yield batch

    feeder = Feeder(make, 1000, ahead=4)
    assert not made  # a rank that needs no data reads none
    next(feeder.step(1, 3))
    deadline = time.monotonic() + 10
    while len(made) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 6  # one taken, four ahead, one in hand
    feeder.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_is_raised_comes_where_the_batch_is_taken(ahead: int) -> None:
    def make(step: int) -> Iterator[int]:
        yield 1
        raise RuntimeError("the disk is gone")

    feeder = Feeder(make, 3, ahead=ahead)
    taken = feeder.step(1, 3)
    assert next(taken) == 1
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(taken)
    feeder.close()


def test_a_thread_ends_with_its_feeder() -> None:
    before = threading.active_count()
    for _ in range(20):
        feeder = Feeder(batches, 10**9, ahead=2)
        next(feeder.step(1, 3))
        feeder.close()
    assert threading.active_count() == before


class CountedData(Dataset):
    """Counts the micro-batches that are made of it."""

    made = 0

    def samples(self, seed: int, start: int, stop: int, step: int = 1) -> WindowBatch:
        self.made += 1
        return super().samples(seed, start, stop, step)


def _made_on(rank: int, world: int, run: Path, changes: dict[str, Any]) -> int:
    """Train, and return how many micro-batches this rank has made."""
    plan = planned(run, changes, world)
    data = CountedData(plan.configuration.settings.data)
    train_plan(replace(plan, dataset=data), rank)
    return data.made


def test_stages_between_the_first_and_the_last_read_nothing(tmp_path: Path) -> None:
    changes = {**UNSCORED, "train.steps": 3, "parallel.pipeline": 4}
    made = ranks.run(_made_on, 4, tmp_path / "run", changes)
    assert made[0] == made[3] >= 3 * 4 and made[1] == made[2] == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(row["data_wait_seconds"] > 0 for row in rows)
