"""How windows are scaled by their contexts."""

from __future__ import annotations

import pytest
import torch

from model.window_scale import WindowScale, instance_statistics


def test_instance_statistics_leave_missing_points_out() -> None:
    context = torch.tensor([1.0, float("nan"), 3.0, 5.0]).view(1, 4, 1)
    mean, deviation = instance_statistics(context)
    assert float(mean) == pytest.approx(3.0)
    assert float(deviation) == pytest.approx((8 / 3) ** 0.5, rel=1e-5)
    mean, deviation = instance_statistics(torch.full((1, 4, 1), float("nan")))
    assert (float(mean), float(deviation)) == (0.0, 1.0)


def test_a_large_level_is_not_rounded_away() -> None:
    for level in (123456.789, 1e8):
        context = torch.full((1, 336, 1), level)
        mean, deviation = instance_statistics(context)
        assert mean.item() == context[0, 0, 0].item()
        assert deviation.item() == pytest.approx(1e-3)
    waves = torch.arange(512) % 2 * 2.0 - 1.0
    mean, deviation = instance_statistics((1e6 + waves).view(1, -1, 1))
    assert mean.item() == 1e6 and deviation.item() == pytest.approx(1.0)


def test_a_relative_deviation_follows_the_window_and_a_constant_one_has_1() -> None:
    context = torch.randn(3, 50, 2, dtype=torch.float64)
    mean, deviation = instance_statistics(context, is_relative=True)
    for scale, level in ((1e-6, 0.0), (1e6, 3e7), (-1.0, 1e3)):
        other = instance_statistics(scale * context + level, is_relative=True)
        torch.testing.assert_close(other[0], scale * mean + level)
        torch.testing.assert_close(other[1], abs(scale) * deviation)
    for level in (0.0, 1e-3, 123456.789):
        constant = torch.full((1, 336, 1), level)
        mean, deviation = instance_statistics(constant, is_relative=True)
        assert (mean.item(), deviation.item()) == (constant[0, 0, 0].item(), 1.0)


@pytest.mark.parametrize("is_squashed", [False, True])
def test_what_has_entered_is_what_leaves(is_squashed: bool) -> None:
    context = torch.randn(3, 50, 2) * 5 + 30
    scale = WindowScale(*instance_statistics(context, is_relative=True), is_squashed)
    units = scale.entered(context)
    torch.testing.assert_close(scale.left(units.unsqueeze(-1)).squeeze(-1), context)
    plain = (context - context.mean(1, keepdim=True)) / context.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(units, plain.asinh() if is_squashed else plain)
