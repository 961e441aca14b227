"""Ranks that differ are named before anything is computed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests import ranks
from tests.parallel.starting import start
from tests.settings import train_rank
from trainer.engine import optimizer


def test_a_rank_with_another_configuration_is_named(tmp_path: Path) -> None:
    said = ranks.run(start, 3, tmp_path / "run", {"train.learning_rate": 5e-4})
    assert (
        "rank 2 differs from rank 0: train.learning_rate is 0.0005 for rank 2 and 0.001 for rank 0"
    ) in said[0]
    assert said[1:] == ["said elsewhere"] * 2


def _start_late(rank: int, world: int, run: Path) -> str:
    """Start rank 1 when rank 2 has been seen to differ."""
    if rank == 1:
        time.sleep(6)
    return start(rank, world, run, {"train.learning_rate": 5e-4})


def test_a_rank_that_comes_after_another_has_differed_is_told(tmp_path: Path) -> None:
    said = ranks.run(_start_late, 3, tmp_path / "run")
    assert "rank 2 differs from rank 0" in said[0]
    assert said[1:] == ["said elsewhere"] * 2


def _start_with_versions(rank: int, world: int, run: Path) -> str:
    """Start where each rank has another torch."""
    versions = {"torch": "2.13.0" if rank else "2.12.0"}
    with patch("importlib.metadata.version", lambda name: versions.get(name, "1.0")):
        return start(rank, world, run, {})


def test_a_rank_with_other_versions_is_named(tmp_path: Path) -> None:
    said = ranks.run(_start_with_versions, 2, tmp_path / "run")
    assert "torch is 2.13.0 for rank 1 and 2.12.0 for rank 0" in said[0]


def _start_with_another_group(rank: int, world: int, run: Path) -> str:
    """Start where rank 1 breaks the rule that all ranks have the same parameter groups."""
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
    said = ranks.run(_start_with_another_group, 2, tmp_path / "run", timeout=30)
    assert (
        said[0]
        == said[1]
        == (
            "rank 1 differs from rank 0: parameter groups is ['decay'] for rank 1 and "
            "['decay', 'no_decay'] for rank 0"
        )
    )
