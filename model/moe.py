"""Mixture of experts: a router sends each token to its top-k experts.

Every quantity is defined per sample, so that nothing depends on how samples are grouped into
micro-batches. Shapes: N tokens, K choices per token, E experts, D = d_model, F hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TransformerConfig
from model.feedforward import ACTIVATIONS
from model.init import Init
from model.recompute import is_recomputing


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
    if all(size % alignment == 0 for size in weight_EFD.shape[1:]):
        offsets = counts_E.cumsum(0, dtype=torch.int32)
        return F.grouped_mm(x_ND, weight_EFD.transpose(1, 2), offs=offsets)
    groups = zip(x_ND.split(counts_E.tolist()), weight_EFD.unbind(0), strict=True)
    return torch.cat([F.linear(rows, weight) for rows, weight in groups])


class Experts(nn.Module):
    """All experts' feed-forwards as stacked weights, computed in one grouped product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        experts, d, width = config.num_experts, config.d_model, config.feedforward_width
        self.gated = config.use_swiglu
        self.activation = ACTIVATIONS[config.activation or ("swish" if self.gated else "gelu")]
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
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(hidden)
        return grouped_linear(hidden, self.output, counts_E)


@dataclass
class RouterStatistics:
    """Sums over the rows (sequences) that were routed since the last reset."""

    counts_E: Tensor
    """Tokens sent to each expert."""
    balance: Tensor
    """Sum over rows of each row's weighted balance loss."""
    rows: Tensor

    @classmethod
    def zeros(cls, experts: int, device: torch.device) -> RouterStatistics:
        return cls(*(torch.zeros(n, dtype=torch.float64, device=device) for n in (experts, 1, 1)))


class Router(nn.Module):
    """Scores each token against each expert, in fp32, and picks the top k."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))

    def initial(self) -> Mapping[str, Init]:
        return {"weight": Init(std=self.weight.shape[1] ** -0.5)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] -> probabilities [B, T, E], gates [B, T, K] that add to one, experts."""
        with torch.autocast(x.device.type, enabled=False):
            probability = F.linear(x.float(), self.weight.float()).softmax(-1)
        top, chosen = probability.topk(self.top_k, dim=-1)
        return probability, top / top.sum(-1, keepdim=True), chosen


def balance_loss(probability: Tensor, chosen: Tensor, mask: Tensor | None) -> Tensor:
    """Load-balancing loss of each row (Fedus et al. 2021, eq. 4, over one sequence's tokens).

    E * sum_e f_e P_e, with f_e the share of choices that fell on expert e and P_e its mean
    probability: 1 when balanced, up to E when one expert takes all.

    Shapes: probability [B, T, E], chosen [B, T, K], mask [B, T] -> [B].
    """
    batch, length, experts = probability.shape
    weight = probability.new_ones(batch, length) if mask is None else mask.to(probability.dtype)
    weight = (weight / weight.sum(-1, keepdim=True).clamp(min=1.0)).unsqueeze(-1)
    share = F.one_hot(chosen, experts).sum(2) / chosen.shape[-1]
    return experts * ((share * weight).sum(1) * (probability * weight).sum(1)).sum(-1)


class MixtureOfExperts(nn.Module):
    """y_n = sum_k gate_nk * expert_{chosen_nk}(x_n), dropless."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        self.balance_weight = config.balance_loss
        self.loss_scale = 1.0
        """1 / accumulated micro-batches: what the main loss is scaled by before its backward."""
        self.statistics: RouterStatistics | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, D]; mask [B, T] bool keeps padding out of the loss and the statistics."""
        probability, gates, chosen = self.router(x)
        y = self._dispatch(x.flatten(0, 1), gates.flatten(0, 1), chosen.flatten(0, 1)).view_as(x)
        if self.training and torch.is_grad_enabled():
            balance = self.balance_weight * balance_loss(probability, chosen, mask)
            if not is_recomputing():
                self._count(chosen, mask, balance)
            y = _AttachLoss.apply(y, balance.mean(), self.loss_scale)
        return y

    def _dispatch(self, x_ND: Tensor, gates_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        tokens, choices = chosen_NK.shape
        flat = chosen_NK.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=order.device)
        )
        counts_E = torch.bincount(flat, minlength=self.router.weight.shape[0])
        repeated = x_ND.unsqueeze(1).expand(-1, choices, -1).reshape(tokens * choices, -1)
        answers = self.experts(_Permute.apply(repeated, order, inverse), counts_E)
        answers_NKD = _Permute.apply(answers, inverse, order).view(tokens, choices, -1)
        return (answers_NKD * gates_NK.unsqueeze(-1).to(answers.dtype)).sum(1)

    @torch.no_grad()
    def _count(self, chosen: Tensor, mask: Tensor | None, balance: Tensor) -> None:
        experts = self.router.weight.shape[0]
        if self.statistics is None:
            self.statistics = RouterStatistics.zeros(experts, chosen.device)
        weights = None if mask is None else mask.unsqueeze(-1).expand_as(chosen).flatten().double()
        self.statistics.counts_E += torch.bincount(chosen.flatten(), weights, minlength=experts)
        self.statistics.balance += balance.sum().double()
        self.statistics.rows += len(balance)

    def take_statistics(self) -> RouterStatistics | None:
        """The sums since the last call, and start anew."""
        statistics, self.statistics = self.statistics, None
        return statistics
