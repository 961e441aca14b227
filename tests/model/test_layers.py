"""Norms, feed-forwards and the residual stream against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from model.config import TransformerConfig
from model.feedforward import MLP, SwiGLU, gated_swish
from model.init import initialise
from model.norm import RMSNorm
from model.transformer import EncoderLayer


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


def test_rms_norm_is_the_formula() -> None:
    norm = RMSNorm(16)
    initialise(norm, 0)
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x.float()).double(), expected, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize(("activation", "function"), [
    (None, F.gelu), ("gelu", F.gelu), ("relu", F.relu), ("swish", F.silu),
])  # fmt: skip
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
