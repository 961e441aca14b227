"""The trained network: scaling, patches, masks, loss."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.config import ModelConfig, SeriesShape
from model.embedding import sinusoidal
from model.flops import forward_flops
from model.init import initialise
from model.instance_norm import instance_statistics
from model.network import TimeSeriesTransformer
from model.patches import to_patches

SHAPE = SeriesShape(context_length=40, prediction_length=12, channels=3, covariates=2)
CONFIG = {
    "d_model": 32,
    "nhead": 4,
    "num_layers": 1,
    "dim_feedforward": 96,
    "dropout": 0.0,
    "patch_length": 8,
    "use_moe": True,
    "num_experts": 4,
}


def network(shape: SeriesShape = SHAPE, **changes: object) -> TimeSeriesTransformer:
    result = TimeSeriesTransformer(ModelConfig.model_validate({**CONFIG, **changes}), shape)
    initialise(result, 0)
    return result.eval()


def inputs(shape: SeriesShape = SHAPE, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    length = shape.context_length + shape.prediction_length
    return (
        torch.randn(batch, shape.context_length, shape.channels) * 3 + 5,
        torch.randn(batch, length, shape.covariates),
    )


@pytest.mark.parametrize("channels", ["independent", "mixed"])
@pytest.mark.parametrize("shape", [SHAPE, SeriesShape(37, 5, 1, 0)], ids=["whole", "partial"])
def test_forecast_has_the_targets_shape_and_follows_scale_and_level(
    channels: str, shape: SeriesShape
) -> None:
    net = network(shape, channels=channels)
    context, covariates = inputs(shape)
    forecast = net.forecast(net((context, covariates)), context)
    assert forecast.shape == (4, shape.prediction_length, shape.channels)
    moved = 10 * context + 3
    again = net.forecast(net((moved, covariates)), moved)
    torch.testing.assert_close(again, 10 * forecast + 3, rtol=1e-4, atol=1e-3)


def test_independent_channels_do_not_see_each_other_and_mixed_ones_do() -> None:
    context, covariates = inputs()
    other = context.clone()
    other[:, :, 2] = torch.randn(4, 40)
    alone, mixed = network(), network(channels="mixed")
    assert torch.equal(alone((context, covariates))[:, :, :2], alone((other, covariates))[:, :, :2])
    assert not torch.allclose(
        mixed((context, covariates))[:, :, :2], mixed((other, covariates))[:, :, :2]
    )


def test_channel_embedding_tells_equal_channels_apart() -> None:
    context, covariates = inputs()
    context[:, :, 1] = context[:, :, 0]
    plain, told = network(), network(channel_embedding=True)
    answer = plain((context, covariates))
    torch.testing.assert_close(answer[:, :, 0], answer[:, :, 1])
    answer = told((context, covariates))
    assert not torch.allclose(answer[:, :, 0], answer[:, :, 1])


def test_a_missing_patch_is_masked_and_the_answer_finite() -> None:
    net = network()
    context, covariates = inputs()
    context[0, 8:16] = float("nan")
    context[1] = float("nan")
    answer = net((context, covariates))
    assert answer.isfinite().all()
    _, padding = net.layers()[0].run((context, covariates))
    assert padding.shape == (12, 5)
    assert padding[:3].tolist() == [[False, True, False, False, False]] * 3
    assert padding[3:6].all() and not padding[6:].any()


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


def test_without_missing_points_every_kernel_can_answer() -> None:
    for missing, kernel in ((False, "torch flash"), (True, "blockwise")):
        shape = dataclasses.replace(SHAPE, missing=missing)
        model = network(shape, architecture="decoder", att_type="flash")
        context, covariates = inputs(shape)
        future = torch.randn(len(context), shape.prediction_length, shape.channels)
        model(model.inputs(context, covariates, future))
        assert model.kernels()["flash in decoder.self_attention"].startswith(kernel)


def test_settings_without_effect_are_told() -> None:
    config = ModelConfig(architecture="encoder", num_decoder_layers=2, top_k=1, quantiles=[0.5])
    assert config.unused() == [
        "model.top_k has no effect with use_moe: false",
        "model.num_decoder_layers has no effect with architecture: encoder",
        "model.quantiles has no effect with loss: mse",
    ]


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


def test_patches_are_cut_from_the_side_that_is_next_to_now() -> None:
    x = torch.arange(1.0, 6.0).view(1, 5, 1)
    assert to_patches(x, 2, align="end").tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert to_patches(x, 2, align="start").tolist() == [[[1, 2], [3, 4], [5, 0]]]


def test_sinusoidal_positions_are_the_formula() -> None:
    table = sinusoidal(2, 5, 6, torch.device("cpu"))
    for row, position in enumerate(range(2, 5)):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * i / 6))
            torch.testing.assert_close(table[row, 2 * i], angle.sin(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(table[row, 2 * i + 1], angle.cos(), rtol=1e-5, atol=1e-6)


def test_flops_are_those_that_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    net = network(use_moe=False)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        net(inputs(batch=2))
    ours = 2 * sum(forward_flops(net, layer) for layer in net.layers())
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-6)
