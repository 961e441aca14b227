"""Under ZeRO 3 no rank ever holds more than one module's parameters whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

from model import init
from tests import ranks
from tests.settings import train_rank


def _held_while_drawn(
    rank: int, world: int, run: Path, changes: dict[str, Any]
) -> tuple[int, int, int]:
    """Train a step; return elements of parameters: held at most, of the largest module, of all."""
    drawn: list[Tensor] = []
    held: list[int] = []
    modules: Counter[str] = Counter()
    fill = init.fill

    def watched(tensor: Tensor, name: str, *arguments: Any) -> None:
        fill(tensor, name, *arguments)
        drawn.append(tensor)
        modules[name.rpartition(".")[0]] += tensor.numel()
        held.append(sum(one.numel() for one in drawn))

    with patch("model.init.fill", watched):
        train_rank(rank, world, run, {"train.steps": 1, "data.rows": 800, **changes})
    return max(held), max(modules.values()), sum(modules.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_more_than_a_module_is_whole(tmp_path: Path, precision: str) -> None:
    changes = {"parallel.zero_stage": 3, "train.precision": precision}
    for held, largest, total in ranks.run(_held_while_drawn, 2, tmp_path / "run", changes):
        assert held == largest < total / 4


def test_the_other_stages_hold_all(tmp_path: Path) -> None:
    """What is counted is what is held."""
    [(held, _, total)] = ranks.run(_held_while_drawn, 1, tmp_path / "run", {})
    assert held == total
