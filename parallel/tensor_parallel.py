"""Tensor parallelism, applied from outside: the model's code does not know of it.

A module whose weights are sharded (heads, or the hidden width of a feed-forward) computes from the
whole input one term of a sum. A wrapper around its forward completes it: f copies the input and
sums its gradients over the ranks, g sums the outputs (Shoeybi et al. 2019, Megatron-LM, fig. 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.adapters import Adapter
from model.attention import Attention
from model.experts import Experts
from parallel.layout import Layout
from parallel.sharding import is_sharded


class _CopyToRegion(torch.autograd.Function):
    """Megatron's f: the identity, whose gradient is summed over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _ReduceFromRegion(torch.autograd.Function):
    """Megatron's g: the sum over the group, whose gradient goes to all ranks as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        # A copy: selective recomputation may keep x itself.
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _ScatterToRegion(torch.autograd.Function):
    """This rank's rows [N / ranks, ...] of [N, ...]; the gradients of all ranks are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.chunk(group.size())[group.rank()].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradients[0], ctx.group), None


class _GatherFromRegion(torch.autograd.Function):
    """The rows of all ranks, [N, ...]; the gradient is this rank's rows of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].chunk(ctx.group.size())[ctx.group.rank()].clone(), None


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty(len(x) * group.size(), *x.shape[1:])
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return whole


def apply_tensor_parallel(network: nn.Module, layout: Layout, group: dist.ProcessGroup) -> None:
    """Wrap each module of `network` whose own parameters are sharded."""
    for prefix, module in network.named_modules():
        if isinstance(module, Adapter):  # part of its matrix's module, which completes the sum
            module.copied = _copied_factors(prefix, layout, group)
            continue
        names = [f"{prefix}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
        if not any(is_sharded(name, layout) for name in names):
            continue
        if isinstance(module, Experts) and layout.expert > 1:
            _scatter_tokens(module, group)
        else:
            _reduce_output(module, group)


def _copied_factors(
    prefix: str, layout: Layout, group: dist.ProcessGroup
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return f for the factor of an adapter that all ranks hold, where the other one is sharded."""
    is_split = {name: is_sharded(f"{prefix}.{name}", layout) for name in ("down", "up")}
    if not any(is_split.values()):
        return {}
    return {
        name: lambda x: _CopyToRegion.apply(x, group) for name, here in is_split.items() if not here
    }


def _reduce_output(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Have each rank compute one term of every output, and sum the terms."""
    forward = module.forward

    def summed(*inputs: Any, **options: Any) -> Tensor:
        inputs = tuple(
            _CopyToRegion.apply(x, group) if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in inputs
        )
        assert not any(isinstance(x, Tensor) and x.requires_grad for x in options.values()), (
            "a tensor by keyword would miss the sum of its gradient"
        )
        drops = isinstance(module, Attention) and module.training and module.dropout > 0
        with _own_dropout(group.rank(), inputs[0].device) if drops else nullcontext():
            term = forward(*inputs, **options)
        total: Tensor = _ReduceFromRegion.apply(term, group)
        return total

    module.forward = summed


def _scatter_tokens(module: Experts, group: dist.ProcessGroup) -> None:
    """Have each rank bring some of the tokens to the experts, which are whole, and gather all.

    The router saw all tokens on every rank, so its gradient is complete on each.
    """
    forward = module.forward

    def scattered(
        x_ND: Tensor,
        chosen_NK: Tensor,
        gates_NK: Tensor,
        complete: bool,
        beside: Callable[[], None],
    ) -> Tensor:
        tokens = len(x_ND)
        missing = -tokens % group.size()
        if missing:  # equal numbers on all ranks: rows are added that choose no expert
            x_ND = F.pad(x_ND, (0, 0, 0, missing))
            chosen_NK = F.pad(chosen_NK, (0, 0, 0, missing), value=module.count)
            gates_NK = F.pad(gates_NK, (0, 0, 0, missing))
        rows = forward(
            _ScatterToRegion.apply(x_ND, group),
            chosen_NK.chunk(group.size())[group.rank()],
            _ScatterToRegion.apply(gates_NK, group),
            complete and not missing,
            beside,
        )
        whole: Tensor = _GatherFromRegion.apply(rows, group)
        return whole[:tokens]

    module.forward = scattered  # type: ignore[method-assign, assignment]


@contextmanager
def _own_dropout(rank: int, device: torch.device) -> Iterator[None]:
    """Within, each rank draws other random numbers; after it all go on alike.

    So ranks drop different weights of their own heads, and the same of what is replicated.
    """
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank)
        yield
