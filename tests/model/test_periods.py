"""Periods of contexts, and the values one period before."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.periods import LEAST_ERROR, find_periods, has_before, one_period_ago, seasonal_error


def wave(length: int, period: float, *, noise: float = 0.3, seed: int = 0) -> Tensor:
    """Return a wave with a second harmonic, and noise."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.arange(length) / period
    shape = angle.sin() + 0.4 * (2 * angle + 1).cos()
    return shape + noise * torch.randn(length, generator=generator)


@pytest.mark.parametrize(
    ("length", "period"), [(16, 4), (60, 12), (64, 7), (512, 24), (512, 52), (700, 168), (96, 40)]
)
@pytest.mark.parametrize("trend", [0.0, 5.0])
def test_the_period_of_a_wave_is_found(length: int, period: int, trend: float) -> None:
    rows = torch.stack([wave(length, period, seed=seed, noise=0.1) for seed in range(8)])
    rows += trend * torch.arange(length) / length
    off = (find_periods(rows, 1) - period).abs()
    assert (off <= (0 if period < 30 else 1)).all()  # noise moves the top of a long, flat peak


def test_a_repeat_of_the_period_is_not_taken_for_it() -> None:
    exact = torch.arange(480) % 24 * 1.0
    assert find_periods(exact.unsqueeze(0), 1).tolist() == [[24]]


def test_missing_points_and_the_space_before_a_series_change_nothing() -> None:
    row = wave(300, 12, noise=0.1)
    holes = row.clone()
    holes[torch.randperm(300, generator=torch.Generator().manual_seed(0))[:60]] = float("nan")
    padded = torch.cat([torch.full((200,), float("nan")), row])
    assert find_periods(holes.unsqueeze(0), 1).tolist() == [[12]]
    assert torch.equal(find_periods(padded.unsqueeze(0), 2), find_periods(row.unsqueeze(0), 2))


def test_a_week_is_found_beside_a_day() -> None:
    time = torch.arange(1000)
    rows = wave(1000, 24, noise=0.1) - 1.5 * (time // 24 % 7 > 4)
    assert set(find_periods(rows.unsqueeze(0), 2)[0].tolist()) == {24, 168}


@pytest.mark.parametrize("length", [1, 2, 3, 5, 300])
def test_where_nothing_repeats_the_period_is_one_point(length: int) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, length, generator=generator)
    walk = torch.randn(4, length, generator=generator).cumsum(1) if length < 10 else noise
    for rows in (noise, walk, torch.ones(4, length), torch.full((4, length), float("nan"))):
        assert (find_periods(rows, 2) == 1).all()


def test_a_row_does_not_depend_on_its_batch_or_scale() -> None:
    rows = torch.stack([wave(256, p, seed=p) for p in (5, 8, 12, 24, 30, 48, 60, 90)])
    together = find_periods(rows, 2)
    for index, row in enumerate(rows):
        assert torch.equal(find_periods(row.unsqueeze(0), 2)[0], together[index])
        scaled = (1e3 * row - 1e5).double()
        assert torch.equal(find_periods(scaled.unsqueeze(0), 2)[0], together[index])


def test_the_values_one_period_before_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(3, 20, generator=generator)
    context[0, [0, 1, 7, 19]] = float("nan")
    context[1] = float("nan")
    periods = torch.tensor([[4, 1], [5, 1], [20, 7]])
    found = one_period_ago(context, periods, 9)
    for row in range(3):
        known: list[float] = []
        for value in context[row].tolist():
            before = known[-1] if known else 0.0
            known.append(before if math.isnan(value) else value)
        for k, period in enumerate(periods[row].tolist()):
            series = list(known)
            for time in range(29):
                expected = series[time - period] if time >= period else 0.0
                assert found[row, time, k].item() == pytest.approx(expected)
                if time >= 20:
                    series.append(expected)


def test_the_seasonal_error_is_the_mean_of_a_loop() -> None:
    context = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    context[0, [0, 1, 7, 19]] = float("nan")
    context[1] = float("nan")
    context[2] = torch.arange(20) % 4
    periods = torch.tensor([3, 2, 4, 25])
    before = one_period_ago(context, periods.unsqueeze(1), 2)[:, :20, 0]
    known = has_before(context, periods)
    found = seasonal_error(context - before, known).squeeze(1).tolist()
    errors = [
        abs(context[0, time].item() - before[0, time].item())
        for time in range(5, 20)
        if not context[0, time].isnan()
    ]
    assert found[0] == pytest.approx(sum(errors) / len(errors))
    assert found[1:] == [1.0, pytest.approx(LEAST_ERROR), 1.0]
