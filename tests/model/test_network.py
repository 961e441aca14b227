"""The trained network: scaling, patches, masks, loss."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from model.network_config import SeriesShape
from tests.model.networks import SHAPE, inputs, network

GROUPED = {"channels": "grouped", "num_layers": 3}


@pytest.mark.parametrize("channels", ["independent", "grouped", "mixed"])
@pytest.mark.parametrize("shape", [SHAPE, SeriesShape(37, 5, 1, 0)], ids=["whole", "partial"])
def test_forecast_has_the_targets_shape_and_follows_scale_and_level(
    channels: str, shape: SeriesShape
) -> None:
    net = network(shape, channels=channels, num_layers=2)
    context, covariates = inputs(shape)
    forecast = net.forecast(net((context, covariates)), context)
    assert forecast.shape == (4, shape.prediction_length, shape.channels)
    moved = 10 * context + 3
    again = net.forecast(net((moved, covariates)), moved)
    torch.testing.assert_close(again, 10 * forecast + 3, rtol=1e-4, atol=1e-3)


def test_independent_channels_do_not_see_each_other_and_others_do() -> None:
    context, covariates = inputs()
    other = context.clone()
    other[:, :, 2] = torch.randn(4, 40)
    alone, mixed, grouped = network(), network(channels="mixed"), network(**GROUPED)
    first, second = (alone((x, covariates))[:, :, :2] for x in (context, other))
    assert torch.equal(first, second)
    for net in (mixed, grouped):
        first, second = (net((x, covariates))[:, :, :2] for x in (context, other))
        assert not torch.allclose(first, second)


KINDS = [
    {"architecture": "encoder"},
    {"architecture": "encoder", "head": "token", "periods": 1},
    {"architecture": "encoder_decoder", "position": "rotary"},
    {"architecture": "decoder", "position": "rotary"},
    {"architecture": "decoder", "loss_positions": "all", "output_patch_length": 16},
]


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_channels_have_no_order(kind: dict[str, object]) -> None:
    """Channels in another order have their forecasts in that order."""
    net = network(**GROUPED, **kind, use_moe=False)
    context, covariates = inputs()
    future, order = torch.randn(4, 12, 3), [2, 0, 1]
    forecast = net(net.inputs(context, covariates, future))
    again = net(net.inputs(context[..., order], covariates, future[..., order]))
    torch.testing.assert_close(again, forecast[:, :, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_that_is_missing_is_as_none(kind: dict[str, object]) -> None:
    """The others are forecast as by a network of them alone, with the same weights."""
    net = network(**GROUPED, **kind, use_moe=False)
    fewer = network(replace(SHAPE, channels=2), **GROUPED, **kind, use_moe=False)
    fewer.load_state_dict(net.state_dict())
    context, covariates = inputs()
    future = torch.full((4, 12, 3), math.nan)
    context[..., 2] = math.nan
    forecast = net(net.inputs(context, covariates, future))
    assert forecast.isfinite().all()
    alone = fewer(fewer.inputs(context[..., :2], covariates, future[..., :2]))
    torch.testing.assert_close(forecast[:, :, :2], alone, rtol=1e-5, atol=1e-5)


def test_channel_embedding_distinguishes_equal_channels() -> None:
    context, covariates = inputs()
    context[:, :, 1] = context[:, :, 0]
    plain, embedded = network(), network(channel_embedding=True)
    output = plain((context, covariates))
    torch.testing.assert_close(output[:, :, 0], output[:, :, 1])
    output = embedded((context, covariates))
    assert not torch.allclose(output[:, :, 0], output[:, :, 1])


def test_a_missing_patch_is_masked_and_the_output_finite() -> None:
    net = network()
    context, covariates = inputs()
    context[0, 8:16] = float("nan")
    context[1] = float("nan")
    output = net((context, covariates))
    assert output.isfinite().all()
    _, padding = net.layers()[0].run((context, covariates))
    assert padding.shape == (12, 5)
    assert padding[:3].tolist() == [[False, True, False, False, False]] * 3
    assert padding[3:6].all() and not padding[6:].any()


def test_without_missing_points_fused_kernels_are_chosen() -> None:
    for missing, kernel in ((False, "torch flash"), (True, "blockwise")):
        shape = dataclasses.replace(SHAPE, missing=missing)
        model = network(shape, architecture="decoder", att_type="flash")
        context, covariates = inputs(shape)
        future = torch.randn(len(context), shape.prediction_length, shape.channels)
        model(model.inputs(context, covariates, future))
        assert model.kernels()["flash in decoder.self_attention"].startswith(kernel)


def test_loss_is_the_mean_over_samples_of_the_mean_over_valid_points() -> None:
    net = network(SeriesShape(8, 4, 1, 0), instance_norm=False)
    output = torch.zeros(3, 4, 1, 1, requires_grad=True)
    nan = float("nan")
    target = torch.tensor([[1.0, 1, 1, 1], [2, nan, nan, 4], [nan] * 4]).unsqueeze(-1)
    loss = net.loss(output, (target, torch.zeros(3, 8, 1)))
    assert loss.item() == pytest.approx((1.0 + (4 + 16) / 2 + 0.0) / 3)
    loss.backward()
    assert output.grad is not None and output.grad.isfinite().all()
    assert (output.grad[2] == 0).all()


def test_the_future_of_covariates_reaches_only_what_may_see_it() -> None:
    net = network()
    context, covariates = inputs()
    other = covariates.clone()
    other[:, 40:] += 1
    memories = []
    for known in (covariates, other):
        state = (context, known)
        for layer in net.layers()[:3]:
            state = layer.run(state)
        memories.append(state[0][:, :5])
    assert torch.equal(*memories)


def test_forward_is_the_loop_over_layers_and_each_parameter_is_in_one() -> None:
    net = network(channel_embedding=True)
    state = given = inputs()
    for layer in net.layers():
        state = layer.run(state)
    assert torch.equal(net(given), state)
    named = {
        f"{m}.{p}"
        for layer in net.layers()
        for m in layer.modules
        for p, _ in net.get_submodule(m).named_parameters()
    }
    assert named == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("calendar", [(), (24,)], ids=["numbers", "calendar"])
def test_a_forecast_depends_on_what_is_known_of_its_future(
    architecture: str, calendar: tuple[int, ...]
) -> None:
    """Each covariate, number or embedded, of each future patch."""
    shape = SeriesShape(context_length=40, prediction_length=12, channels=3, covariates=1)
    shape = replace(shape, calendar=calendar)
    net = network(shape, architecture=architecture)
    context, covariates = torch.randn(2, 40, 3), torch.zeros(2, 52, 1 + len(calendar))
    future = torch.randn(2, 12, 3)
    before = net(net.inputs(context, covariates, future))
    for column in range(covariates.shape[-1]):
        for point in (40, 51):
            other = covariates.clone()
            other[:, point, column] = 5.0
            after = net(net.inputs(context, other, future))
            assert (after - before).abs().max() > 1e-4, (column, point)


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("shape", [SHAPE, SeriesShape(37, 5, 1, 0)], ids=["whole", "partial"])
def test_the_sequence_length_is_that_of_the_tensor_between_layers(
    architecture: str, shape: SeriesShape
) -> None:
    net = network(shape, architecture=architecture)
    context, covariates = inputs(shape)
    future = torch.randn(len(context), shape.prediction_length, shape.channels)
    state = net.inputs(context, covariates, future)
    lengths = set()
    for layer in net.layers()[:-1]:
        state = layer.run(state)
        lengths.add(state[0].shape[1])
    assert lengths == {net.sequence_length}


ASKED = {"architecture": "encoder", "head": "token", "position": "rotary", "use_moe": False}


@pytest.mark.parametrize("changes", [ASKED, {"architecture": "encoder_decoder"}])
@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "learned"])
@pytest.mark.parametrize("channels", ["independent", "grouped", "mixed"])
@pytest.mark.parametrize("units", ["window", "season"])
def test_a_shorter_context_is_one_whose_first_points_are_missing(
    changes: dict[str, object], position: str, channels: str, units: str
) -> None:
    changes = {**changes, "position": position, "channels": channels, "use_moe": False}
    changes["num_layers"] = 2
    net = network(**changes, periods=2, arcsinh=True, loss_units=units)
    context, covariates = inputs()
    for length in (3, 24, 37):
        padded, known = context.clone(), covariates.clone()
        padded[:, :-length], known[:, : 40 - length] = float("nan"), 0.0
        short = context[:, -length:]
        whole = net.forecast(net((padded, known)), padded)
        alone = net.forecast(net((short, covariates[:, -length - 12 :])), short)
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output_patch_length", [None, 3, 5, 12, 16])
def test_points_that_are_not_asked_for_change_nothing(output_patch_length: int | None) -> None:
    """A forecast of fewer points is that of a network that knows no more of them."""
    changes = {**ASKED, "output_patch_length": output_patch_length, "periods": 1}
    net, context = network(**changes), torch.randn(4, 40, 3)
    covariates, asked = torch.randn(4, 52, 2), torch.zeros(4, 12)
    asked[:, :6] = 1.0
    covariates[:, 46:] = 0.0
    forecast = net(net.inputs(context, covariates, context, asked))
    shorter = network(SeriesShape(40, 6, 3, 2), **changes)
    shorter.load_state_dict(net.state_dict())
    alone = shorter(shorter.inputs(context, covariates[:, :46], context))
    torch.testing.assert_close(forecast[:, :6], alone, rtol=1e-5, atol=1e-5)
    whole = net(net.inputs(context, covariates, context))
    assert not torch.allclose(whole[:, :6], alone)


@pytest.mark.parametrize("loss", ["mse", "quantile", "student_t"])
@pytest.mark.parametrize(
    "changes",
    [{}, ASKED, ASKED | {"periods": 1}, ASKED | {"periods": 2, "loss_units": "season"}],
)
@pytest.mark.parametrize(("scale", "level"), [(1e-6, 0.0), (1e6, -3e6), (2.0**-20, 0.0)])
def test_series_that_differ_in_scale_have_equal_losses_and_gradients(
    loss: str, changes: dict[str, object], scale: float, level: float
) -> None:
    shape = replace(SHAPE, many_series=True)
    net = network(shape, loss=loss, **{"use_moe": False, **changes})
    context, covariates = inputs(shape)
    target = torch.randn(4, 12, 3) * 3 + 5
    found = []
    for a, b in ((1.0, 0.0), (scale, level)):
        net.zero_grad()
        own = a * context + b
        raw = net(net.inputs(own, covariates, own))
        net.loss(raw, (a * target + b, own)).backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        found.append((net.loss(raw, (a * target + b, own)), gradients))
        forecast = net.forecast(raw, own)
        found[-1] += ((forecast - b) / a,)
    for plain, scaled in zip(*found, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-4)


def test_losses_are_in_units_of_the_window_where_there_are_many_series() -> None:
    context = torch.full((1, 8, 1), 0.0)
    context[:, ::2] = 20.0  # a deviation of 10 around 10
    raw, target = torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1), 40.0)
    for many, units, expected in (
        (False, None, 900.0),
        (True, None, 9.0),
        (True, "data", 900.0),
        (False, "window", 9.0),
    ):
        net = network(SeriesShape(8, 4, 1, 0, many_series=many), loss_units=units)
        assert net.loss(raw, (target, context)).item() == pytest.approx(expected, rel=1e-5)
    squashed = network(SeriesShape(8, 4, 1, 0), loss_units="window", arcsinh=True)
    expected = math.asinh(3.0) ** 2
    assert squashed.loss(raw, (target, context)).item() == pytest.approx(expected, rel=1e-5)


def test_with_a_period_an_untrained_network_is_near_seasonal_naive() -> None:
    net = network(SeriesShape(40, 12, 1, 0), **ASKED, periods=1)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.zero_()
    context = (torch.arange(40) % 5 * 1.0).view(1, 40, 1)
    forecast = net.forecast(net(net.inputs(context, torch.zeros(1, 52, 0), context)), context)
    torch.testing.assert_close(forecast[0, :, 0], (torch.arange(40, 52) % 5 * 1.0))


@pytest.mark.parametrize("order", ["cumulative", "sorted"])
def test_a_network_with_periods_starts_near_seasonal_naive(order: str) -> None:
    net = network(**ASKED, periods=1, loss="quantile", quantile_order=order)
    context, covariates = inputs()
    scale = net.features.scale(context)
    start = net.features.seasonal_naive(context, scale)
    assert start is not None
    naive = scale.left(start.mean.unsqueeze(-1)).squeeze(-1)
    off = (net.forecast(net((context, covariates)), context) - naive) / scale.deviation
    assert 0.0 < off.abs().mean() < 0.2


def test_seasonal_units_are_those_of_mase() -> None:
    """A loss of absolute errors is MASE, whatever the window's scale and deviation."""
    changes = {**ASKED, "periods": 1, "loss": "mae", "loss_units": "season"}
    net = network(SeriesShape(120, 12, 2, 0, many_series=True), **changes)
    noise = torch.randn(3, 132, 2, generator=torch.Generator().manual_seed(1))
    series = 40 * (torch.arange(132) * 2 * math.pi / 6).sin().view(1, -1, 1) + noise * 5 + 1e4
    context, target = series[:, :120], series[:, 120:]
    raw = net(net.inputs(context, torch.zeros(3, 132, 0), context))
    forecast = net.forecast(raw, context)
    for sample in range(3):
        scale = (context[sample, 6:] - context[sample, :-6]).abs().mean(0)
        mase = ((forecast - target)[sample].abs() / scale).mean()
        one = slice(sample, sample + 1)
        loss = net.loss(raw[one], (target[one], context[one]))
        torch.testing.assert_close(loss, mase, rtol=1e-3, atol=1e-4)


def test_seasonal_units_need_a_period() -> None:
    with pytest.raises(ValueError, match="loss_units: season needs a period"):
        network(**ASKED, loss_units="season")
