"""A decoder that scores all positions: each knows what came before it, and no more."""

from __future__ import annotations

import math

import pytest
import torch

from model.errors import UserError
from model.network import TimeSeriesTransformer
from model.network_config import SeriesShape
from model.running_scale import following, running_scale
from model.window_scale import instance_statistics
from tests.model.networks import SHAPE, inputs, network
from tests.settings import TINY
from trainer.config import load
from trainer.config.rules import check

RUNNING = {
    "architecture": "decoder",
    "loss_positions": "all",
    "output_patch_length": 16,
    "position": "rotary",
    "use_moe": False,
    "loss": "quantile",
    "quantiles": [0.1, 0.5, 0.9],
}


def holed(length: int = 40) -> torch.Tensor:
    """Return contexts [4, length, 3] with missing points, patches and beginnings."""
    context = torch.randn(4, length, 3).cumsum(1) * 3 + 50
    context[0, 3] = context[1, 8:16] = context[2, :19] = context[3, :, 1] = float("nan")
    return context


@pytest.mark.parametrize("length", [40, 37])
def test_a_scale_is_that_of_all_before(length: int) -> None:
    context = holed(length)
    scale, has_seen = running_scale(context, 8)
    assert scale.mean.shape == (4, 5, 1, 3)
    for patch in range(5):
        end = (patch + 1) * 8 - (40 - length)
        mean, deviation = instance_statistics(context[:, :end], is_relative=True)
        torch.testing.assert_close(scale.mean[:, patch], mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scale.deviation[:, patch], deviation, rtol=1e-4, atol=1e-5)
        seen = (~context[:, :end].isnan()).any(1, keepdim=True)
        assert torch.equal(has_seen[:, patch], seen)


def test_a_level_is_not_rounded_away() -> None:
    waves = (torch.arange(64) % 2 * 2.0 - 1.0).view(1, -1, 1)
    scale, _ = running_scale(1e6 + waves, 8)
    assert (scale.mean == 1e6).all() and torch.allclose(scale.deviation, torch.ones(()))
    constant, _ = running_scale(torch.full((1, 64, 1), 123456.789), 8)
    assert (constant.deviation == 1).all()


def test_the_points_after_each_patch() -> None:
    x = torch.arange(24 + 5).float().view(1, -1, 1)
    found = following(x, 3, 8, 6)
    assert found[0, :, :, 0].nan_to_num(-1).tolist() == [
        [8, 9, 10, 11, 12, 13],
        [16, 17, 18, 19, 20, 21],
        [24, 25, 26, 27, 28, -1],
    ]


@pytest.mark.parametrize("channels", ["independent", "grouped", "mixed"])
@pytest.mark.parametrize("arcsinh", [False, True])
def test_no_position_sees_what_comes_after_it(channels: str, arcsinh: bool) -> None:
    """Neither by attention nor by its scale, whatever is changed."""
    net = network(**RUNNING, channels=channels, arcsinh=arcsinh, num_layers=2).train()
    _, covariates = inputs()
    context = holed()
    before = net((context, covariates))
    assert before.shape == (4, 5, 16, 3, 3)
    for patch in range(5):
        for changed in (1e6, float("nan"), -3.0):
            other = context.clone()
            other[:, (patch + 1) * 8 :] = changed
            after = net((other, covariates))
            assert torch.equal(after[:, : patch + 1], before[:, : patch + 1])
    known = covariates.clone()
    known[:, 8 + 16 :] += 1.0  # what the first position forecasts ends there
    after = net((context, known))
    assert torch.equal(after[:, 0], before[:, 0]) and not torch.equal(after[:, 1], before[:, 1])


def test_in_evaluation_the_last_position_forecasts_the_future() -> None:
    net = network(**RUNNING)
    context, covariates = inputs()
    everywhere = net.train()((context, covariates))
    last = net.eval()((context, covariates))
    assert last.shape == (4, 12, 3, 3)
    torch.testing.assert_close(last, everywhere[:, -1, :12])
    short = net((context[:, -24:], covariates[:, -36:]))
    padded = context.clone()
    padded[:, :-24] = float("nan")
    torch.testing.assert_close(short, net((padded, covariates)), rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_a_loop_over_positions_and_points() -> None:
    net = network(**RUNNING).train()
    _, covariates = inputs()
    context, target = holed(), torch.randn(4, 12, 3) * 5 + 50
    target[1, 3:6] = float("nan")
    raw = net((context, covariates))
    found = net.loss(raw, (target, context))
    assert found.item() == pytest.approx(_loss_by_loops(net, raw, context, target), rel=1e-4)


def _loss_by_loops(
    net: TimeSeriesTransformer, raw: torch.Tensor, context: torch.Tensor, target: torch.Tensor
) -> float:
    quantiles, series = net.output.shaped(raw), torch.cat([context, target], 1)
    samples = []
    for sample in range(4):
        losses = []
        for position in range(5):
            for channel in range(3):
                past = series[sample, : (position + 1) * 8, channel]
                past = past[~past.isnan()].double()
                if not len(past):
                    continue
                deviation = float(past.std(correction=0)) or 1.0
                for point in range(16):
                    at = (position + 1) * 8 + point
                    value = series[sample, at, channel].item() if at < 52 else math.nan
                    if math.isnan(value):
                        continue
                    wanted = (value - float(past.mean())) / deviation
                    forecast = quantiles[sample, position, point, channel].tolist()
                    pinball = [
                        max(level * (wanted - q), (level - 1) * (wanted - q))
                        for level, q in zip((0.1, 0.5, 0.9), forecast, strict=True)
                    ]
                    losses.append(sum(pinball) / 3)
        samples.append(sum(losses) / len(losses))
    return sum(samples) / 4


def test_series_that_differ_in_scale_have_equal_losses() -> None:
    net = network(SeriesShape(40, 12, 3, 0), **RUNNING).train()
    context, known = holed(), torch.zeros(4, 52, 0)
    target = torch.randn(4, 12, 3) + 50
    plain = net.loss(net((context, known)), (target, context))
    for scale, level in ((1e-6, 0.0), (1e6, -3e6)):
        own = scale * context + level
        loss = net.loss(net((own, known)), (scale * target + level, own))
        assert loss.item() == pytest.approx(plain.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.output_patch_length": 8}, r"output_patch_length: 8 points .* use at least 32"),
        ({"model.loss_units": "data"}, r"loss_positions: all positions are scored in units"),
        ({"model.instance_norm": False}, r"loss_positions: all positions are scored in units"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], sentence: str) -> None:
    running = {"model.architecture": "decoder", "model.loss_positions": "all"}
    running["model.output_patch_length"] = 32
    check(load(TINY, running), 1)
    with pytest.raises(UserError, match=sentence):
        check(load(TINY, running | changes), 1)


def test_a_network_has_the_shape_of_its_head() -> None:
    assert network(SHAPE, **RUNNING).head.out_features == 16 * 3
