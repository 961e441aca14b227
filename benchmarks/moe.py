"""Measures a training step of one mixture of experts against the usual ways to write it.

    .venv/bin/python -m benchmarks.moe

SwiGLU experts of 256 -> 512 -> 256, top-2, 4,096 tokens, fp32, forward and backward, for 8 and 64
experts, with even choices and with choices skewed towards one expert. All layers have the same
weights, and the script stops if one that drops nothing computes something else:

- looped_linear: our layer, but one product for each expert;
- HF Mixtral: transformers' layer with its grouped product (extra `bench`);
- masks: a ModuleList of experts that gather by mask and return by index_add, as in most public
  code;
- DeepSpeed: deepspeed.moe.layer.MoE on one rank, with room for all tokens (drop_tokens=False), and
  with room for twice an even share for each expert, where it may drop some. With room for all, 64
  skewed experts would need masks of gigabytes: not measured.

Ours counts statistics and has a balance loss, DeepSpeed a balance loss, the others neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from benchmarks.peers import PlainSwiGLU, copy_weights, deepspeed_layer, mixtral_layer
from benchmarks.timing import arguments_of, medians, print_header, print_table
from model.config import TransformerConfig
from model.experts import looped_linear
from model.init import initialise
from model.moe import MixtureOfExperts

TOP_K = 2
SKEW = 3.0
"""What is added to every token along the first expert's router weight, as a multiple of its unit
vector, where choices are skewed."""
LIMIT = 1e-5
"""Largest relative difference of an output that drops nothing."""

Step = Callable[[], list[Tensor | None]]


class MaskedExperts(nn.Module):
    """A mixture that loops over its experts, each of which looks for its tokens."""

    def __init__(self, ours: MixtureOfExperts) -> None:
        super().__init__()
        experts, _, width, d_model = ours.experts.input.shape
        self.router = nn.Linear(d_model, experts, bias=False)
        self.experts = nn.ModuleList([PlainSwiGLU(d_model, width) for _ in range(experts)])
        copy_weights(ours, self.router, self.experts)

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


def step(layer: nn.Module, x: Tensor, upstream: Tensor) -> Step:
    """Return the work to measure: forward and backward, auxiliary losses included.

    The work returns the output, and the gradients of x and of the weights.
    """
    inputs = [x, *layer.parameters()]

    def work() -> list[Tensor | None]:
        output: Any = layer(x)
        output, *losses = output[:2] if isinstance(output, tuple) else (output,)
        losses = [loss for loss in losses if loss.requires_grad and loss.ndim == 0]
        outputs, ones = [output, *losses], [torch.ones_like(loss) for loss in losses]
        gradients = torch.autograd.grad(outputs, inputs, [upstream, *ones], allow_unused=True)
        return [output.detach(), *gradients]

    return work


class Looped(nn.Module):
    """Our layer, but one product for each expert."""

    def __init__(self, ours: MixtureOfExperts) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        with patch("model.experts.grouped_linear", looped_linear):
            output: Tensor = self.ours(x)
            return output


def layers_beside(ours: MixtureOfExperts, skewed: bool) -> dict[str, nn.Module]:
    """Return the layers that are compared, by name; those of missing packages are left out."""
    layers: dict[str, nn.Module] = {
        "ours": ours,
        "looped_linear": Looped(ours),
        "masks": MaskedExperts(ours),
        "DeepSpeed, capacity 2": deepspeed_layer(ours, TOP_K, drops=True),
    }
    if not skewed or ours.experts.count <= 8:
        layers["DeepSpeed, nothing dropped"] = deepspeed_layer(ours, TOP_K, drops=False)
    try:
        layers["HF Mixtral (grouped_mm)"] = mixtral_layer(ours, TOP_K)
    except ImportError as error:
        print(f"not measured: HF Mixtral ({error})\n")
    return layers


def measure(experts: int, skew: float, rounds: int, quick: bool) -> None:
    """Print the table of one number of experts and one kind of choices."""
    torch.manual_seed(0)
    d_model, tokens, width = (32, 64, 48) if quick else (256, 4096, 768)
    config = TransformerConfig(
        d_model=d_model, dim_feedforward=width, use_moe=True, num_experts=experts, top_k=TOP_K
    )
    ours = MixtureOfExperts(config)
    initialise(ours, seed=0)
    x = torch.randn(8, tokens // 8, d_model)
    if skew:
        first = ours.router.weight[0].detach()
        x = x + skew * first / first.norm()
    x.requires_grad_()
    upstream = torch.randn_like(x)
    layers = layers_beside(ours, bool(skew))
    works = {name: step(layer, x, upstream) for name, layer in layers.items()}
    right = ours(x).detach()
    differences = {
        name: float(torch.linalg.norm(work()[0] - right) / torch.linalg.norm(right))  # type: ignore[operator]
        for name, work in works.items()
    }
    for name, difference in differences.items():
        if "capacity" not in name and not difference <= LIMIT:
            raise SystemExit(f"{name} is not the same layer: it differs by {difference:.1e}")
    ours.take_statistics()
    ours(x)
    statistics = ours.take_statistics()
    assert statistics is not None
    counts = statistics.counts_E
    ours.attached_scale = 1.0
    kind = "skewed" if skew else "balanced"
    print(
        f"### {experts} experts, {kind}: {counts.min():.0f} to {counts.max():.0f} tokens each\n",
        flush=True,
    )
    seconds = medians(works, rounds=rounds)
    print_table(
        ["layer", "ms", "ours is faster by", "output differs by"],
        [
            [
                name,
                f"{1e3 * value:.1f}",
                f"x{value / seconds['ours']:.2f}",
                f"{differences[name]:.0e}",
            ]
            for name, value in seconds.items()
        ],
    )


def main() -> None:
    """Measure each number of experts, balanced and skewed."""
    rounds, quick = arguments_of(__doc__, rounds=9)
    print_header("Mixture of experts")
    for experts in (8, 64):
        for skew in (0.0, SKEW):
            measure(experts, skew, rounds, quick)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
