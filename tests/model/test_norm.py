"""Norms against their formulas, and norms that users bring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forescale import TransformerEncoder
from model.config import TransformerConfig
from model.init import initialise
from model.layers import EncoderLayer
from model.norm import AdaptiveNorm, normalise
from tests.formulas import normalised
from tests.model.options import SMALL

LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Largest relative error of a norm and of its gradients."""


@pytest.mark.parametrize("removes", [False, True], ids=["rms", "adaptive"])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", [(3, 5, 16), (300, 512), (0, 16)])
def test_norms_and_their_gradients_are_the_formula(
    removes: bool, dtype: torch.dtype, shape: tuple[int, ...]
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
    for actual, right in pairs:
        assert actual.dtype == dtype
        assert (actual.double() - right).norm() <= LIMITS[dtype] * right.norm()


def test_a_norm_of_a_transposed_input_and_gradient() -> None:
    x, gain = torch.randn(16, 6, dtype=torch.float64), torch.rand(16, dtype=torch.float64)

    def transposed(x: Tensor, gain: Tensor) -> Tensor:
        return normalise(x.t(), gain).t()

    assert torch.autograd.gradcheck(transposed, (x.requires_grad_(), gain.requires_grad_()))


def test_a_row_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    normalise(x, torch.ones(8)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_the_adaptive_norm_lies_between_rms_and_layer_norm() -> None:
    norm, x = AdaptiveNorm(16, condition_size=4), torch.randn(5, 16) + 2
    initialise(norm, 0)
    with torch.no_grad():
        norm.removed.fill_(1.0)
        torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (16,), eps=1e-5))
        norm.removed.fill_(0.0)
        torch.testing.assert_close(norm(x), nn.functional.rms_norm(x, (16,), eps=1e-5))
        condition = torch.randn(5, 4)
        torch.testing.assert_close(norm(x, condition), norm(x))  # zero at first
        assert norm.condition is not None
        norm.condition.normal_()
        gain, shift = (condition @ w.T for w in norm.condition)
        torch.testing.assert_close(norm(x, condition), norm(x) * (1 + gain) + shift)
    with pytest.raises(ValueError, match="condition_size is 0"):
        AdaptiveNorm(16)(x, torch.randn(5, 4))


def test_a_condition_of_each_sequence() -> None:
    norm = AdaptiveNorm(16, condition_size=4)
    x, condition = torch.randn(5, 5, 16), torch.randn(5, 4)
    initialise(norm, 0)
    assert norm.condition is not None
    nn.init.normal_(norm.condition)
    torch.testing.assert_close(norm(x, condition)[2], norm(x[2], condition[2]))


def test_a_norm_callable_must_make_a_module() -> None:
    config = TransformerConfig(**SMALL, use_adaptive_ln=lambda d: d)
    with pytest.raises(TypeError, match="made a int, not a module"):
        EncoderLayer(config)


class Scaled(nn.Module):
    """A norm without reset_parameters."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Rowwise(nn.Module):
    """Applies a norm that takes [N, d] to [B, T, d]."""

    def __init__(self, norm: Callable[[int], nn.Module], d_model: int) -> None:
        super().__init__()
        self.norm = norm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view_as(x)


ROWWISE = partial(Rowwise, partial(nn.GroupNorm, 1))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm, Scaled, ROWWISE])
def test_any_module_can_be_the_norm(norm: Any) -> None:
    encoder = TransformerEncoder(3, use_adaptive_ln=norm, **SMALL)
    y = encoder(torch.randn(2, 5, 3))
    assert y.isfinite().all() and y.std() > 0.1
