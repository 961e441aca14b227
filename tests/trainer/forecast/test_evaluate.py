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
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.forecast.evaluate import batches_of_replica, evaluate
from trainer.forecast.forecaster import Forecaster
from trainer.forecast.pictures import pictured_windows
from trainer.forecast.scores import MODEL
from trainer.forecast.table import print_table
from trainer.logs import progress
from trainer.logs.log import shown
from trainer.logs.progress import ScoringProgress


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
        lambda batches: ((b, forecast.expand(len(b.context), 7, 2).unsqueeze(-1)) for b in batches),
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
    drawn = dataset.batch(Split.TRAIN, np.array([0, 30, 60, 90, 120, 150, 173]))
    training = np.concatenate([*drawn.context[:6], drawn.context[6][7:], drawn.target[6]])
    assert len(training) == 210
    training = training.astype(float)
    seasonal = np.nanmean(np.abs(training[24:] - training[:-24]), axis=0)
    mase = (np.nanmean(np.abs(error), axis=(0, 1)) / seasonal).mean()
    assert scores["mase"] == pytest.approx(mase, rel=1e-6)
    assert result.windows == 60 - 7 + 1
    np.testing.assert_array_equal(result.forecasts[3], forecast[0].numpy())


def test_naive_forecasts_use_the_context_alone(dataset: Dataset) -> None:
    result = evaluate(
        dataset,
        Split.TEST,
        lambda batches: ((b, torch.zeros(len(b.context), 7, 2, 1)) for b in batches),
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
        (2, {"data.score_every": 3}),
        (3, {"train.micro_batch_size": 1, "train.global_batch_size": 15}),
        (4, {"parallel.pipeline": 2, "train.micro_batch_size": 5, "train.global_batch_size": 10}),
        (4, {"parallel.pipeline": 2, "model.architecture": "decoder", "model.use_moe": False}),
        (2, {"parallel.tensor": 2, "parallel.expert": 2, "train.micro_batch_size": 8}),
        (3, {"parallel.zero_stage": 3, "train.micro_batch_size": 5, "train.global_batch_size": 15}),
        pytest.param(
            4,
            {
                "parallel.pipeline": 2,
                "parallel.tensor": 2,
                "parallel.expert": 2,
                "model.architecture": "decoder",
                "model.capacity_factor": 0.8,
            },
            marks=pytest.mark.slow,
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
    ours = evaluate(forecaster.dataset, Split.TEST, forecaster.predict_windows, batch_size=64)
    every = changes.get("data.score_every", 1)
    assert theirs["windows"] == ours.windows == len(range(0, 140 - 32 + 1, every))
    for name, scores in ours.scores().items():
        assert theirs["scores"][name] == pytest.approx(scores, rel=1e-6)
    assert (tmp_path / "run" / "forecast.png").stat().st_size > 10_000


def long(folder: Path, **config: Any) -> Dataset:
    """Return an hourly series with 40,000 test windows."""
    hours = pd.date_range("2000-01-01", periods=41_000, freq="h")
    table = pd.DataFrame({"date": hours, "a": np.sin(np.arange(41_000) / 4)})
    table.to_parquet(folder / "long.parquet")
    return Dataset(
        DataConfig(
            source=str(folder / "long.parquet"),
            context_length=168,
            prediction_length=24,
            split=[900, 77, 40_023],
            **config,
        )
    )


def test_of_many_windows_some_are_scored_at_every_time_of_the_day(tmp_path: Path) -> None:
    dataset = long(tmp_path)
    assert dataset.windows(Split.TEST) == 40_000 and dataset.season_lengths == [24, 168]
    scored = dataset.scored(Split.TEST)
    assert len(scored) <= 20_000 and set(np.diff(scored)) == {5}  # 2, 3 and 4 divide a day
    assert set(scored % 168) == set(range(168))
    assert dataset.score_every(Split.VALIDATION) == 1
    assert {*pictured_windows(dataset, Split.TEST)} < {*scored.tolist()}


@pytest.mark.parametrize(("chosen", "count"), [("all", 40_000), (1, 40_000), (16, 2500)])
def test_a_distance_that_is_chosen_is_kept(tmp_path: Path, chosen: Any, count: int) -> None:
    assert len(long(tmp_path, score_every=chosen).scored(Split.TEST)) == count


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_replicas_score_the_same_windows_together(replicas: int) -> None:
    scored = np.arange(0, 100, 7)
    parts = [batches_of_replica(scored, 4, replicas, replica) for replica in range(replicas)]
    assert len({len(part) for part in parts}) == 1
    together = np.concatenate([np.concatenate(part) for part in parts])
    np.testing.assert_array_equal(np.sort(together), scored)


def test_windows_that_are_left_out_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also how far the scoring is, where it takes long."""
    monkeypatch.setattr(progress, "SCORING_SECONDS", 0.0)
    dataset = long(tmp_path, score_every=1000)
    with shown(), ScoringProgress("test") as scoring:
        result = evaluate(
            dataset,
            Split.TEST,
            lambda batches: ((b, torch.zeros(len(b.context), 24, 1, 1)) for b in batches),
            batch_size=16,
            progress=scoring,
        )
    summary = result.summary()
    assert (summary["windows"], summary["all_windows"]) == (40, 40_000)
    assert summary["score_every"] == 1000
    print_table(result)
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "scored" in line] == [
        "scored 16 of 40 test windows",
        "scored 32 of 40 test windows",
        "scored 40 of 40 test windows",
    ]
    assert "40 of 40,000 test windows, one in 1000 (data.score_every), errors in units" in said
