"""The router of a mixture of experts: its choices, their balance, and their losses.

Every quantity is defined per row (a sequence of one sample), so that nothing depends on how
samples are grouped into micro-batches. Shapes: B rows, T tokens of a row, K choices per token, E
experts, D = d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TransformerConfig
from model.init import Init, start_parameters


class RoutedPass(NamedTuple):
    """What one forward pass in training adds to a layer's statistics."""

    counts_BE: Tensor
    """Choices of each row's tokens that fell on each expert, [B, E]."""
    accepted: Tensor | None
    """Number of choices that found room; None where none can be dropped."""
    entropy: Tensor
    """Sum over tokens of the entropy of the router's scores, in nats, fp64."""
    loss_B: Tensor
    """Weighted auxiliary loss of each row."""


@dataclass
class RouterStatistics:
    """Sums over the tokens routed in training since the last reset; padding is left out."""

    counts_E: Tensor
    """Number of choices of each expert, dropped ones included."""
    dropped: Tensor
    """Number of choices whose expert was full."""
    entropy: Tensor
    """Sum over tokens of the entropy of the router's scores, in nats."""
    tokens: Tensor
    """Number of tokens."""
    loss: Tensor
    """Sum over rows of the weighted auxiliary losses."""
    rows: Tensor
    """Number of rows."""

    @classmethod
    def of_passes(cls, passes: Sequence[RoutedPass], top_k: int) -> RouterStatistics:
        """Return the sums over some forward passes of one layer."""
        counts_E = torch.cat([one.counts_BE for one in passes]).sum(0).double()
        loss_B = torch.cat([one.loss_B for one in passes])
        choices = counts_E.sum()
        accepted = [one.accepted for one in passes if one.accepted is not None]
        return cls(
            counts_E=counts_E,
            dropped=choices - torch.stack(accepted).sum() if accepted else choices.new_zeros(()),
            entropy=torch.stack([one.entropy for one in passes]).sum(),
            tokens=choices / top_k,
            loss=loss_B.sum(dtype=torch.float64),
            rows=choices.new_full((), len(loss_B)),
        )

    def __add__(self, other: RouterStatistics) -> RouterStatistics:
        """Return the sums over both."""
        return RouterStatistics.of_flat(self.flat() + other.flat())

    def flat(self) -> Tensor:
        """Return all sums as one vector [E + 5], so that one collective sums over ranks."""
        others = (getattr(self, field.name) for field in fields(self)[1:])
        return torch.cat([self.counts_E, torch.stack([one.reshape(()) for one in others])])

    @classmethod
    def of_flat(cls, values: Tensor) -> RouterStatistics:
        """Return the statistics that `flat` made a vector of."""
        return cls(*values.split([len(values) - 5, 1, 1, 1, 1, 1]))


class Routing(NamedTuple):
    """The router's choices for each token."""

    scores: Tensor
    """Scores of all experts, [B, T, E] fp32; with softmax they sum to one."""
    logits: Tensor
    """Logits of all experts, [B, T, E] fp32."""
    gates: Tensor
    """Gates of the chosen experts, [B, T, K] fp32; where K > 1 they sum to one before any choice
    is dropped."""
    chosen: Tensor
    """Numbers of the chosen experts, [B, T, K]."""


class Router(nn.Module):
    """Scores each token against each expert, in fp32, and chooses the top k."""

    bias: Tensor
    """Bias on the choice of each expert, [E]; None without `balance_rate`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.top_k, self.score, self.noise = config.top_k, config.router_score, config.router_noise
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))
        self.balance_rate = config.balance_rate
        bias = torch.zeros(config.num_experts)
        self.register_buffer("bias", bias if config.balance_rate else None)
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {"weight": Init(std=self.weight.shape[1] ** -0.5), "bias": Init()}

    def _apply(self, fn: Any, recurse: bool = True) -> Router:
        """Apply `fn` as usual, but keep the bias in fp32 where weights become bf16.

        Its steps are smaller than bf16 can represent.
        """
        super()._apply(fn, recurse)
        if self.bias is not None and self.bias.is_floating_point():
            self.bias = self.bias.float()
        return self

    def forward(self, x: Tensor) -> Routing:
        """Route the tokens x [B, T, D]."""
        precise = x.double() if x.dtype == torch.float64 else x.float()
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(precise, self.weight.to(precise.dtype))
        if self.training and self.noise:
            logits = logits + self.noise * torch.randn_like(logits)
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        choice = scores if self.bias is None else scores + self.bias
        chosen = choice.topk(self.top_k, dim=-1).indices
        gates = scores.gather(-1, chosen)
        if self.top_k > 1:  # a single score divided by itself would have no gradient
            gates = normalised(gates)
        return Routing(scores, logits, gates, chosen)

    @torch.no_grad()
    def rebalance(self, counts_E: Tensor) -> None:
        """Move the bias towards balance (Wang et al. 2024, algorithm 1).

        It is called once per optimizer step with the global batch's counts.
        """
        if self.bias is not None:
            counts_E = counts_E.to(self.bias)
            self.bias += self.balance_rate * (counts_E.mean() - counts_E).sign()


def normalised(scores: Tensor) -> Tensor:
    """Return scores divided by their sum over the last dimension; zeros where all underflowed."""
    return scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def choice_counts(chosen: Tensor, experts: int, padding: Tensor | None) -> Tensor:
    """Return how many choices of each row's valid tokens fell on each expert.

    Shapes: chosen [B, T, K], padding [B, T] -> [B, E] int64.
    """
    counts_BE = chosen.new_zeros(len(chosen), experts)
    if padding is None:
        return counts_BE.scatter_add_(1, chosen.flatten(1), torch.ones_like(chosen).flatten(1))
    valid = (~padding).long().unsqueeze(-1).expand_as(chosen)
    return counts_BE.scatter_add_(1, chosen.flatten(1), valid.flatten(1))


def token_mean(values: Tensor, padding: Tensor | None) -> Tensor:
    """Return the mean over each row's valid tokens, 0 for a row without any.

    Shapes: values [B, T, ...], padding [B, T] -> [B, ...].
    """
    if padding is None:
        return values.mean(1)
    weight = (~padding).to(values.dtype)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1.0)
    return torch.einsum("bt,bt...->b...", weight, values)


def balance_loss(share_BTE: Tensor, counts_BE: Tensor, padding: Tensor | None) -> Tensor:
    """Return the load-balancing loss of each row (Fedus et al. 2021, eq. 4, over one sequence).

    It is E * sum_e f_e P_e, with f_e the share of choices that fell on expert e and P_e its mean
    share of the scores: 1 when balanced, up to E when one expert is always chosen.

    Shapes: share_BTE of each token's scores, counts_BE of choices, padding [B, T] -> [B].
    """
    experts = counts_BE.shape[1]
    chosen_BE = counts_BE.to(share_BTE.dtype)
    chosen_BE = chosen_BE * (experts / chosen_BE.sum(-1, keepdim=True).clamp(min=1.0))
    return (chosen_BE * token_mean(share_BTE, padding)).sum(-1)


def z_loss(logits: Tensor, padding: Tensor | None) -> Tensor:
    """Return the mean squared log-partition of each row (Zoph et al. 2022, eq. 5).

    Shapes: logits [B, T, E], padding [B, T] -> [B].
    """
    return token_mean(logits.logsumexp(-1).square(), padding)


def within_capacity(chosen: Tensor, experts: int, factor: float, padding: Tensor | None) -> Tensor:
    """Return which choices fit into their experts' capacity, [B, T, K] bool.

    In each row an expert accepts choices in the order of the tokens, up to `factor` times an even
    share of the row's valid tokens. Choices of padding are not accepted and do not count.
    """
    rows, length, choices = chosen.shape
    valid = chosen.new_full((rows,), length) if padding is None else (~padding).sum(1)
    capacity = (valid.double() * (factor * choices / experts)).ceil().view(rows, 1)
    every = torch.arange(experts, device=chosen.device)
    one_hot = (chosen.flatten(1).unsqueeze(-1) == every).long()
    if padding is not None:
        one_hot = one_hot * (~padding).repeat_interleave(choices, 1).unsqueeze(-1)
    # The position of a choice among those of its expert in the row, from 1.
    position = one_hot.cumsum(1).gather(-1, chosen.flatten(1).unsqueeze(-1)).squeeze(-1)
    kept = (position <= capacity).view_as(chosen)
    return kept if padding is None else kept & ~padding.unsqueeze(-1)
