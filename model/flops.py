"""Floating-point operations by formula; they balance pipeline stages.

A product of a weight with n elements costs 2n per token; softmax(QK^T)V costs 4 * T * S * d for T
queries over S keys. Norms, activations and Fourier transforms are left out.
"""

from __future__ import annotations

from torch import nn

from model.attention import CrossAttention, SelfAttention
from model.layers import BaseTransformerLayer, DecoderLayer, EncoderLayer, VariateLayer
from model.moe import MixtureOfExperts
from model.network import TimeSeriesTransformer
from model.sequential import Layer


def forward_flops(network: TimeSeriesTransformer, layer: Layer) -> float:
    """Return the operations of one sample's forward pass through `layer`.

    The network may be on the meta device.
    """
    per_row = sum(
        _module(network.get_submodule(name), tokens, layer.memory)
        for name, tokens in zip(layer.modules, layer.tokens, strict=True)
    )
    return network.rows_per_sample * per_row


def _module(module: nn.Module, tokens: int, memory: int) -> float:
    """Return the operations of one row of `tokens` tokens."""
    if isinstance(module, EncoderLayer):
        return _self_attention(module.self_attention, tokens, tokens) + _feed_forward(
            module, tokens
        )
    if isinstance(module, VariateLayer):
        attention = _self_attention(module.variate_attention, tokens, module.variates)
        return attention + _feed_forward(module, tokens)
    if isinstance(module, DecoderLayer):
        attention = _self_attention(module.self_attention, tokens, tokens)
        attention += _cross_attention(module.cross_attention, tokens, memory)
        return attention + _feed_forward(module, tokens)
    return 2 * tokens * _matrices(module)


def _matrices(module: nn.Module) -> int:
    """Return the number of elements of the module's matrices."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def _self_attention(module: SelfAttention, tokens: int, seen: int) -> float:
    """Return the operations of one row of `tokens` tokens, each of which attends to `seen`."""
    weights = module.query_key_value.numel() + module.output.numel() + _adapters(module)
    return 2 * tokens * weights + 4 * tokens * seen * _width(module)


def _cross_attention(module: CrossAttention, tokens: int, memory: int) -> float:
    """Return the operations of one row of `tokens` tokens over a memory of `memory` tokens."""
    weights = tokens * (module.query.numel() + module.output.numel() + _adapters(module))
    weights += memory * module.key_value.numel()
    return 2 * weights + 4 * tokens * memory * _width(module)


def _adapters(module: SelfAttention | CrossAttention) -> int:
    """Return the number of elements of an attention's adapters, taken for as many tokens each."""
    return 0 if module.adapters is None else _matrices(module.adapters)


def _width(module: SelfAttention | CrossAttention) -> int:
    """Return the number of query heads times the head dimension."""
    return module.output[0].numel()


def _feed_forward(layer: BaseTransformerLayer, tokens: int) -> float:
    """Return the operations of one row of `tokens` tokens; of experts only the chosen count."""
    module = layer.feed_forward
    if not isinstance(module, MixtureOfExperts):
        return 2 * tokens * _matrices(module)
    active = _matrices(module.experts) * module.router.top_k / module.experts.count
    shared = 0 if module.shared is None else _matrices(module.shared)
    return 2 * tokens * (module.router.weight.numel() + active + shared)
