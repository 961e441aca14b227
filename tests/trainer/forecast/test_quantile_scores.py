"""WQL and coverage against their definitions, over series of unequal scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.trainer.data.sets import csv
from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.forecast.evaluate import MODEL, Evaluation, evaluate
from trainer.forecast.report import print_table

LEVELS = (0.1, 0.5, 0.9)
HORIZON = 6


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


def scored(dataset: Dataset, quantiles: torch.Tensor, batch_size: int = 8) -> Evaluation:
    """Return the evaluation of a forecast [H, 3] that is the same for each window."""
    numbers = torch.cat([quantiles[:, 1:2], quantiles], 1).view(1, HORIZON, 1, 4)
    return evaluate(
        dataset,
        Split.TEST,
        lambda batches: ((b, numbers.expand(len(b.context), -1, -1, -1)) for b in batches),
        batch_size=batch_size,
        levels=LEVELS,
    )


def in_source_units(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all targets [W, H] in the source's units, and each window's mean and deviation."""
    numbers = np.arange(dataset.windows(Split.TEST))
    mean, deviation = dataset.scales(dataset.items_of(Split.TEST, numbers))
    target = dataset.batch(Split.TEST, numbers).target[:, :, 0].astype(np.float64)
    return target * deviation + mean, mean, deviation


def test_the_weighted_quantile_loss_is_its_definition(dataset: Dataset) -> None:
    quantiles = torch.sort(torch.randn(HORIZON, 3), dim=1).values
    result = scored(dataset, quantiles)
    target, mean, deviation = in_source_units(dataset)
    forecast = quantiles.double().numpy()[None] * deviation[:, :, None] + mean[:, :, None]
    losses = []
    for row, level in enumerate(LEVELS):
        error = target - forecast[:, :, row]
        loss = np.where(error >= 0, level * error, (level - 1) * error)
        losses.append(2 * np.nansum(loss) / np.nansum(np.abs(target)))
    assert result.scores()[MODEL]["wql"] == pytest.approx(np.mean(losses), rel=1e-6)
    last = dataset.batch(Split.TEST, np.arange(len(target))).context[:, -1]
    error = np.abs(target - (last * deviation + mean))
    whole = ~np.isnan(last[:, 0])  # elsewhere the value before is repeated
    assert whole.mean() > 0.9
    naive = result.scores()["last value"]["wql"]
    assert naive == pytest.approx(
        np.nansum(error[whole]) / np.nansum(np.abs(target[whole])), rel=0.1
    )


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


def test_without_quantiles_there_are_no_such_scores(dataset: Dataset) -> None:
    result = evaluate(
        dataset,
        Split.TEST,
        lambda batches: ((b, torch.zeros(len(b.context), HORIZON, 1, 1)) for b in batches),
        batch_size=8,
    )
    assert "wql" not in result.scores()[MODEL]
    assert not {"below", "interval"} & set(result.summary())
