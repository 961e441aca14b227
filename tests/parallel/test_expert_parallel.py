"""Rows on their way to other ranks' experts, and what is computed meanwhile."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert_parallel import all_to_all
from tests import ranks

Rows = list[list[float]]


class _Told(torch.autograd.Function):
    """The identity, which notes when it runs, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, events: list[str]) -> Tensor:
        ctx.events = events
        events.append("beside")
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.events.append("beside")
        return gradients[0], None


class _Work:
    """A collective that notes when it is waited for."""

    def __init__(self, work: Any, events: list[str]) -> None:
        self._work, self._events = work, events

    def wait(self) -> None:
        self._events.append("wait")
        self._work.wait()


def _exchange(rank: int, world: int) -> tuple[list[str], list[str], Rows, Rows]:
    """Exchange rows; return the events of both passes, what has arrived, and the gradient."""
    dist.init_process_group("gloo")
    events: list[str] = []
    send = dist.all_to_all_single

    def told(*arguments: Any, **options: Any) -> _Work:
        events.append("start")
        return _Work(send(*arguments, **options), events)

    rows = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    sent, received = ([1, 2], [1, 2]) if rank == 0 else ([2, 1], [2, 1])
    shared: list[Tensor] = []
    with patch.object(dist, "all_to_all_single", told):
        arrived = all_to_all(
            rows, sent, received, dist.group.WORLD, lambda: shared.append(_Told.apply(rows, events))
        )
        forwards = events.copy()
        events.clear()
        (gradient,) = torch.autograd.grad((arrived * (1 + rank)).sum(), rows, retain_graph=True)
        events.clear()
        (arrived.sum() + shared[0].sum()).backward()
    return forwards, events, arrived.tolist(), gradient.tolist()


def test_what_is_beside_a_transfer_is_computed_while_it_is_under_way() -> None:
    """In the backward pass, too."""
    for rank, (forwards, backwards, _, _) in enumerate(ranks.run(_exchange, 2)):
        assert forwards == backwards == ["start", "beside", "wait"], rank


def test_rows_and_their_gradients_come_from_where_they_were_sent() -> None:
    (_, _, first, grad_first), (_, _, second, grad_second) = ranks.run(_exchange, 2)
    assert first == [[0.0, 1.0], [10.0, 11.0], [12.0, 13.0]]
    assert second == [[2.0, 3.0], [4.0, 5.0], [14.0, 15.0]]
    assert grad_first == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    assert grad_second == [[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]]
