"""A run with checkpoints, which tests read or copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from tests.settings import train_rank

SETTINGS: dict[str, Any] = {
    "train.steps": 4,
    "checkpoint.every": 1,
    "checkpoint.keep": 2,
    "data.rows": 800,
    "data.split": [0.9, 0.1, 0.0],
    "parallel.pipeline": 2,
}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, with checkpoints of steps 3 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    ranks.run(train_rank, 2, folder, SETTINGS)
    return folder
