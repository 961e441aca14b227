"""Our attention types against torch's own fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.measure import Part, Work, backward_of, milliseconds, random
from model.attention_backends import attend, choose_for
from model.frequency import frequency_attention

HEADS, HEAD_DIM, TOKENS, MODES = 16, 128, 16384, 32
RAW = {
    "raw flash": SDPBackend.FLASH_ATTENTION,
    "raw cuDNN": SDPBackend.CUDNN_ATTENTION,
    "raw efficient": SDPBackend.EFFICIENT_ATTENTION,
}
FORMULA_LIMIT = 4096


def run(part: Part) -> None:
    """Measure forward, and forward and backward, of causal attention by length."""
    lengths = [64, 128] if part.quick else [512, 1024, 2048, 4096, 8192, 16384]
    tokens = 256 if part.quick else TOKENS
    for title, backward in (("Forward", False), ("Forward and backward", True)):
        rows = []
        for length in lengths:
            works = _works(tokens // length, length, backward)
            taken = milliseconds(works, part.rounds)
            flops = (3.5 if backward else 1) * 2 * tokens * length * HEADS * HEAD_DIM
            rates = {name: flops / ms / 1e9 for name, ms in taken.items()}
            raw = max(rate for name, rate in rates.items() if name in RAW or name == "raw")
            ours = {"flash / best raw": rates["flash"] / raw}
            rows.append({"length": length, **rates, **ours})
        part.add(f"{title}, causal, {HEADS} heads of {HEAD_DIM}, {tokens} tokens, TFLOP/s", rows)
    _gaps(part, tokens)


def _gaps(part: Part, tokens: int) -> None:
    """Measure causal attention over sequences with hidden keys, as of series with gaps."""
    rows = []
    for length in [64] if part.quick else [128, 1024, 4096]:
        q, k, v = _heads(tokens // length, length)
        mask = torch.rand(tokens // length, 1, 1, length, device=q.device) > 0.1
        upstream = torch.randn_like(q)
        works: dict[str, Work] = {}
        for name, given in (("no gaps", None), ("gaps", mask)):
            kernel = choose_for(q, k, att_type="flash", mask=given, is_causal=True).kernel
            forward = _call(attend, kernel, q, k, v, mask=given, is_causal=True)
            works[f"{name}: {kernel.name}"] = backward_of(forward, (q, k, v), upstream)
        rows.append({"length": length} | milliseconds(works, part.rounds))
    part.add("Forward and backward with hidden keys, ms", rows)


def _works(batch: int, length: int, backward: bool) -> dict[str, Work]:
    q, k, v = _heads(batch, length)
    upstream = torch.randn_like(q)
    forwards: dict[str, Callable[[], Tensor]] = {}
    for att_type in ("standard", "xformer", "flash"):
        if att_type == "standard" and length > FORMULA_LIMIT:
            continue
        kernel = choose_for(q, k, att_type=att_type, is_causal=True).kernel
        forwards[att_type] = _call(attend, kernel, q, k, v, is_causal=True)
    mix = torch.randn(HEADS, MODES, HEAD_DIM, 2, device=q.device)
    forwards["frequency"] = _call(frequency_attention, q, k, v, mix)
    if q.device.type == "cuda":
        for name, backend in RAW.items():
            forwards[name] = _within(sdpa_kernel, backend, q, k, v)
    else:
        forwards["raw"] = _call(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    if backward:
        return {name: backward_of(f, (q, k, v), upstream) for name, f in forwards.items()}
    return {name: _without_gradient(f) for name, f in forwards.items()}


def _heads(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    # Laid out as a layer hands them over: a view of [B, T, H, D].
    q, k, v = (random(batch, length, HEADS, HEAD_DIM, grad=True).transpose(1, 2) for _ in range(3))
    return q, k, v


def _call(function: Callable[..., Tensor], *arguments: object, **options: object) -> Work:
    return lambda: function(*arguments, **options)


def _within(
    context: Callable[..., AbstractContextManager[None]], backend: SDPBackend, *heads: Tensor
) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with context(backend):
            return F.scaled_dot_product_attention(*heads, is_causal=True)

    return forward


def _without_gradient(forward: Callable[[], Tensor]) -> Work:
    return torch.no_grad()(forward)
