"""Norms, rotary positions and SwiGLU: what is bound by memory, as a share of the copy's rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.measure import DEVICE, Part, Work, backward_of, milliseconds, random
from model.feedforward import gated_swish
from model.norm import AdaptiveNorm, RMSNorm
from model.rotary import rotate


def run(part: Part) -> None:
    """Measure forward and backward of each, and the bytes that it must move a second."""
    rows, d, width, heads = (256, 64, 96, 2) if part.quick else (16384, 2048, 5632, 16)
    results = []
    x, upstream = random(rows, d, grad=True), random(rows, d)
    norms = {
        "nn.LayerNorm": nn.LayerNorm(d),
        "nn.RMSNorm": nn.RMSNorm(d, eps=1e-5),
        "RMSNorm": RMSNorm(d),
        "AdaptiveNorm": AdaptiveNorm(d),
    }
    works: dict[str, Work] = {}
    for name, norm in norms.items():
        norm.to(DEVICE, torch.bfloat16)
        works[name] = backward_of(_of(norm, x), [x, *norm.parameters()], upstream)
    # x is read and y written; x and the gradient are read and the gradient of x written.
    results += _rows(works, part, 5 * rows * d * 2)

    gates, product = random(rows, 2 * width, grad=True), random(rows, width)
    works = {
        "swiglu": backward_of(_of(gated_swish, gates), [gates], product),
        "silu(gate) * value": backward_of(_of(_plain_swiglu, gates), [gates], product),
    }
    results += _rows(works, part, (3 + 5) * rows * width * 2)

    length = 64 if part.quick else 2048
    q = random(rows // length, length, heads, 1, d // heads, grad=True)
    works = {"rotate": backward_of(lambda: rotate(q, 0), [q], torch.randn_like(q))}
    results += _rows(works, part, 4 * rows * d * 2)
    part.add(f"Forward and backward of {rows} rows", results)


def _plain_swiglu(gates: Tensor) -> Tensor:
    gate, value = gates.chunk(2, dim=-1)
    return F.silu(gate) * value


def _of(function: Callable[..., Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: function(x)


def _rows(works: dict[str, Work], part: Part, moved: int) -> list[dict[str, object]]:
    taken = milliseconds(works, part.rounds)
    return [{"what": name, "ms": ms, "GB/s": moved / ms / 1e6} for name, ms in taken.items()]
