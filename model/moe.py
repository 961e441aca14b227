"""Mixture of experts: each token is computed by the experts that the router sends it to.

Shapes: B rows, T tokens of a row, N = B * T, K choices per token, E experts, D = d_model, F hidden
width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
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
    within_capacity,
    z_loss,
)


class _Permute(torch.autograd.Function):
    """x[order] whose backward is a gather too: no atomics, so runs are bit-equal on GPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0][inverse], None, None


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
    alignment = 16 // x_ND.element_size()
    if x_ND.dtype != torch.float64 and not any(n % alignment for n in weight_EFD.shape[1:]):
        offsets = counts_E.cumsum(0, dtype=torch.int32)
        return F.grouped_mm(x_ND, weight_EFD.transpose(1, 2), offs=offsets)
    return looped_linear(x_ND, weight_EFD, counts_E)


def looped_linear(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """`grouped_linear` by its definition: what it is held to, and what takes any size."""
    groups = zip(x_ND.split(counts_E.tolist()), weight_EFD.unbind(0), strict=True)
    return torch.cat([F.linear(rows, weight) for rows, weight in groups])


class Experts(nn.Module):
    """All experts' feed-forwards as stacked weights, computed in one grouped product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        experts, d, width = config.num_experts, config.d_model, config.feedforward_width
        self.gated = config.use_swiglu
        self.activation = ACTIVATIONS[config.activation or "gelu"]
        self.input = nn.Parameter(torch.empty(experts, 2 if self.gated else 1, width, d))
        self.output = nn.Parameter(torch.empty(experts, d, width))

    def initial(self) -> Mapping[str, Init]:
        _, d, width = self.output.shape
        return {
            "input": Init(std=d**-0.5, stacked=True),
            "output": Init(std=width**-0.5, stacked=True),
        }

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Rows sorted by expert, counts_E of them for each -> rows in the same order."""
        hidden = grouped_linear(x_ND, self.input.flatten(1, 2), counts_E)
        hidden = gated_swish(hidden) if self.gated else self.activation(hidden)
        return grouped_linear(hidden, self.output, counts_E)


class MixtureOfExperts(nn.Module):
    """y_n = sum_k gate_nk * expert_{chosen_nk}(x_n), beside what a shared expert adds."""

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
        kept = self._kept(routing.chosen, padding)
        y = self._dispatch(x.flatten(0, 1), routing, kept).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        if self.training and torch.is_grad_enabled():
            loss = self._auxiliary_loss(routing, padding)
            if not is_recomputing():
                self._count(routing, kept, padding, loss)
            y = _AttachLoss.apply(y, loss.mean(), self.loss_scale)
        return y

    def capacity(self, length: int) -> int | None:
        """Choices that an expert takes of a row of `length` tokens; None: all."""
        if self.capacity_factor is None:
            return None
        even = length * self.router.top_k / self.router.weight.shape[0]
        return math.ceil(self.capacity_factor * even)

    def _kept(self, chosen: Tensor, padding: Tensor | None) -> Tensor | None:
        capacity = self.capacity(chosen.shape[1])
        if capacity is None:
            return None
        return within_capacity(chosen, self.router.weight.shape[0], capacity, padding)

    def _dispatch(self, x_ND: Tensor, routing: Routing, kept: Tensor | None) -> Tensor:
        experts, choices = self.router.weight.shape[0], self.router.top_k
        flat = routing.chosen.flatten()
        gates_NK = routing.gates.flatten(0, 1)
        if kept is not None:
            # Dropped choices come last, belong to no expert and have no gate.
            flat = flat.where(kept.flatten(), experts)
            gates_NK = gates_NK * kept.flatten(0, 1)
        order = flat.argsort(stable=True)
        places = torch.arange(len(order), device=order.device)
        inverse = torch.empty_like(order).scatter_(0, order, places)
        counts_E = torch.bincount(flat, minlength=experts)[:experts]
        repeated = x_ND.unsqueeze(1).expand(-1, choices, -1).reshape(len(order), -1)
        sorted_rows = _Permute.apply(repeated, order, inverse)
        if kept is None:
            answers = self.experts(sorted_rows, counts_E)
        else:
            taken = int(counts_E.sum())
            none = sorted_rows.new_zeros(len(order) - taken, sorted_rows.shape[1])
            answers = torch.cat([self.experts(sorted_rows[:taken], counts_E), none])
        answers_NKD = _Permute.apply(answers, inverse, order).view(len(x_ND), choices, -1)
        return (answers_NKD * gates_NK.unsqueeze(-1).to(answers.dtype)).sum(1)

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
        probability = routing.scores / routing.scores.sum(-1, keepdim=True)
        entropy = torch.special.entr(probability).sum(-1)
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
