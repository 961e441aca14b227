"""Expert parallelism: each row is dispatched to the rank that holds its expert, and combined back.

Rows are sorted by expert already, so what a rank sends is a slice for each rank of the group: one
all-to-all with variable splits each way. A rank that gets no row takes part with nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.experts import Compute, Experts
from model.recompute import remembered


class _Transfer:
    """An all-to-all over a group, which the ranks start, and later wait for."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._work: Any = None
        self._kept: tuple[Tensor, Tensor] | None = None
        """The rows that are sent, and where the others arrive."""

    def start(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send sent[r] rows to each rank r; return where received[r] of each are to arrive."""
        rows = rows.contiguous()
        arriving = rows.new_empty(sum(received), rows.shape[1])
        self._kept = rows, arriving
        self._work = dist.all_to_all_single(
            arriving, rows, received, sent, group=self._group, async_op=True
        )
        return arriving

    def wait(self) -> Tensor:
        """Return the rows that have arrived; on a GPU its next computation waits, not the host."""
        assert self._kept is not None, "nothing is under way"
        self._work.wait()
        (_, arrived), self._kept = self._kept, None
        return arrived


class _Start(torch.autograd.Function):
    """Starts a transfer; its backward pass waits for that of the gradients, the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], transfer: _Transfer
    ) -> Tensor:
        ctx.transfer = transfer
        return transfer.start(rows, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.transfer.wait(), None, None, None


class _Arrive(torch.autograd.Function):
    """Waits for a transfer; its backward pass starts that of the gradients."""

    @staticmethod
    def forward(
        ctx: Any, arriving: Tensor, sent: list[int], received: list[int], transfer: _Transfer
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.transfer = sent, received, transfer
        transfer.wait()
        return arriving.view_as(arriving)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.transfer.start(gradients[0], ctx.received, ctx.sent)
        return gradients[0], None, None, None  # in place of what arrives, and of another shape


def all_to_all(
    rows: Tensor,
    sent: list[int],
    received: list[int],
    group: dist.ProcessGroup,
    beside: Callable[[], None] | None = None,
) -> Tensor:
    """Send sent[r] rows to each rank r of the group, and return received[r] from each.

    Gradients go the other way. `beside` computes while the rows are under way, and its backward
    pass while the gradients are: torch runs what came later in the forward pass first.
    """
    transfer = _Transfer(group)
    underway = _Start.apply(rows, sent, received, transfer)
    if beside is not None:
        beside()
    arrived: Tensor = _Arrive.apply(underway, sent, received, transfer)
    return arrived


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

    def __call__(
        self,
        rows: Tensor,
        counts_E: Tensor,
        compute: Compute,
        _: bool,
        beside: Callable[[], None],
    ) -> Tensor:
        plan = remembered(lambda: self._plan(counts_E))
        kept = rows[: sum(plan.sent)]  # rows of no expert come last, and are not sent
        arrived = all_to_all(kept, plan.sent, plan.received, self.group, beside)
        sorted_rows = _Reorder.apply(arrived, plan.order, plan.inverse)
        outputs = _Reorder.apply(compute(sorted_rows, plan.counts), plan.inverse, plan.order)
        return all_to_all(outputs, plan.received, plan.sent, self.group)

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
