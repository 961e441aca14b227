"""Measures the norms against torch's LayerNorm, and SwiGLU's memory against three matrices.

    .venv/bin/python -m benchmarks.norm

Forward and backward, gradients of the input and of all parameters, fp32. The unfused SwiGLU has a
matrix for the gate and one for the value; ours has both in one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.peers import PlainSwiGLU
from benchmarks.timing import Work, arguments_of, medians, peak_mib, print_header, print_table
from model.config import TransformerConfig
from model.feedforward import SwiGLU
from model.init import initialise
from model.norm import AdaptiveNorm, RMSNorm

NORMS = {
    "nn.LayerNorm": nn.LayerNorm,
    "nn.RMSNorm": nn.RMSNorm,
    "RMSNorm": RMSNorm,
    "AdaptiveNorm": AdaptiveNorm,
}
PEER = "nn.LayerNorm"


def step(module: nn.Module, rows: int, d_model: int) -> Work:
    """Return the work to measure: forward and backward of [rows, d_model]."""
    torch.manual_seed(0)
    x = torch.randn(rows, d_model, requires_grad=True)
    upstream = torch.randn(rows, d_model)
    inputs = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x), inputs, upstream)


def norm(kind: str, d_model: int) -> nn.Module:
    """Return an initialised norm."""
    module = NORMS[kind](d_model)
    if isinstance(module, RMSNorm | AdaptiveNorm):
        initialise(module, seed=0)
    return module


def norm_rows(shapes: list[tuple[int, int]], rounds: int) -> Iterator[list[str]]:
    """Yield a row for each shape: the median time of each norm, and its ratio to LayerNorm's."""
    for rows, d_model in shapes:
        works = {kind: step(norm(kind, d_model), rows, d_model) for kind in NORMS}
        seconds = medians(works, rounds=rounds)
        cells = [f"{1e3 * value:.3f} (x{value / seconds[PEER]:.2f})" for value in seconds.values()]
        yield [f"{rows} x {d_model}", *cells]


def build_swiglu(fused: bool, rows: int, d_model: int, dim_feedforward: int) -> Work:
    """Return the work to measure of our SwiGLU, or of three matrices unless `fused`."""
    config = TransformerConfig(d_model=d_model, dim_feedforward=dim_feedforward)
    if not fused:
        return step(PlainSwiGLU(d_model, config.feedforward_width), rows, d_model)
    module = SwiGLU(config)
    initialise(module, seed=0)
    return step(module, rows, d_model)


def swiglu_rows(rows_of: list[int], d_model: int, dim_feedforward: int) -> Iterator[list[str]]:
    """Yield a row for each number of rows: the peaks of both kinds in MiB, and their ratio."""
    for rows in rows_of:
        peaks = []
        for fused in (True, False):
            build = partial(build_swiglu, fused, rows, d_model, dim_feedforward)
            peaks.append(peak_mib(build, partial(build_swiglu, fused, 64, 64, 64)))
        ours, peer = peaks
        yield [str(rows), f"{ours:.1f}", f"{peer:.1f}", f"{ours / peer:.2f}"]


def main() -> None:
    rounds, quick = arguments_of(__doc__, rounds=21)
    shapes = [(2048, 512), (4096, 1024), (1024, 64), (16384, 512)]
    rows_of, d_model, dim_feedforward = [2048, 16384], 512, 2048
    if quick:
        shapes, rows_of, d_model, dim_feedforward = [(64, 32), (32, 64)], [1024], 128, 512

    print_header("Norms and SwiGLU")
    print("Forward and backward, median ms (ratio to nn.LayerNorm):\n")
    print_table(["shape", *NORMS], norm_rows(shapes, rounds))
    width = TransformerConfig(d_model=d_model, dim_feedforward=dim_feedforward).feedforward_width
    print(f"SwiGLU {d_model} -> {width} -> {d_model}, peak MiB beyond inputs and weights:\n")
    print_table(
        ["rows", "SwiGLU", "two nn.Linear", "ratio"],
        swiglu_rows(rows_of, d_model, dim_feedforward),
    )


if __name__ == "__main__":
    main()
