"""bf16 learns what fp32 learns."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from tests.ranks import run
from tests.settings import train_rank

DEEP = {
    "model.architecture": "encoder",
    "model.num_layers": 24,
    "model.use_moe": False,
    "model.norm_strategy": "pre_norm",
    "train.steps": 250,
    "train.warmup_steps": 25,
    "train.learning_rate": 3e-4,
    "logging.every": 100,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_24_layers_in_bf16_end_within_two_percent_of_fp32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        settings = {**DEEP, "train.precision": precision}
        (rows,) = run(train_rank, 1, folder, settings, timeout=400)
        assert len(rows) == DEEP["train.steps"]
        losses[precision] = fmean(row["loss"] for row in rows[-50:])
        assert losses[precision] < 0.5 * fmean(row["loss"] for row in rows[:10])
    print("mean losses of the last 50 steps:", losses)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
