"""Measures a training step of one mixture of experts against the usual ways to write it.

    .venv/bin/python -m benchmarks.moe

64 SwiGLU experts of 128 -> 256 -> 128, top-2, 2048 tokens, fp32, forward and backward. All variants
have the same weights, and the script stops if one that drops nothing computes something else:

- looped_linear: our layer, but one product for each expert, on weights unbound once;
- w[i]: the same on weights indexed in the loop, whose backward writes a whole stack for each;
- masks: a ModuleList of experts that gather by mask and return by index_add, as in transformers'
  Mixtral and most public code;
- DeepSpeed: deepspeed.moe.layer.MoE on one rank, with room for all tokens (drop_tokens=False), and
  with room for twice an even share per expert, where it may drop some.

Ours counts statistics and has a balance loss, DeepSpeed a balance loss, masks neither.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from benchmarks.swiglu import PlainSwiGLU
from benchmarks.timing import arguments_of, medians, print_header, print_table
from model import moe
from model.config import TransformerConfig
from model.experts import looped_linear
from model.init import initialise

TOP_K = 2
LIMITS = {
    "looped_linear": (5, 1e-6),
    "w[i]": (5, 1e-6),
    "masks": (2, 1e-6),
    "DeepSpeed, nothing dropped": (1, 1e-6),
}
"""For each variant, how many tensors are compared with ours, and their largest relative error. The
tensors are the output, the gradient of x, and those of our three weights."""

Step = Callable[[], list[Tensor | None]]
GroupedLinear = Callable[[Tensor, Tensor, Tensor], Tensor]
Forward = Callable[[Tensor], tuple[Tensor, ...]]
"""A forward pass from x to the output, and to a balance loss that is not attached to it."""


def indexed_linear(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Compute `looped_linear` with weight[i]."""
    groups = enumerate(x_ND.split(counts_E.tolist()))
    return torch.cat([F.linear(rows, weight_EFD[i]) for i, rows in groups])


class MaskedExperts(nn.Module):
    """A mixture that loops over its experts, each of which looks for its tokens."""

    def __init__(self, d_model: int, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, experts, bias=False)
        self.experts = nn.ModuleList([PlainSwiGLU(d_model, width) for _ in range(experts)])

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.flatten(0, -2)
        gates, chosen = self.router(x_ND).softmax(-1).topk(TOP_K, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        masks = F.one_hot(chosen, len(self.experts)).permute(2, 1, 0)
        output = torch.zeros_like(x_ND)
        for mask, expert in zip(masks, self.experts, strict=True):
            choice, tokens = torch.where(mask)
            rows = expert(x_ND[tokens]) * gates[tokens, choice, None]
            output.index_add_(0, tokens, rows)
        return output.view_as(x)


def copy_weights(ours: moe.MixtureOfExperts, router: nn.Linear, experts: Iterable[Any]) -> None:
    """Copy our weights into another router and other experts."""
    with torch.no_grad():
        router.weight.copy_(ours.router.weight)
        for i, expert in enumerate(experts):
            expert.gate.weight.copy_(ours.experts.input[i, 0])
            expert.value.weight.copy_(ours.experts.input[i, 1])
            expert.output.weight.copy_(ours.experts.output[i])


def deepspeed_layer(ours: moe.MixtureOfExperts, drop_tokens: bool) -> nn.Module:
    """Return DeepSpeed's layer with our weights, on one rank."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with redirect_stdout(sys.stderr):
        import deepspeed
        from deepspeed.moe.layer import MoE

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel("ERROR")
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        experts, _, width, d_model = ours.experts.input.shape
        layer = MoE(
            d_model,
            PlainSwiGLU(d_model, width),
            num_experts=experts,
            ep_size=1,
            k=TOP_K,
            capacity_factor=2.0,
            drop_tokens=drop_tokens,
            top2_2nd_expert_sampling=False,
        )
        layer.set_deepspeed_parallelism()
    inner = layer.deepspeed_moe
    copy_weights(ours, inner.gate.wg, inner.experts.deepspeed_experts)
    return layer


def step(forward: Forward, layer: nn.Module, x: Tensor, upstream: Tensor) -> Step:
    """Return the work to measure: forward and backward.

    The work returns the output, and the gradients of x and of the weights.
    """
    inputs = [x, *layer.parameters()]

    def work() -> list[Tensor | None]:
        output, *losses = forward(x)
        outputs, ones = [output, *losses], [torch.ones_like(loss) for loss in losses]
        gradients = torch.autograd.grad(outputs, inputs, [upstream, *ones], allow_unused=True)
        return [output.detach(), *gradients]

    return work


def distances(work: Step, reference: Step) -> list[float]:
    """Return the relative error of each tensor that both have in the same shape."""
    return [
        float(torch.linalg.norm(actual - right) / torch.linalg.norm(right))
        for actual, right in zip(work(), reference(), strict=False)
        if actual is not None and right is not None and actual.shape == right.shape
    ]


def main() -> None:
    rounds, quick = arguments_of(__doc__, rounds=15)
    experts, rows, length = (8, 2, 32) if quick else (64, 8, 256)

    torch.manual_seed(0)
    config = TransformerConfig(
        d_model=128, dim_feedforward=384, use_moe=True, num_experts=experts, top_k=TOP_K
    )
    ours = moe.MixtureOfExperts(config)
    ours.attached_scale = 1.0
    initialise(ours, seed=0)
    x = torch.randn(rows, length, config.d_model, requires_grad=True)
    upstream = torch.randn_like(x)

    def with_product(linear: GroupedLinear) -> Step:
        def forward(x: Tensor) -> tuple[Tensor]:
            with patch("model.experts.grouped_linear", linear):
                return (ours(x),)

        return step(forward, ours, x, upstream)

    masked = MaskedExperts(config.d_model, config.feedforward_width, experts)
    copy_weights(ours, masked.router, masked.experts)
    works = {
        "ours": step(lambda x: (ours(x),), ours, x, upstream),
        "looped_linear": with_product(looped_linear),
        "w[i]": with_product(indexed_linear),
        "masks": step(lambda x: (masked(x),), masked, x, upstream),
    }
    for name, drops in (("DeepSpeed, nothing dropped", False), ("DeepSpeed, capacity 2", True)):
        layer = deepspeed_layer(ours, drops)
        works[name] = step(lambda x, layer=layer: layer(x)[:2], layer, x, upstream)

    print_header(f"Mixture of experts: {experts} experts, {rows * length} tokens")
    ours.balance_weight = 0.0  # the variants' balance losses differ, and so would gradients
    differences = {name: distances(work, works["ours"]) for name, work in works.items()}
    ours.balance_weight = config.balance_loss
    for name, (tensors, limit) in LIMITS.items():
        if not max(differences[name][:tensors]) <= limit:
            raise SystemExit(f"{name} is not the same layer: {differences[name]}")

    seconds = medians(works, rounds=rounds)
    table = []
    for name, value in seconds.items():
        rate, factor = f"{rows * length / value:,.0f}", f"x{value / seconds['ours']:.2f}"
        table.append([name, rate, factor, f"{differences[name][0]:.0e}"])
    print_table(["variant", "tokens/s", "ours is faster by", "output differs by"], table)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
