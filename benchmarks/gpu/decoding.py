"""Cached decoding: tokens a second by batch size, beside Hugging Face's generate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.gpu.dense import options_of
from benchmarks.gpu.measure import DEVICE, Part, Rows, milliseconds, random
from benchmarks.peers import llama_options
from model.decoder_only import DecoderOnlyTransformer

SIZES = {"d": 1024, "layers": 12, "heads": 16, "width": 2816}
QUICK = {"d": 64, "layers": 2, "heads": 4, "width": 192}


def run(part: Part) -> None:
    """Measure whole decodings from an empty cache."""
    sizes, steps = (QUICK, 8) if part.quick else (SIZES, 128)
    with DEVICE:
        decoder = DecoderOnlyTransformer(1, 1, **options_of(sizes))
    decoder.to(torch.bfloat16).eval()
    peer = _llama(sizes)
    rows: Rows = []
    for batch in (1, 32, 256):
        token = random(batch, 1, 1)

        def ours(token: torch.Tensor = token) -> None:
            state: dict[str, Any] = {}
            for _ in range(steps):
                _, state = decoder.forward_one_step(token, state)

        works = {"ours": ours}
        if peer is not None:
            ids = torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)

            def theirs(ids: torch.Tensor = ids) -> None:
                peer.generate(  # type: ignore[operator]
                    ids,
                    attention_mask=torch.ones_like(ids),
                    min_new_tokens=steps,
                    max_new_tokens=steps,
                    do_sample=False,
                    cache_implementation="static",
                    disable_compile=True,
                    pad_token_id=0,
                )

            works["HF generate, static cache"] = theirs
        taken = milliseconds(works, rounds=2, warm_ups=1)
        rates = {f"{name}, tokens/s": 1e3 * batch * steps / ms for name, ms in taken.items()}
        rows.append({"batch": batch, "ms a step": taken["ours"] / steps} | rates)
    part.add(f"Cached decoding of {steps} tokens", rows)


def _llama(sizes: dict[str, int]) -> nn.Module | None:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    config = LlamaConfig(vocab_size=32, **llama_options(sizes))
    with DEVICE:
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()
