"""The schedule and the members of DeepSpeed that are relied on."""

from __future__ import annotations

import ast
import importlib
import inspect
import math

import pytest

from trainer.config.settings import TrainConfig
from trainer.engine.optimizer import learning_rate
from trainer.engine.zero_state import PRIVATE_MEMBERS


def test_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    train = TrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1)
    rates = [learning_rate(train, step) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    for step in (11, 60, 110):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 10) / 101))
        assert rates[step - 1] == pytest.approx(2.0 * (0.1 + 0.9 * cosine))


def test_the_last_step_still_moves_the_weights() -> None:
    train = TrainConfig(steps=5, warmup_steps=0, learning_rate=1.0)
    assert learning_rate(train, 5) > 0.05


def test_without_warm_up_it_starts_at_the_peak() -> None:
    train = TrainConfig(steps=1000, warmup_steps=0, learning_rate=1.0)
    assert learning_rate(train, 1) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("module", sorted(PRIVATE_MEMBERS))
def test_deepspeed_still_has_the_members_that_are_touched(module: str) -> None:
    source = inspect.getsource(importlib.import_module(module))
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Constant):
            names.add(node.value)  # a lazy attribute is made by its name
    moved = [name for name in PRIVATE_MEMBERS[module] if name not in names]
    assert not moved, f"{module} has moved {', '.join(moved)}"
