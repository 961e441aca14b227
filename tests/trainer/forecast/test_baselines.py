"""Forecasts that need no training score what others have computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.config.data_settings import DataConfig
from trainer.data import Dataset, Split
from trainer.data.windows import WindowBatch
from trainer.forecast.evaluate import evaluate


def zeros(batches: Iterable[WindowBatch], *shape: int) -> Iterator[tuple[WindowBatch, Tensor]]:
    """Yield batches with forecasts of nothing but 0, [horizon, channels]."""
    for batch in batches:
        yield batch, torch.zeros(len(batch.context), *shape, 1)


@pytest.mark.parametrize(
    ("horizon", "mse", "mae"),
    [
        (96, 1.294, 0.713),
        (192, 1.325, 0.733),
        (336, 1.330, 0.746),
        (720, 1.335, 0.755),
    ],
)
def test_repeating_the_last_value_scores_on_etth1_what_the_literature_says(
    real_data: Path, horizon: int, mse: float, mae: float
) -> None:
    data = Dataset(
        DataConfig(
            source=str(real_data / "ETTh1.csv.gz"),
            context_length=96,
            prediction_length=horizon,
            split=[8640, 2880, 2880],
            season_lengths=[24],
        )
    )
    assert data.windows(Split.TEST) == 2880 - horizon + 1
    scores = evaluate(
        data, Split.TEST, lambda batches: zeros(batches, horizon, 7), batch_size=256
    ).scores()
    assert scores["last value"]["mse"] == pytest.approx(mse, abs=5e-4)
    assert scores["last value"]["mae"] == pytest.approx(mae, abs=5e-4)


def test_vic_elec_baselines_are_those_that_were_computed_elsewhere() -> None:
    data = Dataset(DataConfig(source="vic_elec", targets=["Demand", "Temperature"]))
    assert data.season_lengths == [48, 336] and data.windows(Split.TEST) == 10_474
    scores = evaluate(
        data,
        Split.TEST,
        lambda batches: zeros(batches, 48, 2),
        batch_size=256,
    ).scores()
    assert scores["seasonal naive (48)"]["mse"] == pytest.approx(0.3515, abs=5e-5)
    assert scores["seasonal naive (336)"]["mse"] == pytest.approx(0.3531, abs=5e-5)
    assert scores["seasonal naive (48)"]["mae"] == pytest.approx(0.4074, abs=5e-5)
