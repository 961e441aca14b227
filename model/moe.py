"""Mixture of experts: each token is computed by the experts that the router sends it to.

Shapes: B rows, T tokens of a row, N = B * T, K choices per token, E experts, D = d_model, F hidden
width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.config import TransformerConfig
from model.feedforward import ACTIVATIONS, gated_swish, make_feed_forward
from model.init import Init
from model.recompute import is_recomputing
from model.router import (
    Router,
    RouterStatistics,
    Routing,
    balance_loss,
    normalised,
    within_capacity,
    z_loss,
)

log = logging.getLogger("forescale")


@dataclass(frozen=True)
class Order:
    """How the K choices of N tokens lie once they are sorted by expert."""

    of_row: Tensor
    """[N * K]: which choice, counted token by token, each sorted row answers."""
    places_NK: Tensor
    """[N, K]: the sorted row of each choice."""

    @classmethod
    def by_expert(cls, expert_NK: Tensor) -> Order:
        of_row = expert_NK.flatten().argsort(stable=True)
        rows = torch.arange(len(of_row), device=of_row.device)
        places = torch.empty_like(of_row).scatter_(0, of_row, rows)
        return cls(of_row, places.view_as(expert_NK))

    def token(self) -> Tensor:
        """[N * K]: the token of each sorted row."""
        return self.of_row.div(self.places_NK.shape[1], rounding_mode="floor")


class _Dispatch(torch.autograd.Function):
    """x [N, D] -> a row for each choice, sorted by expert, [N * K, D].

    This and `_Combine` only gather, both ways: no atomics, so runs are bit-equal on GPUs.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order: Order) -> Tensor:
        ctx.order = order
        return x_ND.index_select(0, order.token())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        first, *others = ctx.order.places_NK.unbind(1)
        of_x = gradients[0].index_select(0, first)
        for places in others:
            of_x += gradients[0].index_select(0, places)
        return of_x, None


class _Combine(torch.autograd.Function):
    """y_n = sum_k gate_nk * answer of choice k, from the rows that `_Dispatch` made."""

    @staticmethod
    def forward(ctx: Any, answers: Tensor, gates_NK: Tensor, order: Order) -> Tensor:
        ctx.order = order
        ctx.save_for_backward(answers, gates_NK)
        y_ND = answers.new_zeros(len(gates_NK), answers.shape[1])
        for places, gates in zip(order.places_NK.unbind(1), gates_NK.split(1, 1), strict=True):
            y_ND.addcmul_(answers.index_select(0, places), gates.to(answers.dtype))
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        answers, gates_NK = ctx.saved_tensors
        order: Order = ctx.order
        rows = gradients[0].index_select(0, order.token())
        of_gates = (rows * answers).sum(-1, dtype=gates_NK.dtype)
        gate_of_row = gates_NK.flatten().index_select(0, order.of_row)
        of_answers = rows.mul_(gate_of_row.unsqueeze(-1).to(rows.dtype))
        return of_answers, of_gates[order.places_NK], None


class _AttachLoss(torch.autograd.Function):
    """Identity on `x` that adds scale * loss to whatever is differentiated.

    The auxiliary loss gets its gradient where it arises; no loss travels between stages.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(loss)
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.full_like(loss, ctx.scale), None


def grouped_linear(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply consecutive groups of rows, counts_E of them each, with their own weight."""
    if torch.is_autocast_enabled(x_ND.device.type):  # which does not know grouped products
        dtype = torch.get_autocast_dtype(x_ND.device.type)
        x_ND, weight_EFD = x_ND.to(dtype), weight_EFD.to(dtype)
    alignment = 16 // x_ND.element_size()
    if x_ND.dtype != torch.float64 and not any(n % alignment for n in weight_EFD.shape[1:]):
        offsets = counts_E.cumsum(0, dtype=torch.int32)
        return F.grouped_mm(x_ND, weight_EFD.transpose(1, 2), offs=offsets)
    _say_once(weight_EFD.shape[1:], x_ND.dtype)
    return looped_linear(x_ND, weight_EFD, counts_E)


@cache
def _say_once(size: torch.Size, dtype: torch.dtype) -> None:
    log.info(
        "experts of %s x %s in %s are computed one by one: a grouped product takes sizes by 16 "
        "bytes and no fp64",
        *size,
        str(dtype).removeprefix("torch."),
    )


def looped_linear(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """`grouped_linear` by its definition: what it is held to, and what takes any size."""
    groups = zip(x_ND.split(counts_E.tolist()), weight_EFD.unbind(0), strict=True)
    return torch.cat([F.linear(rows, weight) for rows, weight in groups])


Compute = Callable[[Tensor, Tensor], Tensor]
"""Rows sorted by expert and the number of each expert's -> answers in the same order."""


def compute_here(rows: Tensor, counts_E: Tensor, compute: Compute) -> Tensor:
    """What `Experts.exchange` is where a rank holds all experts."""
    return compute(rows, counts_E)


class Experts(nn.Module):
    """All experts' feed-forwards as stacked weights, computed in one grouped product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.count = config.num_experts
        self.d_model, self.width = d, width = config.d_model, config.feedforward_width
        self.gated = config.use_swiglu
        self.activation = ACTIVATIONS[config.activation or "gelu"]
        self.input = nn.Parameter(torch.empty(self.count, 2 if self.gated else 1, width, d))
        self.output = nn.Parameter(torch.empty(self.count, d, width))
        self.exchange: Callable[[Tensor, Tensor, Compute], Tensor] = compute_here
        """Brings sorted rows to where their experts are, and the answers back."""

    def initial(self) -> Mapping[str, Init]:
        return {
            "input": Init(std=self.d_model**-0.5, stacked=True),
            "output": Init(std=self.width**-0.5, stacked=True),
        }

    def forward(
        self, x_ND: Tensor, chosen_NK: Tensor, gates_NK: Tensor, complete: bool = True
    ) -> Tensor:
        """y_n = sum_k gate_nk * expert_{chosen_nk}(x_n).

        A choice of expert number `count` is none; `complete` says that there is no such choice.
        """
        order = Order.by_expert(chosen_NK)
        counts_E = torch.bincount(chosen_NK.flatten(), minlength=self.count)[: self.count]
        rows: Tensor = _Dispatch.apply(x_ND, order)
        if complete:
            answers = self.exchange(rows, counts_E, self.compute)
        else:
            taken = int(counts_E.sum())
            none = rows.new_zeros(len(rows) - taken, rows.shape[1])
            answers = torch.cat([self.exchange(rows[:taken], counts_E, self.compute), none])
        y_ND: Tensor = _Combine.apply(answers, gates_NK, order)
        return y_ND

    def compute(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows sorted by expert, `counts` of them for each that is held here."""
        hidden = grouped_linear(rows, self.input.flatten(1, 2), counts)
        hidden = gated_swish(hidden) if self.gated else self.activation(hidden)
        return grouped_linear(hidden, self.output, counts)


class MixtureOfExperts(nn.Module):
    """A router, its experts, and a shared expert that every token goes to where there is one."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        self.shared = make_feed_forward(config) if config.shared_expert else None
        self.capacity_factor = config.capacity_factor
        self.balance_weight, self.z_weight = config.balance_loss, config.z_loss
        self.loss_scale = 1.0
        """1 / accumulated micro-batches: what the main loss is scaled by before its backward."""
        self.statistics: RouterStatistics | None = None

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x [B, T, D]; padding [B, T] bool, True where losses and statistics look away."""
        routing = self.router(x)
        chosen_NK, gates_NK = routing.chosen.flatten(0, 1), routing.gates.flatten(0, 1)
        kept = self._kept(routing.chosen, padding)
        if kept is not None:
            kept_NK = kept.flatten(0, 1)
            chosen_NK = chosen_NK.where(kept_NK, self.experts.count)
            gates_NK = gates_NK * kept_NK
        y = self.experts(x.flatten(0, 1), chosen_NK, gates_NK, complete=kept is None).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        if self.training and torch.is_grad_enabled():
            loss = self._auxiliary_loss(routing, padding)
            if not is_recomputing():
                self._count(routing, kept, padding, loss)
            y = _AttachLoss.apply(y, loss.mean(), self.loss_scale)
        return y

    def _kept(self, chosen: Tensor, padding: Tensor | None) -> Tensor | None:
        if self.capacity_factor is None:
            return None
        return within_capacity(chosen, self.experts.count, self.capacity_factor, padding)

    def _auxiliary_loss(self, routing: Routing, padding: Tensor | None) -> Tensor:
        """The weighted losses of each row, [B]."""
        loss = self.balance_weight * balance_loss(routing.scores, routing.chosen, padding)
        if self.z_weight:
            loss = loss + self.z_weight * z_loss(routing.logits, padding)
        return loss

    @torch.no_grad()
    def _count(
        self, routing: Routing, kept: Tensor | None, padding: Tensor | None, loss: Tensor
    ) -> None:
        valid = torch.ones_like(routing.chosen[..., 0], dtype=torch.float64)
        if padding is not None:
            valid = (~padding).double()
        weights = valid.unsqueeze(-1).expand(routing.chosen.shape)
        experts = routing.scores.shape[-1]
        entropy = torch.special.entr(normalised(routing.scores)).sum(-1)
        seen = RouterStatistics(
            counts_E=torch.bincount(routing.chosen.flatten(), weights.flatten(), experts),
            dropped=weights.sum() - (weights if kept is None else weights * kept).sum(),
            entropy=(entropy * valid).sum(),
            tokens=valid.sum(),
            loss=loss.double().sum(),
            rows=valid.new_tensor(float(len(loss))),
        )
        if self.statistics is None:
            self.statistics = RouterStatistics.zeros(experts, loss.device)
        self.statistics.add(seen)

    def take_statistics(self) -> RouterStatistics | None:
        """The sums since the last call, and start anew."""
        statistics, self.statistics = self.statistics, None
        return statistics
