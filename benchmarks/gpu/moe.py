"""Mixtures of experts beside dense layers of equal active parameters, and beside their peers.

A mixture of 8 experts, of which a token takes 2 of half the dense width, so a token's operations
are a dense layer's but for the router.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.dense import measured_stack, ours, peer, release, sizes_of
from benchmarks.gpu.measure import (
    DEVICE,
    IS_CUDA,
    Part,
    Rows,
    Work,
    backward_of,
    milliseconds,
    product_ceiling,
    profiled,
    random,
)
from benchmarks.peers import Sizes, deepspeed_layer, mixtral, mixtral_layer
from model.config import TransformerConfig
from model.moe import MixtureOfExperts

TOP_K = 2
SKEW = 8.0
"""What is added to every token along the first expert's router weight, as a multiple of its unit
vector, where choices are skewed."""


def run(part: Part) -> None:
    """Measure stacks, then single layers beside their peers."""
    ceiling = product_ceiling(part.quick)
    stacks(part, ceiling)
    layers(part)


def stacks(part: Part, ceiling: float) -> None:
    """Measure a stack of mixtures beside a dense one."""
    sizes = sizes_of(part) | {"layers": 2 if part.quick else 8}
    half = sizes["width"] // 2
    for length in [64] if part.quick else [128, 2048]:
        rows: Rows = []
        x = random(sizes["tokens"] // length, length, sizes["d"])
        active = sum(p.numel() for p in ours(sizes).parameters())
        makers: dict[str, Callable[[], nn.Module]] = {
            "ours, dense": lambda: ours(sizes),
            "ours, 8 experts": lambda: _attached(
                ours(sizes, use_moe=True, num_experts=8, top_k=2, dim_feedforward=half * 3 // 2)
            ),
            "HF Mixtral (grouped_mm), 8 experts": lambda: peer(mixtral, sizes, half, 8, TOP_K),
        }
        for name, make in makers.items():
            row = measured_stack(part, name, make, x, sizes, ceiling, active)
            rows.append({"stack": name} | row)
        if "ms" in rows[0] and "ms" in rows[1]:
            for row in rows[1:]:
                if "ms" in row:
                    row["of dense"] = rows[0]["ms"] / row["ms"]
        part.add(f"Mixtures, forward and backward, {len(x)} x {length} tokens", rows)


def _attached(stack: nn.Module) -> nn.Module:
    """Attach auxiliary losses, as training does."""
    for module in stack.modules():
        if isinstance(module, MixtureOfExperts):
            module.attached_scale = 1.0
    return stack


def layers(part: Part) -> None:
    """Measure one mixture by number of experts, balanced and skewed."""
    sizes = sizes_of(part)
    for experts in (8, 64):
        width = 64 if part.quick else sizes["width"] // 2 // (1 if experts == 8 else 4)
        for skew in (0.0, SKEW):
            part.add(
                f"One mixture of {experts} experts of {width}, "
                f"{'skewed' if skew else 'balanced'}, forward and backward",
                _layer_rows(part, sizes, experts, width, skew),
            )
            release()


def _layer_rows(part: Part, sizes: Sizes, experts: int, width: int, skew: float) -> Rows:
    config = TransformerConfig(
        d_model=sizes["d"],
        dim_feedforward=width * 3 // 2,
        use_moe=True,
        num_experts=experts,
        top_k=TOP_K,
    )
    with DEVICE:
        layer = MixtureOfExperts(config)
    layer.to(torch.bfloat16)
    layer.attached_scale = 1.0
    assert layer.experts.width == width
    x = random(8, sizes["tokens"] // 8, sizes["d"])
    if skew:
        first = layer.router.weight[0].detach()
        x = x + skew * first / first.norm()
    x = x.detach().requires_grad_()
    upstream = torch.randn_like(x)
    works: dict[str, Work] = {"ours": _work(lambda: layer(x), layer, x, upstream)}
    missing: Rows = []
    for name, make in (
        ("HF Mixtral (grouped_mm)", lambda: peer(mixtral_layer, layer, TOP_K)),
        ("DeepSpeed, capacity 2", lambda: peer(deepspeed_layer, layer, TOP_K, drops=True)),
    ):
        try:
            other = make()
            works[name] = _work(lambda other=other: _first(other(x)), other, x, upstream)
            works[name]()
        except (ImportError, torch.OutOfMemoryError) as error:
            works.pop(name, None)
            missing.append({"layer": name, "not measured": str(error).splitlines()[0]})
    if part.profile and IS_CUDA:
        part.texts[f"mixture of {experts}, skew {skew}"] = profiled(works["ours"])
    taken = milliseconds(works, part.rounds)
    return [
        {"layer": name, "ms": ms, "ours is faster by": ms / taken["ours"]}
        for name, ms in taken.items()
    ] + missing


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _work(forward: Callable[[], Tensor], layer: nn.Module, x: Tensor, upstream: Tensor) -> Work:
    return backward_of(forward, [x, *layer.parameters()], upstream)
