"""The layout never changes the result."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ranks
from tests.layouts.reference import Trajectory, train_plainly
from tests.settings import tiny, train_rank
from trainer.checkpoint.storage import read
from trainer.metrics import Row

STEPS = 10
TOLERANCE = 1e-5
"""Relative, on losses and norms; what is reached is about 3e-7."""

SETTINGS: dict[str, Any] = {
    "train.steps": STEPS, "train.warmup_steps": 2, "train.gradient_clipping": 1.0,
    "logging.tensorboard": False, "data.rows": 1000,
}  # fmt: skip


@cache
def reference(items: tuple[tuple[str, Any], ...]) -> Trajectory:
    settings = tiny(**{k.replace(".", "__"): v for k, v in items}).settings
    return train_plainly(settings, STEPS)


def train(tmp_path: Path, world: int, **changes: Any) -> tuple[list[Row], Trajectory]:
    overrides = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    rows = ranks.run(train_rank, world, tmp_path / "run", overrides)[0]
    of_the_result = {k: v for k, v in overrides.items() if not k.startswith("parallel.")}
    of_the_result.pop("train.micro_batch_size", None)
    return rows, reference(tuple(sorted(of_the_result.items())))


LAYOUTS = [
    pytest.param(1, {}, id="one-process"),
    pytest.param(1, {"train__micro_batch_size": 16}, id="one-process-whole-batch"),
    pytest.param(2, {"parallel__pipeline": 2}, id="pipeline2"),
    pytest.param(4, {"parallel__pipeline": 4}, id="pipeline4"),
    pytest.param(2, {}, id="data2"),
    pytest.param(4, {"train__micro_batch_size": 2}, id="data4"),
    pytest.param(4, {"parallel__pipeline": 2}, id="pipeline2-data2"),
    pytest.param(2, {"parallel__activation_checkpointing": "block"}, id="data2-checkpointing"),
    pytest.param(
        2, {"parallel__pipeline": 2, "parallel__activation_checkpointing": "block"},
        id="pipeline2-checkpointing",
    ),
    pytest.param(2, {"parallel__pipeline": 2, "model__use_moe": False}, id="pipeline2-dense"),
    pytest.param(2, {"parallel__pipeline": 2, "model__channels": "mixed"}, id="pipeline2-mixed"),
    pytest.param(
        4, {"parallel__pipeline": 2, "model__architecture": "encoder", "model__att_type": "flash"},
        id="encoder-pipeline2-data2",
    ),
    pytest.param(
        4, {"parallel__pipeline": 2, "model__architecture": "decoder", "model__position": "rotary"},
        id="decoder-pipeline2-data2",
    ),
    pytest.param(
        4, {"parallel__pipeline": 4, "model__att_type": "frequency",
            "model__use_adaptive_ln": "adaptive", "model__loss": "quantile"},
        id="frequency-pipeline4",
    ),
    pytest.param(
        4, {"parallel__pipeline": 2, "model__capacity_factor": 0.7, "model__shared_expert": True,
            "model__z_loss": 0.01, "model__loss": "student_t"},
        id="capacity-pipeline2-data2",
    ),
    pytest.param(
        4, {"parallel__pipeline": 2, "model__router_score": "sigmoid",
            "model__balance_rate": 0.05, "model__position": "learned"},
        id="bias-balancing-pipeline2-data2",
    ),
    pytest.param(2, {"model__share_layers": True}, id="shared-layers-data2"),
]  # fmt: skip


@pytest.mark.parametrize(("world", "changes"), LAYOUTS)
def test_losses_norms_and_weights_are_those_of_plain_torch(
    tmp_path: Path, world: int, changes: dict[str, Any]
) -> None:
    rows, plain = train(tmp_path, world, **changes)
    assert [row["loss"] for row in rows] == pytest.approx(plain.losses, rel=TOLERANCE)
    assert [row["grad_norm"] for row in rows] == pytest.approx(plain.grad_norms, rel=TOLERANCE)
    assert [row["aux_loss"] for row in rows] == pytest.approx(plain.aux_losses, rel=TOLERANCE)
    weights = {f"weights/{name}": torch.zeros_like(w) for name, w in plain.weights.items()}
    read(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}", weights, alone=True)
    for name, expected in plain.weights.items():
        if expected.norm() == 0:
            continue
        distance = (weights[f"weights/{name}"] - expected).norm() / expected.norm()
        assert distance < TOLERANCE, name


def test_the_parity_above_can_fail() -> None:
    """Clipping acts, the balance loss counts, and the weights have moved."""
    plain = reference(tuple(sorted(SETTINGS.items())))
    assert max(plain.grad_norms) > 1.0
    assert min(plain.aux_losses) > 0.0
    moved = sum(float((w - plain.first_weights[n]).norm() ** 2) for n, w in plain.weights.items())
    whole = sum(float(w.norm() ** 2) for w in plain.first_weights.values())
    assert (moved / whole) ** 0.5 > 0.01


def test_two_runs_of_one_layout_are_bit_equal(tmp_path: Path) -> None:
    changes = {**SETTINGS, "parallel.pipeline": 2, "model.dropout": 0.1}
    losses = [
        [(row["loss"], row["grad_norm"])
         for row in ranks.run(train_rank, 4, tmp_path / name, changes)[0]]
        for name in ("first", "second")
    ]  # fmt: skip
    assert losses[0] == losses[1]


def test_bf16_pipeline_is_near_fp32(tmp_path: Path) -> None:
    changes = {**SETTINGS, "train.precision": "bf16"}
    piped = ranks.run(train_rank, 2, tmp_path / "two", {**changes, "parallel.pipeline": 2})[0]
    alone = ranks.run(train_rank, 1, tmp_path / "one", changes)[0]
    plain = reference(tuple(sorted(SETTINGS.items())))
    assert [r["loss"] for r in piped] == pytest.approx([r["loss"] for r in alone], rel=2e-3)
    assert [r["loss"] for r in alone] == pytest.approx(plain.losses, rel=5e-2)
