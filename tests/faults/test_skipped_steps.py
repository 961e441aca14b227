"""Steps whose numbers go wrong are skipped by one rule on all ranks; too many end the run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch import requeue
from model.errors import DivergedError, NonFiniteError
from tests import ranks
from tests.settings import made_trainer, planned, train_plan, train_rank
from trainer.checkpoint.partitions import Partition
from trainer.checkpoint.store import Checkpoint
from trainer.config.settings import FaultsConfig, Settings
from trainer.data import Dataset
from trainer.data.windows import WindowBatch
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

    def __init__(self, settings: Settings, factors: dict[int, float]) -> None:
        super().__init__(settings.data)
        self._factors, self._batch = factors, settings.train.global_batch_size

    def samples(self, seed: int, start: int, stop: int, step: int = 1) -> WindowBatch:
        batch = super().samples(seed, start, stop, step)
        factor = self._factors.get(start // self._batch + 1, 1.0)
        return replace(batch, target=batch.target * np.float32(factor))


def _train_on(
    rank: int, world: int, run: Path, changes: dict[str, Any], bad: dict[int, float]
) -> str:
    """Train with the last replica's targets of some steps multiplied; return how it ends."""
    plan = planned(run, changes, world)
    is_last = plan.layout.coordinates(rank).data == plan.layout.data - 1
    dataset = SpoiltData(plan.configuration.settings, bad if is_last else {})
    try:
        return train_plan(replace(plan, dataset=dataset), rank)
    except (DivergedError, NonFiniteError) as error:
        return f"{type(error).__name__}: {error}"


def _changed_by(
    rank: int, world: int, run: Path, changes: dict[str, Any], bad: dict[int, float]
) -> tuple[set[int], str]:
    """Train as `_train_on` does; return the steps that change anything here, and how it ends."""
    plan = planned(run, changes, world)
    is_last = plan.layout.coordinates(rank).data == plan.layout.data - 1
    dataset = SpoiltData(plan.configuration.settings, bad if is_last else {})
    before: dict[str, torch.Tensor] = {}
    changing: set[int] = set()
    with made_trainer(replace(plan, dataset=dataset), rank) as trainer:

        def on_step(step: int) -> None:
            state = {name: whole(tensor) for name, tensor in trainer.engine.state().items()}
            if any(not torch.equal(state[name], tensor) for name, tensor in before.items()):
                changing.add(step - 1)
            before.update(state)

        trainer.on_step = on_step
        return changing, str(trainer.run())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of what is held here of a tensor."""
    return (tensor.data_1d if isinstance(tensor, Partition) else tensor).detach().clone()


@pytest.mark.parametrize(
    ("world", "layout"),
    [*LAYOUTS[:5], *(pytest.param(*case, marks=pytest.mark.slow) for case in LAYOUTS[5:])],
)
def test_a_step_that_is_no_number_is_skipped_on_all_ranks(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    said = ranks.run(_changed_by, world, run, {**SETTINGS, **layout}, {4: math.inf})
    assert said == [({1, 2, 3, 5, 6, 7}, "done")] * world
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert rows[3]["grad_norm"] is None and rows[3]["loss"] is None
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] != 4)
    assert [c.step for c in RunFolder(run).store.committed()] == [1, 2, 3, 5, 6, 7, 8]


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
    last_good = SkippedSteps(FaultsConfig(spike_factor=10.0), rule.content())
    assert last_good.limit() == rule.limit() and last_good.total == 0
    rule.record(18, 0.5, math.inf, applied=False)
    with pytest.raises(DivergedError, match="after 2 skipped steps in a row"):
        rule.record(19, 0.5, math.inf, applied=False)
    assert rule.discard() == 3 and rule.total == 0
    rule.record(17, 0.5, 1e6, applied=False)
    with pytest.raises(DivergedError, match=r"train\.steps=16 ends the run there"):
        rule.check_last(17)
    assert rule.record(18, 0.5, 2.0, applied=True) is None
    rule.check_last(18)
    again = SkippedSteps(FaultsConfig(spike_factor=10.0), rule.content())
    assert again.limit() == rule.limit() and again.total == 1
    with pytest.raises(NonFiniteError):
        rule.record(20, math.nan, 1.0, applied=True)


BAD_FROM_4 = dict.fromkeys(range(4, 99), math.inf)


def test_skipped_steps_never_displace_the_last_good_checkpoint(tmp_path: Path) -> None:
    """However often it is started again, the run ends at one step: Slurm's script then gives up."""
    run, failures = tmp_path / "run", []
    changes = {
        **SETTINGS,
        "train.steps": 30,
        "checkpoint.keep": 2,
        "checkpoint.keep_every": 0,
        "faults.max_skipped_steps": 4,
    }
    for _ in range(requeue.MAX_FAILURES):
        [said] = ranks.run(_train_on, 1, run, changes, BAD_FROM_4)
        assert said.startswith("DivergedError: step 8: ")
        assert "the run stands at its last good step, 3: " in said
        assert [c.step for c in RunFolder(run).store.committed()] == [2, 3]
        assert RunFolder(run).store.newest(contents=True) == Checkpoint(
            run / "checkpoints" / "step-00000003"
        )
        step = requeue.last_step(run / "metrics.jsonl")
        failures.append(f"job 7, step {step}: code 1")
    last = requeue.Failure("code 1")
    assert isinstance(requeue.after_failure(last, 7, failures, "job 7, step 7:"), requeue.End)


def _stopped_at(
    rank: int, world: int, run: Path, changes: dict[str, Any], bad: dict[int, float], at: int
) -> str:
    """Train as `_train_on` does; a signal comes in step `at`."""
    plan = planned(run, changes, world)
    dataset = SpoiltData(plan.configuration.settings, bad)

    def on_step(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return train_plan(replace(plan, dataset=dataset), rank, on_step=on_step)


def test_a_signal_among_skipped_steps_saves_the_last_good_one(tmp_path: Path) -> None:
    """The skipped steps are made again after the restart, and counted again."""
    run = tmp_path / "run"
    changes = {**SETTINGS, "checkpoint.every": 100, "faults.max_skipped_steps": 4}
    assert ranks.run(_stopped_at, 1, run, changes, BAD_FROM_4, 6) == ["saved"]
    assert (run / "saved").read_text() == "step 3\n"
    assert [c.step for c in RunFolder(run).store.committed()] == [3]
    [said] = ranks.run(_train_on, 1, run, changes, BAD_FROM_4)
    assert said.startswith("DivergedError: step 8: ") and "last good step, 3:" in said


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        LAYOUTS[0],
        LAYOUTS[4],
        *(pytest.param(*LAYOUTS[i], marks=pytest.mark.slow) for i in (2, 3, 5, 6, 7)),
    ],
)
def test_a_run_is_saved_before_any_step_moved_its_weights(
    tmp_path: Path, world: int, layout: dict[str, Any]
) -> None:
    """Its moments are zero then, and it goes on as if it had not been stopped."""
    run = tmp_path / "run"
    changes = {**SETTINGS, **layout, "train.steps": 4}
    bad = dict.fromkeys((1, 2), math.inf)
    assert set(ranks.run(_stopped_at, world, run, changes, bad, 2)) == {"saved"}
    assert [c.step for c in RunFolder(run).store.committed()] == [0]
    assert set(ranks.run(_train_on, world, run, changes, bad)) == {"done"}
    assert set(ranks.run(_train_on, world, tmp_path / "straight", changes, bad)) == {"done"}
    resumed, straight = (
        [
            [row[key] for key in ("step", "loss", "grad_norm", "skipped_steps")]
            for row in read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (run, tmp_path / "straight")
    )
    assert resumed == straight and [row[-1] for row in resumed] == [1, 2, 2, 2]


def test_a_run_whose_last_steps_were_skipped_is_not_done(tmp_path: Path) -> None:
    """Its code is not 0, however often it is started; with fewer steps it ends at the last good."""
    run = tmp_path / "run"
    changes = {**SETTINGS, "data.split": [0.8, 0.1, 0.1], "train.steps": 6}
    for _ in range(2):
        [said] = ranks.run(_train_on, 1, run, changes, BAD_FROM_4)
        assert said.startswith("DivergedError: step 6: the last 3 steps were skipped; the run ")
        assert said.endswith(
            "its last good step, 3: look at the data that comes next, or lower "
            "train.learning_rate in a new run; train.steps=3 ends the run there"
        )
        assert not (run / "done").exists() and not (run / "evaluation.json").exists()
    assert ranks.run(_train_on, 1, run, {**changes, "train.steps": 3}, {}) == ["done"]
    assert json.loads((run / "evaluation.json").read_text())["step"] == 3
