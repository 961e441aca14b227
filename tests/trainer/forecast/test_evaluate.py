"""All windows are seen once on every world, and scores are their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests import ranks
from tests.settings import train_rank
from trainer.config.settings import DataConfig
from trainer.data import Dataset, Split
from trainer.forecast.evaluate import MODEL, evaluate
from trainer.forecast.forecaster import Forecaster


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    hours = pd.date_range("2024-01-01", periods=300, freq="h")
    rng = np.random.default_rng(0)
    values = np.sin(np.arange(300) / 4) + rng.normal(0, 0.1, 300)
    table = pd.DataFrame({"date": hours, "a": values, "b": rng.normal(0, 1, 300)})
    table.loc[[250, 251, 290], "b"] = np.nan
    table.to_csv(tmp_path / "s.csv", index=False)
    return Dataset(
        DataConfig(source=str(tmp_path / "s.csv"), context_length=30, prediction_length=7)
    )


def test_scores_are_their_definitions(dataset: Dataset) -> None:
    forecast = torch.randn(1, 7, 2)
    result = evaluate(
        dataset,
        Split.TEST,
        lambda batches: ((b, forecast.expand(len(b.context), 7, 2)) for b in batches),
        batch_size=8,
        keep=[3],
    )
    everything = dataset.batch(Split.TEST, np.arange(dataset.windows(Split.TEST)))
    valid = ~np.isnan(everything.target)
    assert not valid.all()
    error = forecast.numpy() - everything.target
    scores = result.scores()[MODEL]
    assert scores["mse"] == pytest.approx(np.nanmean(error**2), rel=1e-6)
    assert scores["mae"] == pytest.approx(np.nanmean(np.abs(error)), rel=1e-6)
    training = dataset.values[0][:210].astype(float)
    seasonal = np.nanmean(np.abs(training[24:] - training[:-24]), axis=0)
    mase = (np.nanmean(np.abs(error), axis=(0, 1)) / seasonal).mean()
    assert scores["mase"] == pytest.approx(mase, rel=1e-6)
    assert result.windows == 60 - 7 + 1
    np.testing.assert_array_equal(result.forecasts[3], forecast[0].numpy())


def test_naive_forecasts_use_the_context_alone(dataset: Dataset) -> None:
    result = evaluate(
        dataset,
        Split.TEST,
        lambda batches: ((b, torch.zeros(len(b.context), 7, 2)) for b in batches),
        batch_size=8,
    )
    everything = dataset.batch(Split.TEST, np.arange(dataset.windows(Split.TEST)))
    day = everything.context[:, -24 : -24 + 7, 0] - everything.target[:, :, 0]
    last = everything.context[:, -1:, 0] - everything.target[:, :, 0]
    per_channel = result.summary()["per_channel"]
    assert per_channel["seasonal naive (24)"]["a"]["mse"] == pytest.approx(
        (day**2).mean(), rel=1e-6
    )
    assert per_channel["last value"]["a"]["mse"] == pytest.approx((last**2).mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (2, {"parallel.pipeline": 2}),
        (3, {"train.micro_batch_size": 1, "train.global_batch_size": 15}),
        (4, {"parallel.pipeline": 2, "train.micro_batch_size": 5, "train.global_batch_size": 10}),
        (4, {"parallel.pipeline": 2, "model.architecture": "decoder", "model.use_moe": False}),
        (2, {"parallel.tensor": 2, "parallel.expert": 2, "train.micro_batch_size": 8}),
        (3, {"parallel.zero_stage": 3, "train.micro_batch_size": 5, "train.global_batch_size": 15}),
        (
            4,
            {
                "parallel.pipeline": 2,
                "parallel.tensor": 2,
                "parallel.expert": 2,
                "model.architecture": "decoder",
                "model.capacity_factor": 0.8,
            },
        ),
    ],
)
def test_a_layout_scores_what_one_process_scores(
    tmp_path: Path, world: int, changes: dict[str, Any]
) -> None:
    """Batches of 4, 1 and 5 windows over 1, 3 and 2 replicas leave different ends uneven."""
    settings = {"train.steps": 2, "data.rows": 700, **changes}
    ranks.run(train_rank, world, tmp_path / "run", settings)
    theirs = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    forecaster = Forecaster.load(tmp_path / "run")
    ours = evaluate(forecaster.dataset, Split.TEST, forecaster.predict, batch_size=64)
    assert theirs["windows"] == ours.windows == 140 - 32 + 1
    for name, scores in ours.scores().items():
        assert theirs["scores"][name] == pytest.approx(scores, rel=1e-6)
    assert (tmp_path / "run" / "forecast.png").stat().st_size > 10_000
