"""Selective recomputation keeps what costs most, of packages' kernels too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.recompute import KEPT, is_recomputing, recomputed

PACKAGES = [name for name in KEPT if "::" in name]


def attention_of(name: str, calls: Counter[bool]) -> Callable[[Tensor], Tensor]:
    """Return an operator that is called like a package's; count its calls by whether repeated."""

    @torch.library.custom_op(name, mutates_args=())
    def forward(x: Tensor) -> Tensor:
        calls[is_recomputing()] += 1
        return x.sin()

    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()

    def setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    forward.register_autograd(backward, setup_context=setup)
    return forward


@pytest.mark.parametrize("name", [*PACKAGES, "forescale_tests::unknown"])
def test_attention_of_packages_is_kept(name: str) -> None:
    calls: Counter[bool] = Counter()
    attend = attention_of(name, calls)
    weight = torch.randn(8, 8, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return attend(x.tanh()).exp() @ weight

    x = torch.randn(4, 8, requires_grad=True)
    expected = torch.autograd.grad((x.tanh().sin().exp() @ weight).sum(), (x, weight))
    ours = torch.autograd.grad(recomputed(block, x, selective=True).sum(), (x, weight))
    for gradient, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, right)
    assert calls == ({False: 1} if name in KEPT else {False: 1, True: 1})
