"""The start of a run, whose ranks may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from model.errors import ReportedElsewhereError, UserError
from tests.settings import train_rank


def start(rank: int, world: int, run: Path, own: dict[str, Any], seconds: float = 30.0) -> str:
    """Train a step, with other settings on the last rank; return how that ends.

    Ranks wait `seconds` for each other.
    """
    settings = {
        "train.steps": 1,
        "train.global_batch_size": 24,
        **(own if rank == world - 1 else {}),
    }
    try:
        with patch.dict("os.environ", FORESCALE_START_SECONDS=str(seconds)):
            train_rank(rank, world, run, settings)
    except ReportedElsewhereError:
        return "said elsewhere"
    except UserError as error:
        return str(error)
    return "trained"
