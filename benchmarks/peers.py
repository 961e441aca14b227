"""What others have written, of the sizes that are compared: torch, Hugging Face, DeepSpeed.

Modules are made on torch's current default device. Those of Hugging Face raise ImportError where
the package transformers is missing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from model.moe import MixtureOfExperts

Sizes = dict[str, int]
"""d, layers, heads, width (of a gated feed-forward)."""

LONGEST = 16384
"""Positions that models of Hugging Face are made for."""


class OnVectors(nn.Module):
    """A stack of another library, called with vectors [B, T, D]."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, x)


class PlainSwiGLU(nn.Module):
    """SwiGLU as most code writes it, with three matrices."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, width, bias=False)
        self.value = nn.Linear(d_model, width, bias=False)
        self.output = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.gate(x)) * self.value(x))


def torch_encoder(sizes: Sizes, *, causal: bool) -> nn.Module:
    """Return torch's own encoder with a plain MLP of as many parameters as a gated one's."""
    layer = nn.TransformerEncoderLayer(
        sizes["d"],
        sizes["heads"],
        sizes["width"] * 3 // 2,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    module = nn.TransformerEncoder(layer, sizes["layers"], enable_nested_tensor=False)
    if not causal:
        return module

    def call(m: nn.Module, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        output: Tensor = m(x, mask=mask, is_causal=True)
        return output

    return OnVectors(module, call)


def llama_options(sizes: Sizes) -> dict[str, Any]:
    """Return the arguments of Hugging Face's LlamaConfig."""
    return {
        "hidden_size": sizes["d"],
        "intermediate_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"],
        "max_position_embeddings": LONGEST,
        "attn_implementation": "sdpa",
    }


def llama(sizes: Sizes) -> nn.Module:
    """Return Hugging Face's Llama with torch's fused attention: causal, rotary, SwiGLU, RMS."""
    from transformers import LlamaConfig, LlamaModel

    module = LlamaModel(LlamaConfig(vocab_size=8, use_cache=False, **llama_options(sizes)))
    return OnVectors(module, lambda m, x: m(inputs_embeds=x).last_hidden_state)


def mixtral(sizes: Sizes, width: int, experts: int, top_k: int) -> nn.Module:
    """Return Hugging Face's Mixtral with its grouped product."""
    from transformers import MixtralConfig, MixtralModel

    config = MixtralConfig(
        vocab_size=8,
        use_cache=False,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        experts_implementation="grouped_mm",
        **(llama_options(sizes) | {"intermediate_size": width}),
    )
    return OnVectors(MixtralModel(config), lambda m, x: m(inputs_embeds=x).last_hidden_state)


def mixtral_layer(ours: MixtureOfExperts, top_k: int) -> nn.Module:
    """Return Mixtral's mixture with our weights."""
    experts, _, width, d_model = ours.experts.input.shape
    sizes = {"d": d_model, "layers": 1, "heads": 1}
    stack = mixtral(sizes | {"width": width}, width, experts, top_k)
    block: nn.Module = stack.module.layers[0].mlp  # type: ignore[index, union-attr]
    block.to(ours.router.weight.device, ours.experts.input.dtype)
    with torch.no_grad():
        block.gate.weight.copy_(ours.router.weight)  # type: ignore[union-attr, operator]
        block.experts.gate_up_proj.copy_(ours.experts.input.flatten(1, 2))  # type: ignore[union-attr, operator]
        block.experts.down_proj.copy_(ours.experts.output)  # type: ignore[union-attr, operator]
    return block


def deepspeed_layer(ours: MixtureOfExperts, top_k: int, *, drops: bool) -> nn.Module:
    """Return DeepSpeed's mixture with our weights, on one rank.

    With `drops` an expert has room for twice an even share of the tokens, else for all.
    """
    experts, _, width, d_model = ours.experts.input.shape
    device = ours.router.weight.device
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    with redirect_stdout(sys.stderr):
        import deepspeed
        from deepspeed.moe.layer import MoE

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel("ERROR")
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        layer = MoE(
            d_model,
            PlainSwiGLU(d_model, width),
            num_experts=experts,
            ep_size=1,
            k=top_k,
            capacity_factor=2.0,
            drop_tokens=drops,
            top2_2nd_expert_sampling=False,
        )
        layer.set_deepspeed_parallelism()
    layer.to(device, ours.experts.input.dtype)
    inner = layer.deepspeed_moe
    copy_weights(ours, inner.gate.wg, inner.experts.deepspeed_experts)
    module: nn.Module = layer
    return module


def copy_weights(ours: MixtureOfExperts, router: nn.Linear, experts: Iterable[Any]) -> None:
    """Copy our weights into another router and other experts."""
    with torch.no_grad():
        router.weight.copy_(ours.router.weight)
        for i, expert in enumerate(experts):
            expert.gate.weight.copy_(ours.experts.input[i, 0])
            expert.value.weight.copy_(ours.experts.input[i, 1])
            expert.output.weight.copy_(ours.experts.output[i])
