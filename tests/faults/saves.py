"""A small run that saves often, and what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import verify
from trainer.run.folder import RunFolder

SETTINGS: dict[str, Any] = {
    "data.rows": 800,
    "data.split": [0.9, 0.1, 0.0],
    "logging.tensorboard": False,
    "train.steps": 8,
    "checkpoint.every": 2,
    "parallel.pipeline": 2,
}


def committed(run: Path) -> list[int]:
    """Return the steps of the checkpoints, each of which is whole."""
    store = RunFolder(run).store
    assert all(verify(checkpoint.path) is None for checkpoint in store.committed())
    return [checkpoint.step for checkpoint in store.committed()]
