"""The dense reference model of 1.03 billion parameters, without an optimizer, beside its peers.

d_model 2048, 20 layers, 16 heads, SwiGLU of 5632, RMS norms, rotary positions, causal, bf16. A
token costs 6 operations for each parameter and 6 * d_model * length a layer for causal attention,
forward and backward; recomputation is not counted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.measure import (
    DEVICE,
    IS_CUDA,
    Part,
    Rows,
    milliseconds,
    peak_gib,
    product_ceiling,
    profiled,
    random,
)
from benchmarks.peers import Sizes, llama, torch_encoder
from benchmarks.stacks import OurDecoder

FULL: Sizes = {"d": 2048, "layers": 20, "heads": 16, "width": 5632, "tokens": 16384}
QUICK: Sizes = {"d": 64, "layers": 2, "heads": 4, "width": 192, "tokens": 128}


def sizes_of(part: Part) -> Sizes:
    """Return the sizes of the reference model."""
    return QUICK if part.quick else FULL


def stack_flops(sizes: Sizes, length: int, parameters: int) -> float:
    """Return the operations of a token, forward and backward."""
    return 6.0 * parameters + 6.0 * sizes["layers"] * sizes["d"] * length


def run(part: Part) -> None:
    """Measure forward and backward of stacks at several lengths."""
    ceiling = product_ceiling(part.quick)
    sizes = sizes_of(part)
    for length in [64] if part.quick else [2048, 128]:
        rows: Rows = []
        x = random(sizes["tokens"] // length, length, sizes["d"])
        for name, make in stack_makers(sizes).items():
            rows.append({"stack": name} | measured_stack(part, name, make, x, sizes, ceiling))
        part.add(f"Stacks, forward and backward, {len(x)} x {length} tokens", rows)


def options_of(sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """Return the library's arguments for the reference model."""
    return {
        "d_model": sizes["d"],
        "nhead": sizes["heads"],
        "num_layers": sizes["layers"],
        "dim_feedforward": sizes["width"] * 3 // 2,
        "dropout": 0.0,
        "att_type": "flash",
        "use_adaptive_ln": "rms",
        "position": "rotary",
        "max_seq_len": 16384,
    } | changes


def measured_stack(
    part: Part,
    name: str,
    make: Callable[[], nn.Module],
    x: Tensor,
    sizes: Sizes,
    ceiling: float,
    active: int | None = None,
) -> dict[str, Any]:
    """Return the tokens/s, share of the ceiling and peak of one stack, or why there are none."""
    release()
    try:
        module = make().to(DEVICE, torch.bfloat16).train()
    except ImportError as error:
        return {"not measured": str(error)}
    parameters = list(module.parameters())
    upstream = torch.randn_like(x)
    given = x.detach().requires_grad_()

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        module(given).backward(upstream)

    try:
        taken = milliseconds({"it": step}, part.rounds)["it"]
        peak = peak_gib(step)
        if part.profile and IS_CUDA:
            part.texts[f"{name} at {x.shape[1]}"] = profiled(step)
    except torch.OutOfMemoryError:
        return {"not measured": "out of memory"}
    finally:
        for parameter in parameters:
            parameter.grad = None
    count = active or sum(p.numel() for p in parameters)
    tokens = x.shape[0] * x.shape[1]
    rate = 1e3 * tokens / taken
    achieved = rate * stack_flops(sizes, x.shape[1], count) / 1e12
    result = {"ms": taken, "tokens/s": rate, "TFLOP/s": achieved, "of ceiling": achieved / ceiling}
    return result | ({} if peak is None else {"peak GiB": peak})


def release() -> None:
    """Give back memory that nothing holds."""
    gc.collect()
    if IS_CUDA:
        torch.cuda.empty_cache()


def ours(sizes: Sizes, **changes: Any) -> nn.Module:
    """Return our stack."""
    with DEVICE:
        return OurDecoder(1, 1, **options_of(sizes, **changes))


def peer(make: Callable[..., nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    """Return a module of `benchmarks.peers` on the device."""
    with DEVICE:
        return make(*arguments, **options)


def stack_makers(sizes: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """Return the stacks that are compared."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: ours(sizes),
        "ours, block recomputed": lambda: ours(sizes, use_gradient_checkpointing=True),
        "ours, gelu and layer norm": lambda: ours(
            sizes, use_swiglu=False, use_adaptive_ln="layer", position="sinusoidal"
        ),
        "HF Llama (sdpa)": lambda: peer(llama, sizes),
        "nn.TransformerEncoder": lambda: peer(torch_encoder, sizes, causal=True),
    }
    if IS_CUDA:
        makers["ours, compiled"] = lambda: _compiled(ours(sizes))
        makers["HF Llama (sdpa), compiled"] = lambda: _compiled(peer(llama, sizes))
    return makers


def _compiled(module: nn.Module) -> nn.Module:
    """Compile each layer, which costs one compilation for all of them."""
    layers = module.layers if isinstance(module, OurDecoder) else module.module.layers  # type: ignore[union-attr]
    for layer in layers:  # type: ignore[union-attr]
        layer.compile()
    return module
