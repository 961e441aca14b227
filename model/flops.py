"""Floating-point operations by formula: what balances pipeline stages.

A product of a weight with n elements costs 2n per token; softmax(QK^T)V costs 4 * T * S * d for T
queries over S keys. Norms and activations are left out.
"""

from __future__ import annotations

from torch import nn

from model.attention import CrossAttention, SelfAttention
from model.moe import MixtureOfExperts
from model.network import Layer, TimeSeriesTransformer
from model.transformer import DecoderLayer, EncoderLayer


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def _feed_forward(module: nn.Module) -> float:
    """Active multiply-adds per token."""
    if isinstance(module, MixtureOfExperts):
        experts, _ = module.router.weight.shape
        return (
            module.router.weight.numel() + _weights(module.experts) * module.router.top_k / experts
        )
    return _weights(module)


def _module(module: nn.Module, tokens: int, memory: int, d_model: int) -> float:
    if isinstance(module, EncoderLayer | DecoderLayer):
        parts = [module.self_attention, getattr(module, "cross_attention", None)]
        attention = sum(_module(p, tokens, memory, d_model) for p in parts if p is not None)
        return attention + 2 * tokens * _feed_forward(module.feed_forward)
    if isinstance(module, SelfAttention):
        return 2 * tokens * _weights(module) + 4 * tokens * tokens * d_model
    if isinstance(module, CrossAttention):
        own = module.query.numel() + module.output.numel()
        scores = 4 * tokens * memory * d_model
        return 2 * tokens * own + 2 * memory * module.key_value.numel() + scores
    return 2 * tokens * _weights(module)


def forward_flops(network: TimeSeriesTransformer, layer: Layer) -> float:
    """Of one sample's forward pass through `layer`; works on the meta device."""
    rows = network.tokens_per_sample // network.memory_patches
    memory, future = network.memory_patches, network.future_patches
    total = 0.0
    for name in layer.modules:
        tokens = memory if name.startswith("encoder") else future
        total += _module(network.get_submodule(name), tokens, memory, network.config.d_model)
    return rows * total
