"""Which windows a step's samples are: the same for every world, and after every restart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import UserError
from tests.settings import TINY
from tests.trainer.data.sets import csv
from trainer.config import load
from trainer.config.data_settings import DataConfig
from trainer.config.rules import check
from trainer.data import Dataset, Split
from trainer.data.feeding import Feeder
from trainer.data.order import samples_of_replica

LENGTHS = [9, 14, 20, 30, 60, 61, 200, 700]
BATCH = 16


def dataset(folder: Path, **settings: Any) -> Dataset:
    """Return series of LENGTHS points, all for training; a value says its item and place."""
    frame = pd.concat(
        [
            pd.DataFrame(
                {
                    "item": f"series {item}",
                    "time": pd.date_range("2024-01-01", periods=length, freq="h"),
                    "load": 1000.0 * item + np.arange(length),
                }
            )
            for item, length in enumerate(LENGTHS)
        ]
    )
    options: dict[str, Any] = {
        "source": str(csv(folder, frame)),
        "id_column": "item",
        "scaling": "none",
        "split": [1.0, 0.0, 0.0],
        "context_length": 64,
        "prediction_length": 8,
    }
    return Dataset(DataConfig(**(options | settings)))


VARIED: dict[str, Any] = {
    "context_lengths": [8, 16, 32, 64],
    "min_prediction_length": 2,
    "length_exponent": 0.5,
}


def stream(data: Dataset, world: int, first: int, last: int, micro: int = 1) -> list[Any]:
    """Return what all replicas of a world are fed in steps first..last, as a step's multiset."""
    fed: list[Counter[Any]] = [Counter() for _ in range(first, last + 1)]
    for replica in range(world):

        def make(step: int, replica: int = replica) -> Iterator[list[Any]]:
            sizes = {"replicas": world, "micro": micro, "whole": BATCH}
            for samples in samples_of_replica(step, replica, **sizes):
                drawn = data.order.samples(5, samples.start, samples.stop, step)
                horizons = drawn.horizons
                yield [
                    (number, int(window), drawn.context_length, int(horizon), int(word))
                    for number, window, horizon, word in zip(
                        samples,
                        drawn.windows,
                        [-1] * micro if horizons is None else horizons,
                        drawn.random,
                        strict=True,
                    )
                ]

        feeder = Feeder(make, last, ahead=3)
        for step in range(first, last + 1):
            for batch in feeder.step(step, BATCH // (world * micro)):
                fed[step - first].update(batch)
        feeder.close()
    return fed


@pytest.mark.parametrize("steps", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings", [{}, VARIED, {"order": "epoch"}], ids=["draw", "varied", "epoch"]
)
def test_the_order_is_that_of_one_process_on_any_world_and_after_any_restart(
    tmp_path: Path, settings: dict[str, Any], steps: int
) -> None:
    data = dataset(tmp_path, **settings)
    alone = stream(data, 1, 1, steps, micro=BATCH)
    for index, step in enumerate(alone):
        first = BATCH * index
        assert sorted(number for number, *_ in step) == list(range(first, first + BATCH))
    for world in (2, 4, 8):
        assert stream(data, world, 1, steps) == alone
    choose = np.random.default_rng(0)
    stops = sorted(choose.choice(np.arange(1, steps), 10, replace=False).tolist())
    fed = []
    for first, last in zip([1, *(s + 1 for s in stops)], [*stops, steps], strict=True):
        fed += stream(data, int(choose.choice([1, 2, 4, 8])), first, last, micro=2)
    assert fed == alone


def test_a_step_has_one_context_length_that_its_series_fill(tmp_path: Path) -> None:
    data = dataset(tmp_path, **VARIED)
    seen: dict[int, Counter[int]] = {}
    for step in range(1, 2001):
        batch = data.samples(0, (step - 1) * 4, step * 4, step)
        length = batch.context.shape[1]
        assert length == data.order.context_length(0, step)
        for context in batch.context[:, :, 0]:
            item = int(np.nanmax(context)) // 1000
            seen.setdefault(item, Counter())[length] += 1
            assert np.isnan(context).sum() <= max(0, length - 1)
    for item, length in enumerate(LENGTHS):
        longest = next((one for one in (8, 16, 32, 64) if one >= length - 2), 64)
        assert set(seen[item]) == {one for one in (8, 16, 32, 64) if one <= longest}


def test_horizons_are_drawn_and_nothing_after_them_is_seen(tmp_path: Path) -> None:
    data = dataset(tmp_path, **VARIED, split=[0.5, 0.25, 0.25])
    assert data.shape.missing
    counts: Counter[int] = Counter()
    for step in range(1, 1001):
        batch = data.samples(0, (step - 1) * 8, step * 8, step)
        assert batch.asked is not None
        for context, target, asked in zip(batch.context, batch.target, batch.asked, strict=True):
            horizon = int(asked.sum())
            counts[horizon] += 1
            assert (asked[:horizon] == 1).all()
            assert np.isfinite(target[:horizon]).all() and np.isnan(target[horizon:]).all()
            last = float(target[horizon - 1, 0])
            item, place = divmod(int(last), 1000)
            assert place < LENGTHS[item] * 0.5 + 1
            assert context[-1, 0] + 1 == target[0, 0]
    assert set(counts) == set(range(2, 9)) and counts[8] > 500
    scored = data.batch(Split.TRAIN, np.arange(data.windows(Split.TRAIN)))
    for target in scored.target[:, :, 0]:
        item, place = divmod(int(np.nanmax(target)), 1000)
        assert place < LENGTHS[item] * 0.5 + 1


def test_the_share_of_padding_is_that_of_the_batch(tmp_path: Path) -> None:
    data = dataset(tmp_path, **VARIED)
    for step in range(1, 101):
        row = data.order.row(3, step, 16, 4)
        batch = data.samples(3, (step - 1) * 16, step * 16, step)
        patches = np.isnan(batch.context[:, :, 0]).reshape(16, -1, 4).all(2)
        assert row["padding"] == pytest.approx(patches.mean())
        assert row["context_length"] == batch.context.shape[1]
    assert dataset(tmp_path, context_length=4, prediction_length=4).order.row(3, 1, 16, 4) == {}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"context_lengths": [16, 8, 64]}, "must ascend up to context_length=64"),
        ({"context_lengths": [16, 32]}, "must ascend up to context_length=64"),
        ({"context_lengths": [16, 64], "order": "epoch"}, "context_lengths go with draw"),
        ({"min_prediction_length": 9}, "9 is more than prediction_length=8"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataset(tmp_path, **settings)


def test_a_flatten_head_takes_one_context_length() -> None:
    changes = {"model.architecture": "encoder", "data.context_lengths": [48, 96]}
    with pytest.raises(UserError, match=r"data\.context_lengths: .* set model\.head=token"):
        check(load(TINY, changes), 1)
    check(load(TINY, changes | {"model.head": "token"}), 1)
