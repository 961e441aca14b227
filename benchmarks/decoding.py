"""Measures a step of cached decoding early and late, and against full forwards.

    .venv/bin/python -m benchmarks.decoding

A TransformerDecoder of 4 layers, d_model 256, 8 heads, att_type standard, over a memory of 96,
batch 1. Whole cached decodings are repeated; the time of a position is the mean over it and 8
positions on each side, then the median over repetitions. Without a cache, the n-th output takes a
full forward of n tokens: it is timed at 12 lengths, interpolated between them and summed over all.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import arguments_of, medians, print_header, print_table
from model.transformer import TransformerDecoder

MEMORY_LENGTH = 96
NEIGHBOURS = 8
"""Positions on each side of a position that its time is averaged over."""
FULL_LENGTHS = 12
"""Lengths at which a full forward is timed."""


def decode(
    decoder: TransformerDecoder, tokens: Tensor, memory: Tensor
) -> tuple[Tensor, list[float]]:
    """Decode step by step; return all outputs and the seconds of each step."""
    state: dict[str, Any] = {}
    outputs, seconds = [], []
    for token in tokens.split(1, dim=1):
        start = time.perf_counter()
        output, state = decoder.forward_one_step(token, memory, state)
        seconds.append(time.perf_counter() - start)
        outputs.append(output)
    return torch.cat(outputs, dim=1), seconds


def at(seconds: list[float], position: int) -> float:
    """Return the mean over the neighbours of `position`, which counts from 1."""
    near = seconds[position - 1 - NEIGHBOURS : position + NEIGHBOURS]
    assert len(near) == 2 * NEIGHBOURS + 1
    return statistics.fmean(near)


def full_seconds(
    decoder: TransformerDecoder, tokens: Tensor, memory: Tensor, rounds: int
) -> tuple[dict[int, float], float]:
    """Time full forwards without a cache.

    Returns median seconds at each measured length, and the sum over all lengths.
    """
    steps = tokens.shape[1]
    lengths = sorted({int(n) for n in np.linspace(1, steps, FULL_LENGTHS).round()})
    variants = {str(n): partial(decoder, tokens[:, :n], memory) for n in lengths}
    measured = {int(n): seconds for n, seconds in medians(variants, rounds=rounds).items()}
    every = np.interp(np.arange(1, steps + 1), list(measured), list(measured.values()))
    return measured, float(every.sum())


@torch.no_grad()
def main() -> None:
    repetitions, quick = arguments_of(__doc__, rounds=7)
    steps, early, late, d_model, layers = 720, 10, 700, 256, 4
    if quick:
        steps, early, late, d_model, layers = 60, 10, 50, 32, 2

    torch.manual_seed(0)
    decoder = TransformerDecoder(1, 1, d_model=d_model, nhead=8, num_layers=layers).eval()
    tokens, memory = torch.randn(1, steps, 1), torch.randn(1, MEMORY_LENGTH, d_model)

    print_header("Decoding")
    outputs, _ = decode(decoder, tokens, memory)  # also the warm-up
    right = decoder(tokens, memory)
    error = float(torch.linalg.norm(outputs - right) / torch.linalg.norm(right))
    print(f"Relative difference of cached steps and one full forward: {error:.1e}\n")

    runs = [decode(decoder, tokens, memory)[1] for _ in range(repetitions)]
    first, last = (statistics.median(at(run, p) for run in runs) for p in (early, late))
    # The ratio is taken within a repetition, so that drift of the machine cancels out.
    ratio = statistics.median(at(run, late) / at(run, early) for run in runs)
    print_table(
        [f"step at position {early}, ms", f"at {late}, ms", "late / early"],
        [[f"{1e3 * first:.3f}", f"{1e3 * last:.3f}", f"{ratio:.2f}"]],
    )

    cached = statistics.median(sum(run) for run in runs)
    measured, full = full_seconds(decoder, tokens, memory, repetitions)
    print_table(
        ["full forward of n tokens", *map(str, measured)],
        [["ms", *(f"{1e3 * seconds:.2f}" for seconds in measured.values())]],
    )
    print_table(
        [f"{steps} cached steps, s", f"{steps} full forwards, s (estimated)", "full / cached"],
        [[f"{cached:.2f}", f"{full:.2f}", f"{full / cached:.1f}"]],
    )


if __name__ == "__main__":
    main()
