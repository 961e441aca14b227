"""Steps whose numbers go wrong are skipped by one rule on all ranks; too many end the run."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import DivergedError, NonFiniteError
from tests import ranks
from tests.settings import planned, train_plan, train_rank
from trainer.checkpoint.tensor_files import read, tensor_shapes
from trainer.config.settings import DataConfig, FaultsConfig
from trainer.data import Dataset, Split
from trainer.data.dataset import WindowBatch
from trainer.faults.skipped_steps import MIN_NORMS, SkippedSteps
from trainer.logs.metrics import Row, read_metrics
from trainer.run.folder import RunFolder

SETTINGS: dict[str, Any] = {
    "data.rows": 600,
    "data.split": [0.9, 0.1, 0.0],
    "logging.tensorboard": False,
    "train.steps": 8,
    "checkpoint.every": 1,
    "checkpoint.keep": 99,
    "model.dropout": 0.1,
    "model.balance_rate": 0.05,
    "model.router_score": "sigmoid",
}

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {}),
    (2, {"parallel.pipeline": 2}),
    (2, {"parallel.zero_stage": 2}),
    (2, {"parallel.zero_stage": 3}),
    (2, {"train.precision": "bf16"}),
    (2, {"parallel.tensor": 2, "parallel.expert": 2}),
    (2, {"parallel.offload_optimizer": "cpu"}),
    (4, {"parallel.pipeline": 2, "train.precision": "bf16"}),
]


class SpoiltData(Dataset):
    """Its training targets of some steps are multiplied: step -> factor."""

    step = 0

    def __init__(self, config: DataConfig, factors: dict[int, float]) -> None:
        super().__init__(config)
        self._factors = factors

    def begin(self, step: int) -> None:
        self.step = step

    def batch(self, split: Split, *which: Any, **options: Any) -> WindowBatch:
        batch = super().batch(split, *which, **options)
        if split is Split.TRAIN and self.step in self._factors:
            batch.target[:] = batch.target * np.float32(self._factors[self.step])
        return batch


def _train_on(
    rank: int, world: int, run: Path, changes: dict[str, Any], bad: dict[int, float]
) -> str:
    """Train with the last replica's targets of some steps multiplied; return how it ends."""
    plan = planned(run, changes, world)
    is_last = plan.layout.coordinates(rank).data == plan.layout.data - 1
    dataset = SpoiltData(plan.configuration.settings.data, bad if is_last else {})
    try:
        return train_plan(replace(plan, dataset=dataset), rank, on_step=dataset.begin)
    except (DivergedError, NonFiniteError) as error:
        return f"{type(error).__name__}: {error}"


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    path = run / "checkpoints" / f"step-{step:08d}"
    state = {name: torch.zeros(shape) for name, shape in tensor_shapes(path).items()}
    read(path, state, alone=True)
    return state


@pytest.mark.parametrize(
    ("world", "layout"),
    [*LAYOUTS[:5], *(pytest.param(*case, marks=pytest.mark.slow) for case in LAYOUTS[5:])],
)
def test_a_step_that_is_no_number_is_skipped_on_all_ranks(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    said = ranks.run(_train_on, world, run, {**SETTINGS, **layout}, {4: math.inf})
    assert said == ["done"] * world
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert rows[3]["grad_norm"] is None and rows[3]["loss"] is None
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] != 4)
    before, skipped, after = (weights(run, step) for step in (3, 4, 5))
    assert all(torch.equal(tensor, skipped[name]) for name, tensor in before.items())
    assert not all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("world", "layout"),
    [LAYOUTS[1], *(pytest.param(*LAYOUTS[i], marks=pytest.mark.slow) for i in (2, 4, 5))],
)
def test_a_spike_is_skipped_and_the_run_resumes_bit_for_bit(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    """AdamW's count of steps and the norms that a spike is told by are resumed too."""
    steps = MIN_NORMS + 8
    changes = {
        **SETTINGS,
        **layout,
        "train.steps": steps,
        "faults.spike_factor": 20.0,
        "checkpoint.every": MIN_NORMS + 4,
    }
    bad = {2: math.inf, MIN_NORMS + 3: 1e4, MIN_NORMS + 6: 1e4}
    run = tmp_path / "run"
    assert ranks.run(_train_on, world, run, changes, bad) == ["done"] * world
    straight = read_metrics(run / "metrics.jsonl")
    skipped = [row["skipped_steps"] for row in straight]
    assert skipped[-1] == 3 and skipped[MIN_NORMS + 1] == 1 and skipped[MIN_NORMS + 2] == 2
    assert straight[MIN_NORMS + 2]["grad_norm"] > 20 * straight[MIN_NORMS + 1]["grad_norm"]
    (run / "done").unlink()
    shutil.rmtree(run / "checkpoints" / f"step-{steps:08d}")
    assert ranks.run(_train_on, world, run, changes, bad) == ["done"] * world
    resumed = read_metrics(run / "metrics.jsonl")
    keys = ("step", "loss", "grad_norm", "skipped_steps")
    assert [[row[k] for k in keys] for row in resumed] == [
        [row[k] for k in keys] for row in straight
    ]


@pytest.mark.parametrize("layout", [{}, {"parallel.pipeline": 2}])
def test_too_many_end_the_run_with_a_checkpoint_from_before(
    tmp_path: Path, layout: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    changes = {**SETTINGS, **layout, "checkpoint.every": 100, "faults.max_skipped_steps": 2}
    bad = dict.fromkeys((4, 5, 6), math.inf)
    said = ranks.run(_train_on, 2, run, changes, bad)
    for text in said:
        assert text.startswith("DivergedError: step 6: the loss is inf, the gradient's norm inf")
        assert ", after 2 skipped steps in a row (faults.max_skipped_steps)" in text
    assert [c.step for c in RunFolder(run).store.committed()] == [3]
    assert not (run / "done").exists()
    assert ranks.run(_train_on, 2, run, changes, {}) == ["done", "done"]
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["skipped_steps"] == 0
    straight: list[Row] = ranks.run(train_rank, 2, tmp_path / "straight", changes)[0]
    assert [row["loss"] for row in rows] == [row["loss"] for row in straight]


def test_a_learning_rate_out_of_bounds_ends_the_run(tmp_path: Path) -> None:
    wild = {**SETTINGS, "train.learning_rate": 1e30, "train.warmup_steps": 0, "train.steps": 30}
    said = ranks.run(_train_on, 2, tmp_path / "run", wild, {})
    assert all("lower train.learning_rate in a new run" in text for text in said)


def test_the_rule() -> None:
    rule = SkippedSteps(FaultsConfig(spike_factor=10.0, max_skipped_steps=2))
    for step in range(1, MIN_NORMS + 1):
        assert rule.limit() == math.inf
        assert rule.record(step, 1.0, float(step), applied=True) is None
    assert rule.limit() == 10 * (MIN_NORMS + 1) / 2
    told = rule.record(17, 0.5, 1e6, applied=False)
    assert (
        told == "step 17 is skipped: the loss is 0.5, the gradient's norm 1e+06; 1 skipped in all"
    )
    again = SkippedSteps(FaultsConfig(spike_factor=10.0), rule.content())
    assert again.limit() == rule.limit() and again.total == 1
    rule.record(18, 0.5, math.inf, applied=False)
    with pytest.raises(DivergedError, match="after 2 skipped steps in a row"):
        rule.record(19, 0.5, math.inf, applied=False)
    assert rule.discard() == 3 and rule.total == 0
    with pytest.raises(NonFiniteError):
        rule.record(20, math.nan, 1.0, applied=True)
