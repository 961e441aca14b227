"""Outputs against their definitions."""

from __future__ import annotations

import pytest
import torch

from model.network_config import ModelConfig
from model.outputs import PointOutput, QuantileOutput, StudentTOutput, make_output
from model.window_scale import WindowScale


def window_scale() -> WindowScale:
    """Return a mean and a deviation, [2, 1, 3] each."""
    return WindowScale(torch.randn(2, 1, 3), torch.rand(2, 1, 3) + 0.5)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_point_losses(loss: str) -> None:
    output = PointOutput(loss, delta=0.7)
    raw, target = torch.randn(2, 5, 3, 1), torch.randn(2, 5, 3)
    scale = window_scale()
    scaled = output.scaled(output.shaped(raw), scale)
    forecast = raw[..., 0] * scale.deviation + scale.mean
    torch.testing.assert_close(output.point(scaled), forecast)
    error = (forecast - target).abs()
    expected = {
        "mse": error**2,
        "mae": error,
        "huber": torch.where(error < 0.7, 0.5 * error**2, 0.7 * (error - 0.35)),
    }[loss]
    torch.testing.assert_close(output.loss(scaled, target), expected)


def test_quantiles_never_cross_and_have_the_pinball_loss() -> None:
    levels = [0.1, 0.4, 0.5, 0.9]
    output = QuantileOutput(levels)
    raw, target = torch.randn(2, 5, 3, 4) * 3, torch.randn(2, 5, 3)
    scaled = output.scaled(output.shaped(raw), window_scale())
    assert (scaled.diff(dim=-1) > 0).all()
    torch.testing.assert_close(output.point(scaled), scaled[..., 2])
    expected = torch.zeros_like(target)
    for i, level in enumerate(levels):
        error = target - scaled[..., i]
        expected += torch.where(error > 0, level * error, (level - 1) * error) / len(levels)
    torch.testing.assert_close(output.loss(scaled, target), expected)


def test_the_pinball_loss_is_least_at_the_quantile() -> None:
    sample = torch.randn(20_000)
    output = QuantileOutput([0.2])
    grid = torch.linspace(-2, 2, 401)
    losses = torch.stack([output.loss(g.expand(len(sample), 1), sample).mean() for g in grid])
    assert grid[losses.argmin()].item() == pytest.approx(sample.quantile(0.2).item(), abs=0.02)


def test_student_t_is_that_of_torch() -> None:
    output = StudentTOutput()
    raw, target = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3)
    scale = window_scale()
    scaled = output.scaled(output.shaped(raw), scale)
    location, width, freedom = scaled.unbind(-1)
    assert (freedom > 2).all() and (width > 0).all()
    reference = torch.distributions.StudentT(freedom, location, width).log_prob(target)
    torch.testing.assert_close(output.loss(scaled, target), -reference)
    torch.testing.assert_close(output.point(scaled), raw[..., 0] * scale.deviation + scale.mean)


def test_the_loss_decides_the_output() -> None:
    assert make_output(ModelConfig(loss="quantile", quantiles=[0.5])).size == 1
    assert make_output(ModelConfig(loss="student_t")).size == 3
    with pytest.raises(ValueError, match="must ascend"):
        ModelConfig(quantiles=[0.5, 0.1])
    with pytest.raises(ValueError, match=r"lack 0\.5"):
        ModelConfig(quantiles=[0.1, 0.9])


def test_sorted_quantiles_are_the_head_s_numbers_in_order() -> None:
    output = QuantileOutput([0.1, 0.5, 0.9], are_sorted=True)
    raw = torch.randn(2, 5, 3, 3, requires_grad=True)
    shaped = output.shaped(raw)
    start = 0.25 * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(output.levels))
    torch.testing.assert_close(shaped, (raw + start).sort(-1).values)
    output.loss(shaped, torch.randn(2, 5, 3)).sum().backward()
    assert raw.grad is not None and (raw.grad != 0).all()
