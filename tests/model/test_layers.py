"""Norms, feed-forwards and the residual stream against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import TransformerConfig
from model.feedforward import MLP, SwiGLU, gated_swish
from model.init import initialise
from model.layers import EncoderLayer
from model.norm import normalise
from tests.formulas import normalised


def config(**changes: object) -> TransformerConfig:
    return TransformerConfig.model_validate(
        {
            "d_model": 16,
            "nhead": 2,
            "num_layers": 2,
            "dim_feedforward": 96,
            "dropout": 0.0,
            **changes,
        }
    )


@pytest.mark.parametrize("removes", [False, True], ids=["rms", "adaptive"])
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 2e-6),
        (torch.bfloat16, 2e-2),
    ],
)
@pytest.mark.parametrize("shape", [(3, 5, 16), (300, 512), (0, 16)])
def test_norms_and_their_gradients_are_the_formula(
    removes: bool, dtype: torch.dtype, limit: float, shape: tuple[int, ...]
) -> None:
    x, gain, removed = torch.randn(shape) + 3, torch.randn(shape[-1]), torch.rand(shape[-1])
    given = [x, gain, removed] if removes else [x, gain]
    ours = [t.to(dtype).requires_grad_() for t in given]
    exact = [t.detach().double().requires_grad_() for t in ours]
    y = normalise(*ours)
    expected = normalised(*exact, *[] if removes else [None])
    upstream = torch.randn(shape).to(dtype)
    pairs = zip(
        (y, *torch.autograd.grad(y, ours, upstream)),
        (expected, *torch.autograd.grad(expected, exact, upstream.double())),
        strict=True,
    )
    for mine, right in pairs:
        assert mine.dtype == dtype
        assert (mine.double() - right).norm() <= limit * right.norm()


def test_a_norm_of_a_transposed_input_and_gradient() -> None:
    x, gain = torch.randn(16, 6, dtype=torch.float64), torch.rand(16, dtype=torch.float64)

    def turned(x: Tensor, gain: Tensor) -> Tensor:
        return normalise(x.t(), gain).t()

    assert torch.autograd.gradcheck(turned, (x.requires_grad_(), gain.requires_grad_()))


def test_a_row_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    normalise(x, torch.ones(8)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_swiglu_is_the_formula_and_as_large_as_the_mlp() -> None:
    layer = SwiGLU(config(d_model=64, dim_feedforward=384))
    plain = MLP(config(d_model=64, dim_feedforward=384, use_swiglu=False))
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in plain.parameters())
    initialise(layer, 0)
    x = torch.randn(3, 64)
    gate, value = layer.gate_value.unbind(0)
    expected = (F.silu(x @ gate.T) * (x @ value.T)) @ layer.output.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_gated_swish_has_true_gradients() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(gated_swish, (x,))
    torch.testing.assert_close(gated_swish(x), F.silu(x[:, :4]) * x[:, 4:])


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (None, F.gelu),
        ("gelu", F.gelu),
        ("relu", F.relu),
        ("swish", F.silu),
    ],
)
def test_mlp_activations(activation: str | None, function: object) -> None:
    layer = MLP(config(use_swiglu=False, activation=activation))
    initialise(layer, 0)
    x = torch.randn(3, 16)
    expected = function(x @ layer.input.T) @ layer.output.T  # type: ignore[operator]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["pre_norm", "post_norm"])
def test_norm_strategies(strategy: str) -> None:
    layer = EncoderLayer(config(norm_strategy=strategy))
    initialise(layer, 0)
    x = torch.randn(2, 5, 16)
    h = x
    for norm, sublayer in (
        (layer.self_attention_norm, layer.self_attention),
        (layer.feed_forward_norm, layer.feed_forward),
    ):
        h = h + sublayer(norm(h)) if strategy == "pre_norm" else norm(h + sublayer(h))
    torch.testing.assert_close(layer(x), h)
