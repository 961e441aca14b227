"""The experts of a mixture: tokens are dispatched to them, computed, and their outputs combined.

Tokens are dispatched, that is, copied for each choice and sorted by expert, and the experts'
outputs are combined by the router's gates. Shapes: N tokens, K choices per token, E experts,
D = d_model, F hidden width.
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

from model.adapters import adapted, make_adapters
from model.config import TransformerConfig
from model.feedforward import ACTIVATIONS, gated_swish
from model.fused import fused_for
from model.init import Init, start_parameters
from model.recompute import remembered
from model.tracing import is_traced

log = logging.getLogger("forescale")


@dataclass(frozen=True)
class Permutation:
    """The order of the K choices of N tokens once they are sorted by expert."""

    choice_of_row: Tensor
    """Choice of each sorted row, counted token by token, [N * K]."""
    row_of_choice_NK: Tensor
    """Sorted row of each choice, [N, K]."""
    token_of_row: Tensor
    """Token of each sorted row, [N * K]."""
    counts_E: Tensor
    """Number of choices of each expert, [E]; those of no expert come last and are left out."""

    @classmethod
    def by_expert(cls, chosen_NK: Tensor, experts: int) -> Permutation:
        """Return the permutation that sorts the choices `chosen_NK` by expert, stably.

        Choices of expert number `experts` are of none.
        """
        expert_of_row, choice_of_row = chosen_NK.flatten().sort(stable=True)
        rows = torch.arange(choice_of_row.shape[0], device=choice_of_row.device)
        row_of_choice = torch.empty_like(choice_of_row).scatter_(0, choice_of_row, rows)
        # Not bincount, which waits for the device to know its size.
        edges = torch.arange(experts + 1, device=chosen_NK.device)
        counts = torch.searchsorted(expert_of_row, edges).diff()
        token_of_row = choice_of_row.div(chosen_NK.shape[1], rounding_mode="floor")
        return cls(choice_of_row, row_of_choice.view_as(chosen_NK), token_of_row, counts)


class _Dispatch(torch.autograd.Function):
    """Copies x [N, D] into a row for each choice, sorted by expert, [N * K, D].

    This and `_Combine` only gather, forwards and backwards: no atomics, so runs are bit-equal on
    GPUs.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, permutation: Permutation) -> Tensor:
        ctx.permutation = permutation
        return x_ND.index_select(0, permutation.token_of_row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        return _gathered_sum(gradient, ctx.permutation.row_of_choice_NK), None


class _Combine(torch.autograd.Function):
    """Computes y_n = sum_k gate_nk * output_nk from the experts' outputs in sorted rows."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, gates_NK: Tensor, permutation: Permutation) -> Tensor:
        ctx.permutation = permutation
        ctx.save_for_backward(outputs, gates_NK)
        return _gathered_sum(outputs, permutation.row_of_choice_NK, gates_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        outputs, gates_NK = ctx.saved_tensors
        permutation: Permutation = ctx.permutation
        fused = fused_for(outputs)
        if fused is not None:
            gradient = gradients[0].contiguous()
            choice_of_row = permutation.choice_of_row
            both = fused.scattered_product(gradient, outputs, choice_of_row, gates_NK.contiguous())
            return *both, None
        rows = gradients[0].index_select(0, permutation.token_of_row)
        grad_gates = (rows * outputs).sum(-1, dtype=gates_NK.dtype)
        gate_of_row = gates_NK.flatten().index_select(0, permutation.choice_of_row)
        grad_outputs = rows.mul_(gate_of_row.unsqueeze(-1).to(rows.dtype))
        return grad_outputs, grad_gates[permutation.row_of_choice_NK], None


def _gathered_sum(rows: Tensor, index_NK: Tensor, gates_NK: Tensor | None = None) -> Tensor:
    """Return y_n = sum_k gates_nk * rows[index_nk], [N, D]; without gates they count as one."""
    fused = fused_for(rows)
    if fused is not None:
        gates = None if gates_NK is None else gates_NK.contiguous()
        y: Tensor = fused.gathered_sum(rows, index_NK, gates)
        return y
    if gates_NK is None:
        first, *others = index_NK.unbind(1)
        y_ND = rows.index_select(0, first)
        for index in others:
            y_ND += rows.index_select(0, index)
        return y_ND
    y_ND = rows.new_zeros(len(index_NK), rows.shape[1])
    for index, gates in zip(index_NK.unbind(1), gates_NK.split(1, 1), strict=True):
        y_ND.addcmul_(rows.index_select(0, index), gates.to(rows.dtype))
    return y_ND


def dispatch(x_ND: Tensor, permutation: Permutation) -> Tensor:
    """Return a row for each choice, sorted by expert, [N * K, D]."""
    if is_traced():
        return x_ND[permutation.token_of_row]
    rows: Tensor = _Dispatch.apply(x_ND, permutation)
    return rows


def combine(outputs: Tensor, gates_NK: Tensor, permutation: Permutation) -> Tensor:
    """Return y_n = sum_k gate_nk * output_nk from the experts' outputs in sorted rows, [N, D]."""
    if is_traced():
        chosen = outputs[permutation.row_of_choice_NK]
        return (chosen * gates_NK.to(outputs.dtype).unsqueeze(-1)).sum(1)
    y_ND: Tensor = _Combine.apply(outputs, gates_NK, permutation)
    return y_ND


def grouped_linear(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply consecutive groups of rows, counts_E of them each, with each expert's weight.

    x_ND [rows, D], weight_EFD [E, F, D] -> [rows, F].
    """
    if torch.is_autocast_enabled(x_ND.device.type):  # autocast does not cover grouped products
        dtype = torch.get_autocast_dtype(x_ND.device.type)
        x_ND, weight_EFD = x_ND.to(dtype), weight_EFD.to(dtype)
    if torch.compiler.is_compiling() and x_ND.dtype != torch.bfloat16:
        return masked_linear(x_ND, weight_EFD, counts_E)  # compilers know the others in bf16 only
    alignment = 16 // x_ND.element_size()
    if x_ND.dtype != torch.float64 and not any(n % alignment for n in weight_EFD.shape[1:]):
        offsets = counts_E.cumsum(0, dtype=torch.int32)
        return F.grouped_mm(x_ND, weight_EFD.transpose(1, 2), offs=offsets)
    if is_traced():
        return masked_linear(x_ND, weight_EFD, counts_E)
    _warn_once(weight_EFD.shape[1:], x_ND.dtype)
    return looped_linear(x_ND, weight_EFD, counts_E)


@cache
def _warn_once(size: torch.Size, dtype: torch.dtype) -> None:
    """Warn that experts of this size are slow, once for each size and type."""
    log.warning(
        "experts of %s x %s in %s are computed one by one: a grouped product takes sizes by 16 "
        "bytes and no fp64",
        *size,
        str(dtype).removeprefix("torch."),
    )


def looped_linear(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Compute `grouped_linear` by its definition, one expert after another, for any size."""
    groups = zip(x_ND.split(counts_E.tolist()), weight_EFD.unbind(0), strict=True)
    return torch.cat([F.linear(rows, weight) for rows, weight in groups])


def masked_linear(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Compute `grouped_linear` with no size that depends on data: each expert computes all rows."""
    ends = counts_E.cumsum(0)
    row = torch.arange(x_ND.shape[0], device=x_ND.device)
    y = x_ND.new_zeros(x_ND.shape[0], weight_EFD.shape[1])
    for weight, count, end in zip(weight_EFD, counts_E, ends, strict=True):
        is_here = (row < end) & (row >= end - count)
        y = y + F.linear(x_ND, weight) * is_here.unsqueeze(-1)
    return y


Compute = Callable[[Tensor, Tensor], Tensor]
"""Computation of experts: takes rows sorted by expert and the number of rows of each, and returns
their outputs in the same order."""


Exchange = Callable[[Tensor, Tensor, Compute, bool, Callable[[], None]], Tensor]
"""Sends sorted rows to the ranks of their experts, and returns outputs.

It takes the rows, the number of rows of each expert, the computation, whether every row is some
expert's, and what is computed beside the sending. If not every row is, the last ones are of none,
and the outputs end before them.
"""


def compute_locally(
    rows: Tensor,
    counts_E: Tensor,
    compute: Compute,
    complete: bool,
    beside: Callable[[], None],
) -> Tensor:
    """Compute all rows on this rank: the `Experts.exchange` of a rank that holds all experts."""
    beside()
    return compute(rows if complete else rows[: int(counts_E.sum())], counts_E)


class Experts(nn.Module):
    """The feed-forwards of all experts: stacked weights, computed in one grouped product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.count = config.num_experts
        self.d_model, self.width = d, width = config.d_model, config.feedforward_width
        self.gated = config.use_swiglu
        self.activation = ACTIVATIONS[config.activation or "gelu"]
        self.input = nn.Parameter(torch.empty(self.count, 2 if self.gated else 1, width, d))
        self.output = nn.Parameter(torch.empty(self.count, d, width))
        matrices = {"input": 1, "output": 1}
        self.adapters = make_adapters(config, self, matrices, grouped_linear)
        self.exchange: Exchange = compute_locally
        start_parameters(self)

    def initial(self) -> Mapping[str, Init]:
        """Return how the module's own parameters start, by name."""
        return {
            "input": Init(std=self.d_model**-0.5),
            "output": Init(std=self.width**-0.5),
        }

    def forward(
        self,
        x_ND: Tensor,
        chosen_NK: Tensor,
        gates_NK: Tensor,
        complete: bool = True,
        beside: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Return y_n = sum_k gate_nk * expert_{chosen_nk}(x_n), [N, D].

        Expert number `count` stands for a dropped choice, whose output is zero; `complete` says
        that there is none. `beside` is called once, while rows are sent where they are sent.
        """
        permutation = remembered(lambda: Permutation.by_expert(chosen_NK, self.count))
        rows = dispatch(x_ND, permutation)
        outputs = self.exchange(rows, permutation.counts_E, self.compute, complete, beside)
        if not complete:
            dropped = outputs.new_zeros(len(rows) - len(outputs), outputs.shape[1])
            outputs = torch.cat([outputs, dropped])
        return combine(outputs, gates_NK, permutation)

    def compute(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Compute rows sorted by expert, `counts` of them for each expert of this rank."""
        hidden = grouped_linear(rows, self.input.flatten(1, 2), counts)
        hidden = adapted(self.adapters, "input", hidden, rows, counts)
        hidden = gated_swish(hidden) if self.gated else self.activation(hidden)
        outputs = grouped_linear(hidden, self.output, counts)
        return adapted(self.adapters, "output", outputs, hidden, counts)
