"""The learning rate's schedule."""

from __future__ import annotations

import math

import pytest

from trainer.config.settings import TrainConfig
from trainer.engine.schedule import learning_rate


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


def test_a_line_goes_down_to_the_floor() -> None:
    train = TrainConfig(steps=100, warmup_steps=0, learning_rate=1.0, schedule="linear")
    rates = [learning_rate(train, step) for step in range(1, 101)]
    assert rates == pytest.approx([1 - step / 101 for step in range(1, 101)])


def test_wsd_is_constant_and_then_comes_down_by_a_root() -> None:
    train = TrainConfig(
        steps=100,
        warmup_steps=10,
        learning_rate=2.0,
        schedule="wsd",
        decay_share=0.2,
        final_learning_rate=0.1,
    )
    rates = [learning_rate(train, step) for step in range(1, 101)]
    assert rates[9:80] == pytest.approx([2.0] * 71)
    for step in range(81, 101):
        share = 1 - math.sqrt((step - 80) / 21)
        assert rates[step - 1] == pytest.approx(2.0 * (0.1 + 0.9 * share))
    longer = train.model_copy(update={"steps": 200})
    assert [learning_rate(longer, step) for step in range(1, 81)] == rates[:80]
