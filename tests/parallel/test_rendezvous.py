"""Ranks that are missing or differ are named before anything is computed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests import ranks
from tests.settings import train_rank


def _train(rank: int, world: int, run: Path, own: dict[str, Any], seconds: float = 3.0) -> str:
    """Train with other settings on the last rank; what it says, and when."""
    from model.errors import ReportedElsewhereError, UserError

    settings = {
        "train.steps": 1,
        "train.global_batch_size": 24,
        **(own if rank == world - 1 else {}),
    }
    began = time.monotonic()
    try:
        with patch.dict("os.environ", FORESCALE_START_SECONDS=str(seconds)):
            train_rank(rank, world, run, settings)
    except ReportedElsewhereError:
        return "said elsewhere"
    except UserError as error:
        return f"{time.monotonic() - began:.0f} {error}"
    return "trained"


def test_a_rank_with_another_configuration_is_named(tmp_path: Path) -> None:
    said = ranks.run(_train, 3, tmp_path / "run", {"train.learning_rate": 5e-4})
    assert (
        "rank 2 differs from rank 0: train.learning_rate is 0.0005 for rank 2 and 0.001 for rank 0"
    ) in said[0]
    assert said[1:] == ["said elsewhere"] * 2


def _train_with_versions(rank: int, world: int, run: Path) -> str:
    with patch("trainer.job.versions", lambda: {"torch": "2.13.0" if rank else "2.12.0"}):
        return _train(rank, world, run, {})


def test_a_rank_with_other_versions_is_named(tmp_path: Path) -> None:
    said = ranks.run(_train_with_versions, 2, tmp_path / "run")
    assert "torch is 2.13.0 for rank 1 and 2.12.0 for rank 0" in said[0]


def _train_but_one(rank: int, world: int, run: Path, absent: int) -> str:
    return "absent" if rank == absent else _train(rank, world, run, {})


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_rank_that_does_not_come_is_named(tmp_path: Path, absent: int) -> None:
    said = ranks.run(_train_but_one, 3, tmp_path / "run", absent, timeout=30)
    if absent == 0:
        assert all("cannot reach the meeting point 127.0.0.1" in s for s in said[1:])
        return
    assert f"rank {absent} of 3 did not come within 3 s" in said[0]
    assert "ranks 0, " in said[0]


def _train_with_another_group(rank: int, world: int, run: Path) -> str:
    from trainer.engine import optimizer

    make = optimizer.parameter_groups

    def fewer(*arguments: Any) -> list[dict[str, Any]]:
        groups = make(*arguments)
        groups[0]["params"] += groups.pop()["params"]
        return groups

    with patch("trainer.engine.optimizer.parameter_groups", fewer if rank else make):
        try:
            train_rank(rank, world, run, {"train.steps": 1})
        except RuntimeError as error:
            return str(error)
    return "trained"


def test_ranks_with_other_parameter_groups_do_not_hang(tmp_path: Path) -> None:
    said = ranks.run(_train_with_another_group, 2, tmp_path / "run", timeout=30)
    assert (
        said[0]
        == said[1]
        == (
            "rank 1 differs from rank 0: parameter groups is ['decay'] for rank 1 and "
            "['decay', 'no_decay'] for rank 0"
        )
    )
