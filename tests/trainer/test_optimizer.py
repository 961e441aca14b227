"""The schedule and the members of DeepSpeed that are relied on."""

from __future__ import annotations

import importlib
import inspect
import math

import pytest

from trainer.config.settings import TrainConfig
from trainer.optimizer import learning_rate
from trainer.optimizer_state import PRIVATE_MEMBERS


def test_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    train = TrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1)
    rates = [learning_rate(train, step) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[59] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rates[-1] == pytest.approx(0.2)
    assert rates[34] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))


def test_without_warm_up_it_starts_at_the_peak() -> None:
    train = TrainConfig(steps=1000, warmup_steps=0, learning_rate=1.0)
    assert learning_rate(train, 1) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("module", sorted(PRIVATE_MEMBERS))
def test_deepspeed_still_has_the_members_that_are_touched(module: str) -> None:
    source = inspect.getsource(importlib.import_module(module))
    moved = [name for name in PRIVATE_MEMBERS[module] if name not in source]
    assert not moved, f"{module} has moved {', '.join(moved)}"
