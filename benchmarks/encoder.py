"""Measures a training step of a dense stack beside torch's and Hugging Face's.

    .venv/bin/python -m benchmarks.encoder

Width 256, 8 heads, 6 layers, feed-forward 1024 (gated: 704), batches of 16 x 256 vectors, fp32:
forward, backward and fused AdamW, all stacks in one process, in turn. Peers of Hugging Face are
measured where transformers is installed (extra `bench`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import Sizes, llama, torch_encoder
from benchmarks.stacks import OurDecoder, OurEncoder
from benchmarks.timing import Work, arguments_of, medians, print_header, print_table

FULL: Sizes = {"d": 256, "layers": 6, "heads": 8, "width": 704, "rows": 16, "length": 256}
QUICK: Sizes = {"d": 32, "layers": 1, "heads": 4, "width": 96, "rows": 2, "length": 16}


def ours(sizes: Sizes, **options: Any) -> nn.Module:
    """Return our encoder, as many parameters as the peers."""
    gated = options.get("use_swiglu", False)
    width = sizes["width"] * 3 // 2 if gated else sizes["width"] * 16 // 11
    common: dict[str, Any] = {
        "d_model": sizes["d"],
        "nhead": sizes["heads"],
        "num_layers": sizes["layers"],
        "dim_feedforward": width,
        "dropout": 0.0,
        "use_swiglu": gated,
        "att_type": "flash",
    }
    return OurEncoder(1, **(common | options))


def our_decoder(sizes: Sizes) -> nn.Module:
    """Return our stack with Llama's parts: causal, rotary, SwiGLU, RMS norms."""
    return OurDecoder(
        1,
        1,
        d_model=sizes["d"],
        nhead=sizes["heads"],
        num_layers=sizes["layers"],
        dim_feedforward=sizes["width"] * 3 // 2,
        dropout=0.0,
        att_type="flash",
        use_adaptive_ln="rms",
        position="rotary",
        max_seq_len=16384,
    )


def stacks(sizes: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """Return what is compared, by name; the first is what others are held to."""
    return {
        "nn.TransformerEncoder (gelu)": lambda: torch_encoder(sizes, causal=False),
        "ours, gelu, layer norm": lambda: ours(sizes, use_adaptive_ln="layer"),
        "ours, gelu, RMS norm": lambda: ours(sizes, use_adaptive_ln="rms"),
        "ours, SwiGLU, RMS norm": lambda: ours(sizes, use_swiglu=True, use_adaptive_ln="rms"),
        "ours, SwiGLU, RMS norm, rotary": lambda: ours(
            sizes, use_swiglu=True, use_adaptive_ln="rms", position="rotary"
        ),
        "HF Llama (causal, rotary)": lambda: llama(sizes),
        "ours, causal, SwiGLU, RMS norm, rotary": lambda: our_decoder(sizes),
    }


def training_step(module: nn.Module, x: Tensor, upstream: Tensor) -> Work:
    """Return forward, backward and AdamW."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def work() -> None:
        module(x).backward(upstream)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def main() -> None:
    """Measure all stacks."""
    rounds, quick = arguments_of(__doc__, rounds=9)
    print_header("Dense stacks")
    torch.manual_seed(0)
    sizes = QUICK if quick else FULL
    x = torch.randn(sizes["rows"], sizes["length"], sizes["d"])
    upstream = torch.randn_like(x)
    works: dict[str, Work] = {}
    counts: dict[str, int] = {}
    for name, make in stacks(sizes).items():
        try:
            module = make()
        except ImportError as error:
            print(f"not measured: {name} ({error})\n")
            continue
        counts[name] = sum(p.numel() for p in module.parameters())
        works[name] = training_step(module, x, upstream)
    seconds = medians(works, rounds=rounds)
    first = seconds[next(iter(works))]
    rows = [
        [name, f"{counts[name] / 1e6:.2f} M", f"{1e3 * value:.0f}", f"{value / first:.3f}"]
        for name, value in seconds.items()
    ]
    print_table(["stack", "parameters", "ms", "of nn.TransformerEncoder's time"], rows)


if __name__ == "__main__":
    main()
