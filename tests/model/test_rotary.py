"""Rotary positions against rotation in the complex plane."""

from __future__ import annotations

import pytest
import torch

from model.rotary import rotate
from tests.formulas import rotated

LIMITS = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 3e-3}
"""Largest relative error: angles are computed in fp32."""


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative error of `ours`."""
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


@pytest.mark.parametrize("shape", [(1, 1, 1, 3, 8), (2, 37, 2, 6, 24)])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("start", "kept"), [(0, 0), (5, 1), (64, 2)])
def test_it_is_the_formula(
    dtype: torch.dtype, shape: tuple[int, ...], start: int, kept: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    count = shape[3] - kept
    y, expected = rotate(x, start, count), rotated(exact, start, count)
    upstream = torch.randn_like(y)
    assert relative(y, expected) < LIMITS[dtype]
    assert torch.equal(y[..., count:, :], x[..., count:, :])
    (ours,) = torch.autograd.grad(y, x, upstream)
    (theirs,) = torch.autograd.grad(expected, exact, upstream.double())
    assert relative(ours, theirs) < LIMITS[dtype]


def test_compiled_formulas_agree() -> None:
    x = torch.randn(2, 9, 2, 3, 8)
    compiled = torch.func.vmap(lambda one: rotate(one.unsqueeze(0), 3, 2).squeeze(0))(x)
    assert torch.allclose(compiled, rotate(x, 3, 2), atol=1e-6)


def test_angles_made_in_inference_can_be_trained_on() -> None:
    x = torch.randn(1, 1500, 1, 1, 8, requires_grad=True)
    with torch.inference_mode():
        rotate(x, 0)
    rotate(x, 0).sum().backward()
    assert x.grad is not None
