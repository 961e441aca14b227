"""Scores against their definitions, over series of unequal scales with holes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from utilsforecast import losses

from tests.trainer.data.sets import csv
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.forecast.evaluate import evaluate
from trainer.forecast.scores import MODEL, Evaluation
from trainer.forecast.table import print_table

LEVELS = (0.1, 0.5, 0.9)
HORIZON = 6
NAIVE = "seasonal naive (24)"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Return two series, of scales 3 and 3e5, with holes."""
    rng = np.random.default_rng(0)
    frames = []
    for item, scale in (("small", 3.0), ("large", 3e5)):
        values = 10 * scale + scale * rng.normal(size=200)
        values[[170, 190, 191]] = np.nan
        times = pd.date_range("2024-01-01", periods=200, freq="h")
        frames.append(pd.DataFrame({"item": item, "time": times, "load": values}))
    options = {"id_column": "item", "context_length": 24, "prediction_length": HORIZON}
    return Dataset(DataConfig(source=str(csv(tmp_path, pd.concat(frames))), **options))


def scored(
    dataset: Dataset,
    quantiles: torch.Tensor,
    batch_size: int = 8,
    levels: tuple[float, ...] = LEVELS,
) -> Evaluation:
    """Return the evaluation of a forecast [H, levels] that is the same for each window.

    Its point is the middle level.
    """
    middle = quantiles[:, len(levels) // 2].unsqueeze(1)
    numbers = torch.cat([middle, quantiles], 1).view(1, HORIZON, 1, -1)
    return evaluate(
        dataset,
        Split.TEST,
        lambda batches: ((b, numbers.expand(len(b.context), -1, -1, -1)) for b in batches),
        batch_size=batch_size,
        levels=levels,
    )


def in_source_units(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all targets [W, H] in the source's units, and each window's mean and deviation."""
    numbers = np.arange(dataset.windows(Split.TEST))
    mean, deviation = dataset.scales(dataset.items_of(Split.TEST, numbers))
    target = dataset.batch(Split.TEST, numbers).target[:, :, 0].astype(np.float64)
    return target * deviation + mean, mean, deviation


def pinball(target: np.ndarray, forecast: np.ndarray, level: float) -> np.ndarray:
    error = target - forecast
    return np.where(error >= 0, level * error, (level - 1) * error)


def test_all_scores_are_their_definitions(dataset: Dataset) -> None:
    """In fp64 and the source's units, item by item."""
    quantiles = torch.sort(torch.randn(HORIZON, 3), dim=1).values
    scores = scored(dataset, quantiles).scores()[MODEL]
    target, mean, deviation = in_source_units(dataset)
    forecast = quantiles.double().numpy()[None] * deviation[:, :, None] + mean[:, :, None]
    of_item = dataset.items_of(Split.TEST, np.arange(len(target)))
    losses = np.stack([pinball(target, forecast[..., q], LEVELS[q]) for q in range(3)], -1)
    error = np.abs(target - forecast[..., 1])
    expected: dict[str, list[float]] = {"mase": [], "sql": [], "msis": []}
    table = pd.read_csv(dataset.config.sources[0].path)
    for item, name in enumerate(("small", "large")):
        assert dataset.item_id(item) == name
        training = table[table["item"] == name]["load"].to_numpy()[:140]
        scale = np.nanmean(np.abs(training[24:] - training[:-24]))
        own = of_item == item
        expected["mase"].append(np.nanmean(error[own]) / scale)
        expected["sql"].append(np.nanmean(2 * losses[own].mean(-1)) / scale)
        low, high, truth = forecast[own, :, 0], forecast[own, :, 2], target[own]
        outside = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
        expected["msis"].append(np.nanmean(high - low + 2 / 0.2 * outside) / scale)
    for key, values in expected.items():
        assert scores[key] == pytest.approx(np.mean(values), rel=1e-6), key
    assert scores["mse"] == pytest.approx(np.nanmean((error / deviation) ** 2), rel=1e-6)
    assert scores["mae"] == pytest.approx(np.nanmean(error / deviation), rel=1e-6)
    crps = np.nanmean(2 * losses.mean(-1) / deviation)
    assert scores["crps"] == pytest.approx(crps, rel=1e-6)
    wql = np.nansum(2 * losses.mean(-1)) / np.nansum(np.abs(target))
    assert scores["wql"] == pytest.approx(wql, rel=1e-6)
    smape = np.nanmean(200 * error / (np.abs(target) + np.abs(forecast[..., 1])))
    assert scores["smape"] == pytest.approx(smape, rel=1e-6)


def test_scores_equal_those_of_utilsforecast(dataset: Dataset) -> None:
    quantiles = torch.sort(torch.randn(HORIZON, 3), dim=1).values
    scores = scored(dataset, quantiles).scores()[MODEL]
    target, mean, deviation = in_source_units(dataset)
    forecast = quantiles.double().numpy()[None] * deviation[:, :, None] + mean[:, :, None]
    of_item = dataset.items_of(Split.TEST, np.arange(len(target)))
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat([dataset.item_id(int(i)) for i in of_item], HORIZON),
            "y": target.ravel(),
            "model": forecast[..., 1].ravel(),
            **{str(level): forecast[..., q].ravel() for q, level in enumerate(LEVELS)},
        }
    ).dropna()
    table = pd.read_csv(dataset.config.sources[0].path).rename(
        columns={"item": "unique_id", "time": "ds", "load": "y"}
    )
    training = table[table.groupby("unique_id").cumcount() < 140]
    mase = losses.mase(frame, ["model"], seasonality=24, train_df=training)["model"].mean()
    assert scores["mase"] == pytest.approx(mase, rel=1e-6)
    points = frame.groupby("unique_id").size()
    smape = losses.smape(frame, ["model"]).set_index("unique_id")["model"]
    assert scores["smape"] == pytest.approx(200 * np.average(smape, weights=points), rel=1e-6)


def test_errors_of_the_other_forecasts_are_those_of_points(dataset: Dataset) -> None:
    scores = scored(dataset, torch.randn(HORIZON, 3).sort(1).values).scores()
    for name in (NAIVE, "last value", "drift"):
        assert scores[name]["crps"] == scores[name]["mae"]
        assert scores[name]["sql"] == pytest.approx(scores[name]["mase"], rel=1e-12)
        assert "msis" not in scores[name]


def test_drift_goes_on_from_the_first_value_to_the_last(dataset: Dataset) -> None:
    result = scored(dataset, torch.zeros(HORIZON, 3))
    numbers = np.arange(dataset.windows(Split.TEST))
    batch = dataset.batch(Split.TEST, numbers)
    errors = []
    for context, target in zip(batch.context[:, :, 0], batch.target[:, :, 0], strict=True):
        known = np.flatnonzero(~np.isnan(context))
        slope = (context[known[-1]] - context[known[0]]) / (len(context) - 1 - known[0])
        made = context[known[-1]] + slope * np.arange(1, HORIZON + 1)
        errors.append(np.abs(made - target))
    assert result.scores()["drift"]["mae"] == pytest.approx(np.nanmean(errors), rel=1e-5)


def test_steps_of_the_horizon_have_their_own_scores(dataset: Dataset) -> None:
    quantiles = torch.tensor([[-1.0, 0.0, 1.5]]).expand(HORIZON, 3)
    result = scored(dataset, quantiles)
    target = dataset.batch(Split.TEST, np.arange(dataset.windows(Split.TEST))).target[:, :, 0]
    by_step = result.summary()["by_step"][MODEL]
    np.testing.assert_allclose(by_step["mae"], np.nanmean(np.abs(target), 0), rtol=1e-6)
    np.testing.assert_allclose(by_step["mse"], np.nanmean(target**2, 0), rtol=1e-6)
    inside = (target > -1) & (target <= 1.5)
    np.testing.assert_allclose(by_step["covered"], inside.sum(0) / (~np.isnan(target)).sum(0))


def test_the_share_below_a_quantile_is_counted(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    quantiles = torch.tensor([[-1.0, 0.0, 1.5]]).expand(HORIZON, 3)
    result = scored(dataset, quantiles)
    numbers = np.arange(dataset.windows(Split.TEST))
    target = dataset.batch(Split.TEST, numbers).target
    known = target[~np.isnan(target)]
    summary = result.summary()
    for level, quantile in zip(LEVELS, (-1.0, 0.0, 1.5), strict=True):
        assert summary["below"][str(level)] == pytest.approx((known <= quantile).mean())
    covered = ((known > -1.0) & (known <= 1.5)).mean()
    assert summary["interval"] == {
        "nominal": pytest.approx(0.8),
        "covered": pytest.approx(covered),
    }
    print_table(result)
    said = capsys.readouterr().out
    assert f"should hold 80% of the points holds {covered:.1%}" in said and "WQL" in said


@pytest.mark.parametrize("levels", [(), (0.5,), (0.1, 0.5)])
def test_what_the_quantiles_do_not_give_is_left_out(
    dataset: Dataset, levels: tuple[float, ...]
) -> None:
    quantiles = torch.zeros(HORIZON, max(1, len(levels)))
    if levels:
        result = scored(dataset, quantiles, levels=levels)
    else:
        result = evaluate(
            dataset,
            Split.TEST,
            lambda batches: ((b, torch.zeros(len(b.context), HORIZON, 1, 1)) for b in batches),
            batch_size=8,
        )
    ours, summary = result.scores()[MODEL], result.summary()
    assert ("wql" in ours) == ("below" in summary) == bool(levels)
    assert ("interval" in summary) == (len(levels) > 1) and "msis" not in ours


def test_a_score_that_is_undefined_is_none(tmp_path: Path) -> None:
    """A series whose season repeats exactly has no MASE."""
    times = pd.date_range("2024-01-01", periods=400, freq="h")
    frame = pd.DataFrame({"time": times, "load": np.sin(np.arange(400) % 24)})
    options: dict[str, Any] = {"context_length": 48, "prediction_length": HORIZON}
    data = Dataset(DataConfig(source=str(csv(tmp_path, frame)), **options))
    result = scored(data, torch.zeros(HORIZON, 3))
    summary = result.summary()
    assert summary["mase_undefined"] == 1 and summary["scores"][MODEL]["mase"] is None
    assert summary["scores"][MODEL]["mae"] > 0
