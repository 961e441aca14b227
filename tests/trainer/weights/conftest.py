"""A run whose weights are taken elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ranks
from tests.settings import train_rank
from trainer.forecast.forecaster import Forecaster

SETTINGS: dict[str, Any] = {
    "train.steps": 3,
    "checkpoint.every": 2,
    "data.rows": 800,
    "logging.tensorboard": False,
    "model.router_score": "sigmoid",
    "model.balance_rate": 0.05,
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages of two tensor ranks; its routers have buffers."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    ranks.run(train_rank, 4, folder, {**SETTINGS, "parallel.pipeline": 2, "parallel.tensor": 2})
    return folder


def weights(forecaster: Forecaster) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers by name."""
    network = forecaster.network
    return dict(network.named_parameters()) | dict(network.named_buffers())
