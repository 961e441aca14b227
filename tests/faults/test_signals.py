"""A signal on any rank saves at the next step, and the run is resumed bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from tests.settings import QUICK, planned, told, train_plan, train_rank
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.data.windows import WindowBatch
from trainer.logs.metrics import read_metrics


def _train_and_signal(
    rank: int, world: int, run: Path, overrides: dict[str, Any], at: int, number: int
) -> str:
    """Train; the last rank gets a signal in step `at`."""

    def on_step(step: int) -> None:
        if step == at and rank == world - 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # twice is once

    return train_plan(planned(run, overrides, world), rank, on_step=on_step)


@pytest.mark.parametrize(
    ("number", "world", "layout"),
    [
        (signal.SIGTERM, 1, {}),
        (signal.SIGINT, 2, {"parallel.pipeline": 2}),
        (signal.SIGUSR1, 2, {"train.precision": "bf16"}),
    ],
)
def test_a_signal_on_any_rank_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, number: int, world: int, layout: dict[str, Any]
) -> None:
    settings = {**QUICK, **layout}
    outcomes = ranks.run(_train_and_signal, world, tmp_path / "cut", settings, 3, number)
    assert outcomes == ["saved"] * world
    assert (tmp_path / "cut" / "saved").read_text() == "step 3\n"
    assert len(read_metrics(tmp_path / "cut" / "metrics.jsonl")) == 3
    resumed = ranks.run(train_rank, world, tmp_path / "cut", settings)[0]
    straight = ranks.run(train_rank, world, tmp_path / "straight", settings)[0]
    assert told(resumed) == told(straight)
    assert not (tmp_path / "cut" / "saved").exists() and (tmp_path / "cut" / "done").exists()
    scores = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["scores"]
        for name in ("cut", "straight")
    ]
    assert scores[0] == scores[1]


class SignallingData(Dataset):
    """At the fifth batch of a split this process gets SIGUSR1."""

    def __init__(self, config: DataConfig, split: Split) -> None:
        super().__init__(config)
        self._split, self._seen = split, 0

    def batch(self, split: Split, *which: Any, **options: Any) -> WindowBatch:
        self._seen += split is self._split
        if split is self._split and self._seen == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().batch(split, *which, **options)


def _signal_while_evaluating(
    rank: int, world: int, run: Path, overrides: dict[str, Any], split: Split
) -> str:
    """Train; the last rank gets a signal while it evaluates the windows of `split`."""
    import trainer.forecast.validation

    trainer.forecast.validation.LOOK_EVERY = 2
    plan = planned(run, overrides, world)
    if rank == world - 1:
        config = plan.configuration.settings.data
        plan = replace(plan, dataset=SignallingData(config, split))
    return train_plan(plan, rank)


VALIDATING = {**QUICK, "logging.validate_every": 2, "train.micro_batch_size": 2}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """The folder of a run of VALIDATING on a layout that no signal comes to."""

    @cache
    def run_on(layout: str) -> Path:
        run = tmp_path_factory.mktemp("straight") / "run"
        ranks.run(train_rank, 2, run, {**VALIDATING, **json.loads(layout)})
        return run

    return lambda layout: run_on(json.dumps(layout))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "steps"),
    [(Split.VALIDATION, 2), (Split.TEST, 8)],
)
@pytest.mark.parametrize("layout", [{}, {"parallel.pipeline": 2}])
def test_a_signal_while_evaluating_is_heard(
    tmp_path: Path,
    straight: Callable[[dict[str, Any]], Path],
    split: Split,
    steps: int,
    layout: dict[str, Any],
) -> None:
    """What was not scored is scored after the resume: no number is lost."""
    settings = {**VALIDATING, **layout}
    run = tmp_path / "cut"
    outcomes = ranks.run(_signal_while_evaluating, 2, run, settings, split)
    assert outcomes == ["saved", "saved"]
    assert (run / "saved").read_text() == f"step {steps}\n"
    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == steps and ("validation_mse" in rows[-1]) == (split is Split.TEST)
    assert not (run / "evaluation.json").exists()
    resumed = ranks.run(train_rank, 2, run, settings)[0]
    undisturbed = straight(layout)
    expected = read_metrics(undisturbed / "metrics.jsonl")
    assert told(resumed) == told(expected)
    scores = [[row.get("validation_mse") for row in rows] for rows in (resumed, expected)]
    assert scores[0] == scores[1] and sum(s is not None for s in scores[0]) == 4
    evaluations = [(r / "evaluation.json").read_text() for r in (run, undisturbed)]
    assert evaluations[0] == evaluations[1]
    assert (run / "done").exists() and not (run / "saved").exists()
