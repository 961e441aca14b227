"""Measures memory and time of each type of attention by sequence length.

    .venv/bin/python -m benchmarks.attention

Forward and backward of one sample, 4 heads of 32 dimensions, fp32, not causal, without a mask.
Where memory is linear, doubling the length doubles it; where it is quadratic, it becomes fourfold.
"torch SDPA" is F.scaled_dot_product_attention, which chooses its own kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Work, arguments_of, medians, peak_mib, print_header, print_table
from model.attention_backends import attend, choose_for
from model.frequency import frequency_attention

HEADS, HEAD_DIM, MODES = 4, 32, 32
TYPES = ["standard", "xformer", "flash", "frequency"]
PEER = "torch SDPA"
FORMULA_LIMIT = 4096
"""Longest sequence on which `standard` is timed."""


def attention(kind: str, query: Tensor, key: Tensor, value: Tensor, mix: Tensor) -> Tensor:
    """Compute attention as model.attention does; only frequency attention uses `mix`."""
    if kind == PEER:
        return F.scaled_dot_product_attention(query, key, value)
    if kind == "frequency":
        return frequency_attention(query, key, value, mix)
    choice = choose_for(query, key, att_type=kind)
    return attend(choice.kernel, query, key, value)


def build(kind: str, length: int) -> Work:
    """Return the work to measure: forward and backward at one length."""
    torch.manual_seed(0)
    shape = (1, HEADS, length, HEAD_DIM)
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    mix = (0.02 * torch.randn(HEADS, MODES, HEAD_DIM, 2)).requires_grad_()
    inputs = [query, key, value, *([mix] if kind == "frequency" else [])]
    upstream = torch.randn(shape)
    return lambda: torch.autograd.grad(attention(kind, query, key, value, mix), inputs, upstream)


def kernel_of(kind: str) -> str:
    """Return the name of the kernel that is chosen; a run's log says why."""
    if kind == "frequency":
        return f"{MODES} modes"
    x = torch.empty(1, HEADS, 8, HEAD_DIM)
    return choose_for(x, x, att_type=kind).kernel.name


def memory(kind: str, lengths: list[int]) -> list[str]:
    """Return a row: the peak beyond the inputs at each length, and its growth."""
    cells, previous = [], 0.0
    for length in lengths:
        peak = peak_mib(partial(build, kind, length), partial(build, kind, 128))
        cells.append(f"{peak:.1f} (x{peak / previous:.2f})" if previous > 0 else f"{peak:.1f}")
        previous = peak
    return [kind, kernel_of(kind), *cells]


def times(lengths: list[int], rounds: int, faster: list[tuple[int, bool]]) -> Iterator[list[str]]:
    """Yield a row for each length; `faster` records where frequency is faster than flash."""
    for length in lengths:
        kinds = [kind for kind in [*TYPES, PEER] if kind != "standard" or length <= FORMULA_LIMIT]
        seconds = medians({kind: build(kind, length) for kind in kinds}, rounds=rounds)
        faster.append((length, seconds["frequency"] < seconds["flash"]))
        cells = [f"{1e3 * seconds[k]:.2f}" if k in seconds else "" for k in [*TYPES, PEER]]
        ratio = seconds["flash"] / seconds["frequency"]
        yield [str(length), *cells, f"{ratio:.2f}", f"{seconds[PEER] / seconds['flash']:.2f}"]


def crossing(faster: list[tuple[int, bool]]) -> int | None:
    """Return the length from which frequency is faster at all measured lengths, None if none."""
    since: int | None = None
    for length, is_faster in faster:
        if not is_faster:
            since = None
        elif since is None:
            since = length
    return since


def main() -> None:
    rounds, quick = arguments_of(__doc__, rounds=7)
    lengths = [1024, 2048, 4096, 8192]
    timed = [512, 1024, 2048, 4096, 8192, 16384]
    if quick:
        lengths, timed = [512, 1024], [128, 512]

    print_header("Attention")
    print("Peak MiB of forward and backward beyond the inputs (ratio to half the length):\n")
    peaks = (memory(kind, lengths) for kind in TYPES)
    print_table(["att_type", "kernel", *map(str, lengths)], peaks)
    print("Forward and backward, median ms:\n")
    faster: list[tuple[int, bool]] = []
    head = ["length", *TYPES, PEER, "flash / frequency", f"{PEER} / flash"]
    print_table(head, times(timed, rounds, faster))
    since = crossing(faster)
    where = f"from length {since} on" if since else "at none of these lengths"
    print(f"Frequency ({MODES} modes) is faster than flash {where}.")


if __name__ == "__main__":
    main()
