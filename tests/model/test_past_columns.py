"""Columns that are known up to the present: they are read and not forecast."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.network import TimeSeriesTransformer
from tests.model.networks import SHAPE, inputs, network

PAST = replace(SHAPE, channels=2, past=2)

KINDS: list[dict[str, object]] = [
    {"architecture": architecture, "channels": channels, **more}
    for channels in ("grouped", "mixed")
    for architecture, more in (
        ("encoder", {"head": "flatten"}),
        ("encoder", {"head": "token", "periods": 1, "channel_embedding": channels == "grouped"}),
        ("encoder_decoder", {"position": "rotary"}),
        ("decoder", {"position": "rotary"}),
        ("decoder", {"loss_positions": "all", "output_patch_length": 16}),
    )
]


def made(kind: dict[str, object]) -> TimeSeriesTransformer:
    return network(PAST, num_layers=3, use_moe=False, **kind)


def windows() -> tuple[Tensor, Tensor, Tensor]:
    """Return contexts with the past columns [B, L, V], covariates, and a future [B, H, C]."""
    context, covariates = inputs(replace(PAST, channels=4))
    return context, covariates, torch.randn(4, 12, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_read_and_not_forecast(kind: dict[str, object]) -> None:
    net, (context, covariates, future) = made(kind), windows()
    output = net(net.inputs(context, covariates, future))
    forecast = net.forecast(output, context)
    assert forecast.shape == (4, 12, 2)
    other = context.clone()
    other[..., 3] = torch.randn(4, 40)
    again = net(net.inputs(other, covariates, future))
    assert not torch.allclose(output, again)
    missing = context.clone()
    missing[:, ::3, 2:] = math.nan
    assert net(net.inputs(missing, covariates, future)).isfinite().all()
    moved = context.clone()
    moved[..., 2:] = 7 * context[..., 2:] - 3  # each is scaled by its own context
    same = net.forecast(net(net.inputs(moved, covariates, future)), moved)
    torch.testing.assert_close(same, forecast, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_targets(kind: dict[str, object]) -> None:
    net, (context, covariates, future) = made(kind).train(), windows()
    output = net(net.inputs(context, covariates, future))
    loss = net.loss(output, (future, context))
    torch.testing.assert_close(loss, net.loss(output, (future, context[..., :2])))
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    if kind["channels"] == "grouped":
        role = gradients["role_embedding.weight"]
        assert role is not None and role.abs().max() > 0


def test_independent_channels_do_not_read_them() -> None:
    context, covariates, future = windows()
    reading, plain = network(PAST), network(replace(PAST, past=0))
    given = reading.inputs(context, covariates, future)
    assert torch.equal(reading(given), plain((context[..., :2], covariates)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind["channels"] == "grouped"])
def test_one_that_is_missing_is_as_none(kind: dict[str, object]) -> None:
    kind = {**kind, "channel_embedding": False}
    net, (context, covariates, future) = made(kind), windows()
    fewer = network(replace(PAST, past=1), num_layers=3, use_moe=False, **kind)
    fewer.load_state_dict(net.state_dict())
    context[..., 3] = math.nan
    forecast = net(net.inputs(context, covariates, future))
    alone = fewer(fewer.inputs(context[..., :3], covariates, future))
    torch.testing.assert_close(forecast, alone, rtol=1e-5, atol=1e-5)
