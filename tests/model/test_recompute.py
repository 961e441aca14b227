"""Selective recomputation keeps what costs most, of packages' kernels too."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model import attention_kernels, fused_attention
from model.config import TransformerConfig
from model.layers import EncoderLayer
from model.recompute import KEPT, Recompute, _is_kept, is_recomputing, recomputed, remembered
from model.stack import run_layer

RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)

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


@pytest.mark.parametrize("selective", [False, True])
def test_what_is_remembered_is_computed_once_for_each_block(selective: bool) -> None:
    computed: list[int] = []

    def count() -> int:
        computed.append(len(computed))
        return computed[-1]

    def block(x: Tensor) -> Tensor:
        first, second = remembered(count), remembered(count)
        return (x * (first + 1)).exp() * (second + 1)

    x = torch.zeros(3, requires_grad=True)
    outputs = [recomputed(block, x, selective=selective) for _ in range(2)]
    assert computed == [0, 1, 2, 3]
    for output, slope in zip(reversed(outputs), (12.0, 2.0), strict=True):  # in any order
        (gradient,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
        assert gradient.tolist() == [slope] * 3
        (again,) = torch.autograd.grad(output.sum(), x)  # a graph that is kept asks once more
        assert again.tolist() == [slope] * 3
    assert computed == [0, 1, 2, 3]
    block(x)  # without recomputation nothing is kept
    assert computed == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["block", "selective"])
def test_a_kernel_is_tried_apart_from_the_block_that_asks_first(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    class Own(attention_kernels.Formula):
        """A kernel that no other test has tried."""

    monkeypatch.setattr(fused_attention, "Own", Own, raising=False)
    call = attention_kernels.Call("cpu", torch.float32, 8, False, "none", False, False)
    fused_attention._failure_of.cache_clear()
    reasons: list[str | None] = []

    def block(x: Tensor) -> Tensor:
        reasons.append(fused_attention._failure(Own(), call))
        return (x @ x).exp()

    x = torch.eye(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(recomputed(block, x, selective=how == "selective").sum(), x)
    assert reasons == [None, None]
    torch.testing.assert_close(gradient, torch.autograd.grad((x @ x).exp().sum(), x)[0])


def test_what_is_kept_is_found_among_other_operators() -> None:
    """A repetition may run more than the first pass, as ZeRO 3 does to gather a parameter."""
    passes: list[bool] = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
            a, b = ctx.saved_tensors
            return gradients[0] @ b.T, a.T @ gradients[0]

    def block(x: Tensor) -> Tensor:
        passes.append(is_recomputing())
        if is_recomputing():
            for _ in range(5):
                torch.arange(6.0).view(2, 3).flatten().sum()
        y = Counted.apply(x, x).exp()
        return (y @ x).tanh()

    x = torch.randn(4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(recomputed(block, x, selective=True).sum(), x)
    assert passes == [False, True]
    expected = torch.autograd.grad((((x @ x).exp()) @ x).tanh().sum(), x)[0]
    torch.testing.assert_close(gradient, expected)


def test_a_repetition_that_computes_something_else_is_an_error() -> None:
    def block(x: Tensor) -> Tensor:
        y = torch.bmm(x[None], x[None])[0] if is_recomputing() else x @ x
        return y.exp()

    x = torch.randn(4, 4, requires_grad=True)
    output = recomputed(block, x, selective=True).sum()
    with pytest.raises(RuntimeError, match=r"a block computed aten\.mm"):
        output.backward()


class Products(TorchDispatchMode):
    """Counts the operators whose results selective recomputation keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += _is_kept(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm_strategy", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("use_moe", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_products_are_kept_that_the_backward_pass_needs(
    norm_strategy: str, use_moe: bool, dropout: float
) -> None:
    """And no others: a dense block with pre-norm ends with one that is only added."""
    config = TransformerConfig(
        d_model=16,
        nhead=2,
        num_layers=1,
        dim_feedforward=48,
        dropout=dropout,
        norm_strategy=norm_strategy,
        use_moe=use_moe,
    )
    layer = EncoderLayer(config)
    x = torch.randn(2, 5, 16, requires_grad=True)
    counts, gradients = {}, {}
    for recompute in RECOMPUTE:
        torch.manual_seed(3)
        with Products() as products:
            output = run_layer(layer, x, recompute=recompute)
            (gradients[recompute],) = torch.autograd.grad(output.square().sum(), x)
        counts[recompute] = products.count
    assert counts["selective"] == counts["none"] < counts["block"]
    torch.testing.assert_close(gradients["selective"], gradients["none"], rtol=0, atol=0)
    assert layer.ends_with_product == (norm_strategy == "pre_norm" and not use_moe and not dropout)


def tensors_left(*, keeps_last: bool) -> int:
    """Return how many tensors of 16 elements a block of two products leaves behind it."""
    x = torch.randn(4, 4, requires_grad=True)
    output = recomputed(lambda x: x + (x @ x).exp() @ x, x, selective=True, keeps_last=keeps_last)
    gc.collect()
    left = [one for one in gc.get_objects() if type(one) is Tensor and one.numel() == 16]
    output.sum().backward()
    return len(left)


def test_the_last_product_is_not_kept_where_it_is_only_added() -> None:
    assert tensors_left(keeps_last=False) == tensors_left(keeps_last=True) - 1
