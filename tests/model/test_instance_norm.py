"""Statistics of a window's context."""

from __future__ import annotations

import pytest
import torch

from model.instance_norm import instance_statistics


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
