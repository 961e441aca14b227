"""Expert parallelism: each row travels to the rank that holds its expert, and its answer back.

Rows are sorted by expert already, so what a rank sends is a slice for each rank of the group: one
all-to-all with variable splits each way. An expert or a rank that gets no row takes part with
nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.moe import Compute, Experts


class _AllToAll(torch.autograd.Function):
    """Rows sent[r] to each rank r of the group, received[r] from it; backward the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _all_to_all(
    rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    answer = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(answer, rows.contiguous(), received, sent, group=group)
    return answer


class _Reorder(torch.autograd.Function):
    """rows[order]; the gradient is gathered by the inverse, without atomics."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


class Exchange:
    """What `Experts.exchange` is where a rank holds a part of the experts."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, rows: Tensor, counts_E: Tensor, compute: Compute) -> Tensor:
        ranks = self.group.size()
        arriving = torch.empty_like(counts_E)
        dist.all_to_all_single(arriving, counts_E, group=self.group)
        sent = counts_E.view(ranks, -1).sum(1).tolist()
        arriving = arriving.view(ranks, -1)
        received = arriving.sum(1).tolist()
        arrived = _AllToAll.apply(rows, sent, received, self.group)
        order, inverse = _by_expert(arriving)
        answers = compute(_Reorder.apply(arrived, order, inverse), arriving.sum(0))
        returned: Tensor = _AllToAll.apply(
            _Reorder.apply(answers, inverse, order), received, sent, self.group
        )
        return returned


def _by_expert(arriving: Tensor) -> tuple[Tensor, Tensor]:
    """Rows lie rank by rank, in each by expert: the order that sorts them by expert, and back.

    arriving [ranks, local experts]: the number of rows of each.
    """
    experts = torch.arange(arriving.shape[1], device=arriving.device).repeat(len(arriving))
    order = experts.repeat_interleave(arriving.flatten()).argsort(stable=True)
    places = torch.arange(len(order), device=order.device)
    return order, torch.empty_like(order).scatter_(0, order, places)


def apply_expert_parallel(network: nn.Module, group: dist.ProcessGroup) -> None:
    for module in network.modules():
        if isinstance(module, Experts):
            module.exchange = Exchange(group)
