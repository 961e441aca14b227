"""Feed-forwards against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from model.config import TransformerConfig
from model.feedforward import MLP, SwiGLU, gated_swish
from model.init import initialise


def config(**changes: object) -> TransformerConfig:
    """Return the configuration of a small feed-forward."""
    return TransformerConfig.model_validate({"d_model": 16, "dim_feedforward": 96, **changes})


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


FUNCTIONS = {None: F.gelu, "gelu": F.gelu, "relu": F.relu, "swish": F.silu}
"""Functions that the settings of `activation` stand for."""


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_mlp_activations(activation: str | None) -> None:
    layer = MLP(config(use_swiglu=False, activation=activation))
    initialise(layer, 0)
    x = torch.randn(3, 16)
    expected = FUNCTIONS[activation](x @ layer.input.T) @ layer.output.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
