"""What the card reaches at all: products, copies, and torch's fused attention."""

from __future__ import annotations

import torch

from benchmarks.gpu.measure import Part, milliseconds, random


def run(part: Part) -> None:
    """Measure the ceilings that the other parts' shares refer to."""
    size = 256 if part.quick else 8192
    tokens, d, width = (64, 64, 128) if part.quick else (16384, 2048, 5632)
    shapes = {
        f"{size} x {size} x {size}": (size, size, size),
        f"{tokens} x {d} x {2 * width}": (tokens, d, 2 * width),
        f"{tokens} x {width} x {d}": (tokens, width, d),
        f"{tokens} x {d} x {d}": (tokens, d, d),
    }
    rows = []
    for name, (m, k, n) in shapes.items():
        a, b = random(m, k), random(n, k)
        taken = milliseconds({"it": lambda a=a, b=b: a @ b.t()}, part.rounds)["it"]
        rows.append({"bf16 product": name, "ms": taken, "TFLOP/s": 2 * m * k * n / taken / 1e9})
    part.add("Products", rows)

    count = 2**16 if part.quick else 2**30
    source = torch.ones(count, dtype=torch.uint8, device=random(1).device)
    target = torch.empty_like(source)
    taken = milliseconds({"it": lambda: target.copy_(source)}, part.rounds)["it"]
    part.add(
        "Copy", [{"bytes": count, "ms": taken, "GB/s read and written": 2 * count / taken / 1e6}]
    )
