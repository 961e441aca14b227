"""Series of unequal scales are learnt beside each other as well as each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests import ranks
from tests.settings import train_plan
from tests.trainer.data.sets import csv
from trainer.config import load
from trainer.data import Split
from trainer.forecast.evaluate import evaluate
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.scores import MODEL
from trainer.prepare import prepare

CONFIG = """
model: {d_model: 32, nhead: 4, num_layers: 2, dim_feedforward: 96, patch_length: 8, dropout: 0.0}
data: {source: series.csv, id_column: item, context_length: 96, prediction_length: 24}
train:
  {steps: 300, global_batch_size: 32, micro_batch_size: 32, learning_rate: 3e-3, warmup_steps: 20}
logging: {tensorboard: false}
"""


def series(name: str, level: float, deviation: float, seed: int) -> pd.DataFrame:
    """Return 1,500 hourly points with a daily wave."""
    rng, hours = np.random.default_rng(seed), np.arange(1500)
    daily = np.sin(2 * np.pi * hours / 24) + 0.5 * np.sin(4 * np.pi * hours / 24 + seed)
    slow = np.convolve(rng.normal(size=1500), np.ones(12) / 4, mode="same")
    values = level + deviation * (daily + 0.3 * slow + 0.1 * rng.normal(size=1500))
    times = pd.date_range("2024-01-01", periods=1500, freq="h")
    return pd.DataFrame({"item": name, "time": times, "y": values})


def _train(rank: int, world: int, folder: Path) -> None:
    plan = prepare(load(folder / "run.yaml"), run_dir=folder / "run")
    train_plan(plan, rank)


def errors(folder: Path, *frames: pd.DataFrame, model: dict[str, Any]) -> dict[str, float]:
    """Train on series; return each one's MAE on the test part, in its own deviations."""
    folder.mkdir()
    text = CONFIG.replace("series.csv", str(csv(folder, pd.concat(frames), "series.csv")))
    changes = "".join(f"{key}: {value}, " for key, value in model.items())
    (folder / "run.yaml").write_text(text.replace("model: {", f"model: {{{changes}"))
    ranks.run(_train, 1, folder)
    forecaster = Forecaster.load(folder / "run")
    found = evaluate(
        forecaster.dataset,
        Split.TEST,
        forecaster.predict_windows,
        batch_size=64,
        levels=forecaster.network.output.levels,
    )
    points = found.sums.of_items("points").sum(1)
    mean = found.sums.of_items("absolute", MODEL).sum(1) / points
    return dict(zip(found.items, mean.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "encoder"},
        {"architecture": "encoder", "head": "token", "loss": "quantile", "periods": 1},
    ],
    ids=["flatten", "tokens"],
)
def test_a_small_series_is_learnt_beside_a_large_one(tmp_path: Path, model: dict[str, Any]) -> None:
    large, small = series("large", 1e6, 1e5, 1), series("small", 10.0, 3.0, 2)
    both = errors(tmp_path / "both", large, small, model=model)
    for name, frame in (("large", large), ("small", small)):
        alone = errors(tmp_path / name, frame, model=model)
        (error,) = alone.values()
        assert both[name] < 1.1 * error, (both, alone)
