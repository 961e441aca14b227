"""Expert parallelism: each row is dispatched to the rank that holds its expert, and combined back.

Rows are sorted by expert already, so what a rank sends is a slice for each rank of the group: one
all-to-all with variable splits each way. A rank that gets no row takes part with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.experts import Compute, Experts
from model.recompute import remembered


class _AllToAll(torch.autograd.Function):
    """The all-to-all: sent[r] rows go to each rank r of the group, received[r] come from it.

    Gradients go the other way.
    """

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
    result = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result


class _Reorder(torch.autograd.Function):
    """rows[order], whose gradient is gathered by the inverse, without atomics."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


@dataclass(frozen=True)
class _Plan:
    """Which rows of one layer and micro-batch go where."""

    sent: list[int]
    """Rows that each rank of the group gets from this one."""
    received: list[int]
    """Rows that come from each."""
    order: Tensor
    """Number of each arrived row, sorted by expert."""
    inverse: Tensor
    """Inverse of `order`."""
    counts: Tensor
    """Rows of each expert of this rank."""


class Exchange:
    """The `Experts.exchange` of a rank that holds some of the experts."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, rows: Tensor, counts_E: Tensor, compute: Compute, _: bool) -> Tensor:
        plan = remembered(lambda: self._plan(counts_E))
        kept = rows[: sum(plan.sent)]  # rows of no expert come last, and are not sent
        arrived = _AllToAll.apply(kept, plan.sent, plan.received, self.group)
        sorted_rows = _Reorder.apply(arrived, plan.order, plan.inverse)
        outputs = _Reorder.apply(compute(sorted_rows, plan.counts), plan.inverse, plan.order)
        returned: Tensor = _AllToAll.apply(outputs, plan.received, plan.sent, self.group)
        return returned

    def _plan(self, counts_E: Tensor) -> _Plan:
        """Ask the other ranks how many rows they send: a collective."""
        ranks = self.group.size()
        arriving = torch.empty_like(counts_E)
        dist.all_to_all_single(arriving, counts_E, group=self.group)
        arriving = arriving.view(ranks, -1)
        # The host waits for the device here alone: an all-to-all wants its sizes as numbers.
        splits = torch.stack([counts_E.view(ranks, -1).sum(1), arriving.sum(1)])
        sent, received = splits.tolist()
        order, inverse = _by_expert(arriving, sum(received))
        return _Plan(sent, received, order, inverse, arriving.sum(0))


def _by_expert(arriving: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return the order that sorts the `total` arrived rows by expert, and its inverse.

    They lie rank by rank, and by expert within each; arriving [ranks, local experts] counts them.
    """
    experts = torch.arange(arriving.shape[1], device=arriving.device).repeat(len(arriving))
    expert_of_row = experts.repeat_interleave(arriving.flatten(), output_size=total)
    order = expert_of_row.argsort(stable=True)
    positions = torch.arange(len(order), device=order.device)
    return order, torch.empty_like(order).scatter_(0, order, positions)


def apply_expert_parallel(network: nn.Module, group: dist.ProcessGroup) -> None:
    """Have the experts of `network` exchange rows over `group`."""
    for module in network.modules():
        if isinstance(module, Experts):
            module.exchange = Exchange(group)
